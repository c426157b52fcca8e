"""One command for a run on one machine: which GPUs each process gets, what is shown, and how all of them end."""

from __future__ import annotations

import io
import itertools
import signal
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from common.config import Config, ConfigError, load
from scripts.ops.local_run import assign_gpus, count_actors
from scripts.ops.progress_display import LiveTable, PlainLines
from scripts.ops.supervise import ChildFailed, Children

ROOT = Path(__file__).parents[2]
FILES = [str(ROOT / "configs" / name) for name in ("lrpo.toml", "models/qwen2.5-1.5b.toml")]


def config(*flags: str) -> Config:
    return load([*FILES, *flags])


def test_actors_get_the_gpus_that_the_learner_leaves() -> None:
    eight = config("--learner.ranks", "4")
    assert count_actors([*"abcdefgh"], eight) == 4
    assert assign_gpus([*"abcdefgh"], eight, 4) == [[*"abcd"], ["d"], ["e"], ["f"], ["g"], ["h"]]
    wide = config("--learner.ranks", "2", "--actor.engine_args.tp", "2")
    assert count_actors([*"abcdefg"], wide) == 2
    assert assign_gpus([*"abcdefg"], wide, 2) == [[*"ab"], ["g"], [*"cd"], [*"ef"]]
    assert count_actors([], eight) == 1 and not any(assign_gpus([], eight, 1))


def test_one_gpu_is_shared_where_that_can_work() -> None:
    one = load([*FILES, str(ROOT / "configs/gpus-1.toml")])
    assert count_actors(["a"], one) == 1
    assert assign_gpus(["a"], one, 1) == [["a"]] * 3
    with pytest.raises(ConfigError, match=r"configs/gpus-1\.toml before your own file"):
        assign_gpus(["a"], config("--learner.ranks", "1"), 1)


@pytest.mark.parametrize(
    ("gpus", "flags", "actors"), [("ab", (), 1), ("abcd", (), 1), ("ab", ("--learner.ranks", "1"), 2)]
)
def test_too_few_gpus_are_refused(gpus: str, flags: tuple[str, ...], actors: int) -> None:
    with pytest.raises(ConfigError, match=f"this machine has {len(gpus)}: lower --learner.ranks or --actors"):
        assign_gpus([*gpus], config(*flags), actors)


LINES = [
    "07:00:00 INFO progress.learner: reading the weights of m",
    "07:00:01 INFO learner.data: 7 rows",
    "07:00:02 WARNING learner: odd",
    "07:00:03 INFO learner: step 3/15  reward 0.500  10 tokens/s  learner",
]


def test_plain_lines_name_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    display = PlainLines()
    for line in LINES:
        display.line("learner", line)
    display.line("actor-1", "07:00:04 INFO progress.actor: starting the engine")
    display.line("actor-1", "07:00:04 INFO actor: nothing for people")
    shown = capsys.readouterr().out.splitlines()
    assert shown == [LINES[0], *LINES[2:], "[actor-1] 07:00:04 INFO progress.actor: starting the engine"]


def test_the_live_table_shows_what_each_process_does_and_the_steps() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    display = LiveTable(console)
    for name in ("learner", "actor-1"):
        display.started(name)

    def shown() -> str:
        with console.capture() as capture:
            console.print(display)
        return capture.get()

    display.line("learner", LINES[0])
    assert "reading the weights of m" in shown() and "starting" in shown() and "step" not in shown()
    for line in LINES[1:]:
        display.line("learner", line)
    assert "step 3/15" in shown() and "reward 0.500" in shown() and "training" in shown()
    assert "odd" in console.file.getvalue(), "a warning stays above the table"  # type: ignore[attr-defined]


CHILD = """
import signal, sys, time
print("07:00:00 INFO learner: {name} is ready", flush=True)
signal.signal(signal.SIGTERM, lambda *_: {on_term})
time.sleep({seconds})
sys.exit({code})
"""


def child(name: str, seconds: float, code: int = 0, on_term: str = "sys.exit(130)") -> list[str]:
    return [sys.executable, "-c", CHILD.format(name=name, seconds=seconds, code=code, on_term=on_term)]


def test_lines_of_all_processes_are_shown_and_all_end_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Children(tmp_path) as children:
        children.start("learner", child("one", 1.5))
        children.start("stubborn", child("two", 100, on_term="None"))
        children.wait_for("learner")
        stubborn = children._running["stubborn"]
        began = time.monotonic()
    assert stubborn.returncode == -signal.SIGKILL and time.monotonic() - began < 10
    shown = capsys.readouterr().out
    assert "INFO learner: one is ready" in shown and "[stubborn] 07:00:00 INFO learner: two is ready" in shown


def test_a_failed_process_ends_all_or_is_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ChildFailed, match="actor ended with code 3"), Children(tmp_path) as children:
        children.start("learner", child("one", 100))
        children.start("actor", child("two", 0.3, code=3), restarts=1)
        children.wait_for("learner")
    assert capsys.readouterr().out.count("starting actor again") == 1
    assert children._running["learner"].returncode is not None


def flaky(path: Path, failures: int, name: str, after: str = "") -> list[str]:
    """A process that fails so many times before it is ready, and then runs until it is ended.

    Args:
        after: another one, which is to be ready before this one does anything.
    """
    count = f"n=$(($(cat {path / name} 2>/dev/null || echo 0) + 1)); echo $n >{path / name}"
    if after:
        count = f"until grep -q ' is ready' {path / after}.log; do sleep 0.1; done; {count}"
    return ["bash", "-c", f'{count}; ((n > {failures})) || {{ echo "error: no GPU on {name}"; exit 1; }}; '
            f'echo " is ready"; sleep 100']  # fmt: skip


def test_an_actor_that_does_not_start_is_tried_again_while_another_may_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Children(tmp_path) as children:
        commands = {"good": flaky(tmp_path, 0, "good"), "bad": flaky(tmp_path, 2, "bad")}
        children.start_any(commands, restarts=1000)
        children.wait_until(lambda: " is ready" in children.log("bad").read_text())
        assert children._running["good"].poll() is None, "it was left alone"
    shown = capsys.readouterr().out
    assert shown.count("error: no GPU on bad\nstarting bad again in 2 s") == 1, "the reason is told"
    assert shown.count("error: no GPU on bad\nstarting bad again in 4 s") == 1


def test_an_actor_is_tried_as_often_as_it_takes_once_another_was_ready(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        children.start("learner", child("one", 100))
        commands = {"good": flaky(tmp_path, 0, "good"), "bad": flaky(tmp_path, 2, "bad", after="good")}
        children.start_any(commands, restarts=1)
        children.wait_until(lambda: " is ready" in children.log("bad").read_text())
        assert children._running["learner"].poll() is None and children._restarts["bad"] == 1


def test_the_reason_that_is_told_is_that_of_the_newest_start(tmp_path: Path) -> None:
    """And not an error that an earlier start has logged."""
    once = tmp_path / "once"
    script = f'if [ ! -e {once} ]; then touch {once}; echo " is ready"; echo "error: no GPU"; exit 1; fi'
    with pytest.raises(ChildFailed, match=r"no memory left\nKilled$") as failed, Children(tmp_path) as children:
        children.start("actor", ["bash", "-c", f"{script}; echo no memory left; echo Killed; exit 137"], restarts=1)
        children.wait_for("actor")
    assert "no GPU" not in str(failed.value) and "error: no GPU" in children.log("actor").read_text()


def test_where_no_actor_becomes_ready_all_end(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=r"error: no GPU on (a|b)$"), Children(tmp_path) as children:
        children.start("learner", child("one", 100))
        children.start_any({name: flaky(tmp_path, 10**6, name) for name in ("a", "b")}, restarts=1000)
        children.wait_for("learner")
    assert children._running["learner"].returncode is not None


def test_actors_beside_those_of_a_cluster_are_tried_as_often_as_it_takes(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        children.start("learner", child("one", 100))
        children.start_any({"bad": flaky(tmp_path, 2, "bad")}, restarts=1, elsewhere=True)
        children.wait_until(lambda: " is ready" in children.log("bad").read_text())
        assert children._running["learner"].poll() is None


def test_the_end_of_any_of_several_is_enough(tmp_path: Path) -> None:
    with Children(tmp_path) as children:
        children.start_any({"a": flaky(tmp_path, 10**6, "a"), "b": child("b", 3.0)}, restarts=1000)
        children.wait_for("a", "b")


def test_an_interrupt_while_all_are_ended_kills_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts, sleep = itertools.count(), time.sleep

    def interrupted(seconds: float) -> None:
        if next(interrupts) < 2:  # while all run, and while all are ended
            raise KeyboardInterrupt
        sleep(seconds)

    with pytest.raises(KeyboardInterrupt), Children(tmp_path) as children:
        children.start("learner", child("one", 100, on_term="None"))
        while "is ready" not in children.log("learner").read_text():
            time.sleep(0.05)
        monkeypatch.setattr("scripts.ops.supervise.time.sleep", interrupted)
        children.wait_for("learner")
    assert children._running["learner"].returncode == -signal.SIGKILL
