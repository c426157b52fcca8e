"""Whoever is asked to end does so within ten seconds with any engine stopped (SIGSTOP), however long deadlines are.

The light engine stops itself, with its process group, at a request of a weight update.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support.actor_pool import LIGHT, ActorPool
from tests.support.pace import Pace
from tests.support.processes import Popen
from tests.system.test_interrupted_starts import settings

ROOT = Path(__file__).parents[2]
_DEADLINE_S = "3600"  # what no end may wait for
_END_S = 10.0  # what an end may take on a quiet machine, and longer where ``Pace`` says so
_PATIENCE_S = 120.0  # for an end that is too late, before it counts as none
_SOON_S = 300.0  # for a run to get where it is stopped
PHASES = {
    "starting": "/ready 1",
    "joining": "/init_weights_update_group 1",
    "pausing": "/pause_generation 1",
    "flushing": "/flush_cache 1",
    "beginning": "/begin_weight_update 1",
    "receiving": "/update_weights_from_distributed 1",
    "in the middle": "/update_weights_from_distributed 3",
    "ending": "/end_weight_update 2",  # the first is that of a start
    "resuming": "/continue_generation 2",
    "proving": "/generate 1",
}


def until(condition: Callable[[], object], what: str, told: Callable[[], str]) -> None:
    deadline = time.monotonic() + _SOON_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: did not happen\n{told()}"
        time.sleep(0.05)


def below(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The process and all its descendants."""
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        return [top, *top.children(recursive=True)]
    return []


def is_stopped(processes: Sequence[psutil.Process]) -> bool:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_STOPPED:
                return True
    return False


def there(processes: Sequence[psutil.Process]) -> list[str]:
    """The names and states of those that have not ended."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{' '.join(process.cmdline()[:4])} ({process.status()})")
    return found


def wait_for_ends(processes: Sequence[psutil.Process]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while left := there(processes):
        assert time.monotonic() < deadline, f"{left} are still there"
        time.sleep(0.05)


def assert_in_time(what: str, seconds: float, pace: Pace) -> None:
    told = f"{what} after {seconds:.1f} s, on a machine {pace.slowness:.2f} times slower than a quiet one"
    print(told)
    assert seconds < _END_S * pace.slowness, told


@contextmanager
def killed_afterwards(processes: list[psutil.Process]) -> Iterator[None]:
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def test_actors_and_the_publisher_end_with_an_engine_stopped_in_any_phase_of_a_sync(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, asked = ActorPool(tiny_policy, tmp_path), threading.Event()
    pool.sync = pool.sync.model_copy(update={"timeout_s": float(_DEADLINE_S)})
    pool.server.close()
    pool.listen()

    def check() -> None:
        if asked.is_set():
            raise InterruptedError

    pool.check = check
    ended: list[float] = []

    def publish() -> None:
        with suppress(InterruptedError):
            pool.publish()
        ended.append(time.monotonic())

    everything: list[psutil.Process] = []
    with killed_afterwards(everything):
        for phase, at in PHASES.items():
            monkeypatch.setitem(LIGHT, "LIGHT_STOP_AT", at)
            pool.start(phase, "--sync.timeout_s", _DEADLINE_S, "--actor.start_timeout_s", _DEADLINE_S)
        pool.here(*(phase for phase in PHASES if phase != "starting"))
        threading.Thread(target=publish, daemon=True).start()
        trees: dict[str, list[psutil.Process]] = {}

        def all_stopped() -> bool:
            trees.update({phase: below(process) for phase, process in pool.processes.items()})
            everything[:] = [one for tree in trees.values() for one in tree]
            return all(map(is_stopped, trees.values()))

        pool.until(all_stopped, "all engines stop")
        with Pace() as pace:
            asked.set()
            begin = time.monotonic()
            for process in pool.processes.values():
                process.send_signal(signal.SIGTERM)
            for phase, process in pool.processes.items():
                assert process.wait(_PATIENCE_S) == 130, pool.log(phase).read_text()
            wait_for_ends(everything)
            seconds = time.monotonic() - begin
            pool.until(lambda: ended, "the round ends", timeout=_PATIENCE_S)
        pool.server.close()
        assert_in_time(f"{len(PHASES)} actors had ended", seconds, pace)
        assert_in_time("the round had ended", ended[0] - begin, pace)


def end_with_a_stopped_engine(command: list[str], phase: str, kind: signal.Signals, out: Path) -> None:
    """Runs a launcher until an engine has stopped, sends it the signal, and measures until all processes have ended.

    All of them, in whatever session, are descendants of the launcher until then.
    """
    environment = {**os.environ, "LIGHT_STOP_AT": PHASES[phase], "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support" / "light")])
    processes: list[psutil.Process] = []
    with out.open("wb") as output, killed_afterwards(processes):
        launcher = Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

        def stops() -> bool:
            assert launcher.poll() is None, out.read_text()
            processes[:] = below(launcher)
            return is_stopped(processes)

        until(stops, "an engine stops", out.read_text)
        assert len(processes) >= 6, "launcher, learner and its ranks, reward process, actor, guard, engine"
        with Pace() as pace:
            begin = time.monotonic()
            launcher.send_signal(kind)
            wait_for_ends(processes)
            seconds = time.monotonic() - begin
        launcher.wait(_PATIENCE_S)
        assert_in_time(f"{kind.name} with an engine stopped while {phase}: all had ended", seconds, pace)


def train(policy: Path, directory: Path) -> list[str]:
    long = ("--sync.timeout_s", _DEADLINE_S, "--sync.bucket_mb", "0.05", "--reward.embedder", "use")
    return [sys.executable, "-m", "scripts.lrpo", "train", *settings(policy, directory), *long]


def test_a_run_ends_with_an_engine_stopped(tiny_policy: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    phase = str(rng.choice(list(PHASES)))
    end_with_a_stopped_engine(train(tiny_policy, tmp_path), phase, signal.SIGTERM, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_ends_with_an_engine_stopped_in_any_phase(
    phase: str, kind: signal.Signals, tiny_policy: Path, tmp_path: Path
) -> None:
    end_with_a_stopped_engine(train(tiny_policy, tmp_path), phase, kind, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_ends_with_an_engine_stopped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.world.demo", "--cache", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    command += ["--warm-start-steps", "1", "--sync.timeout_s", _DEADLINE_S, "--learner.address", f"ipc://{tmp_path}/q"]
    command += ["--reward.addresses", f'["ipc://{tmp_path}/r"]']  # another run may have the ports of the demo
    end_with_a_stopped_engine(command, "receiving", signal.SIGINT, tmp_path / "out")
