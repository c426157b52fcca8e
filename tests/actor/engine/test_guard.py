"""The guard of an engine: it ends with all processes of its group when the actor ends, and is not in the way before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
GUARD = [sys.executable, "-m", "actor.engine.guard"]


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*GUARD, *command], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("stopped", [False, True])
def test_when_the_actor_is_killed_the_whole_group_is(stopped: bool) -> None:
    """The command's own child, too, which asked nobody to end it with its parent; also where the group is stopped."""
    starts = (
        "import subprocess, sys\n"
        "guard = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)\n"
        "guard.wait()\n"
    )
    actor = subprocess.Popen(
        [sys.executable, "-c", starts, *GUARD, "sh", "-c", "sleep 600 & echo $!; wait"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert actor.stdout is not None
    grandchild = psutil.Process(int(actor.stdout.readline()))
    group = os.getpgid(grandchild.pid)
    members = [one for one in psutil.process_iter() if one.pid == group or os.getpgid(one.pid) == group]
    assert len(members) == 3
    if stopped:
        os.killpg(group, signal.SIGSTOP)
    actor.kill()
    actor.wait()
    _, alive = psutil.wait_procs(members, timeout=30)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(("ends", "code"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_it_ends_with_the_code_of_the_command(ends: str, code: int) -> None:
    with start("sh", "-c", ends) as guard:
        assert guard.wait(30) == code


def test_the_command_is_asked_to_end_and_the_guard_waits_for_it() -> None:
    with start(
        "sh", "-c", "trap 'sleep 1; echo cleaned; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    ) as guard:
        assert guard.stdout is not None and guard.stdout.readline() == "ready\n"
        began = time.monotonic()
        os.killpg(guard.pid, signal.SIGTERM)
        assert guard.stdout.readline() == "cleaned\n" and guard.wait(30) == 3
        assert time.monotonic() - began >= 1
