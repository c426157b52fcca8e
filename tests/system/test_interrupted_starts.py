"""Whoever starts several processes leaves none behind, at whatever moment of its start it is interrupted or killed."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.groups import LANGUAGES
from tests.support.pace import Pace

ROOT = Path(__file__).parents[2]
_MARK = "LRPO_TEST_MARK"
_FIRST_S = 20.0  # the moments at which a command is ended
_SOON_S = 8.0  # the same in the tests that always run, of which each second keeps two cores busy
_END_S = 10.0  # what an end may take on a quiet machine, and longer where ``Pace`` says so
_PATIENCE_S = 120.0  # for an end that is too late, before it counts as none
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


class Marked:
    """A command whose descendants all carry a mark in their environment."""

    def __init__(self, command: Sequence[str], out: Path, environment: dict[str, str]) -> None:
        self.mark, self.out = secrets.token_hex(8), out
        with out.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **environment, _MARK: self.mark},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def left(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def left_after(self, seconds: float) -> list[str]:
        """The command lines of the processes that are still there then."""
        deadline = time.monotonic() + seconds
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.2)
        lines = []
        for process in self.left():
            with suppress(psutil.Error):
                lines.append(" ".join(process.cmdline()))
        return lines


@contextmanager
def started(command: Sequence[str], out: Path, **environment: str) -> Iterator[Marked]:
    marked = Marked(command, out, environment)
    try:
        yield marked
    finally:
        for process in marked.left():
            with suppress(psutil.Error):
                process.kill()
        marked.process.wait()


def settings(policy: Path, directory: Path) -> list[str]:
    """Of a run with a light engine, which starts as the real one does and needs less."""
    question = {
        "ability": "A",
        "reward_model": {"ground_truth": "Stockholm.", "style": "rule"},
        "extra_info": {"language": "de", "topic": "A", "region": None, "index": 0},
    }  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": f"{n}: Vad heter huvudstaden?"}], **question} for n in range(16)]
    pq.write_table(pa.Table.from_pylist(rows), directory / "train.parquet")
    return [
        *("--run.dir", str(directory / "run"), "--data.train", str(directory / "train.parquet")),
        *("--model.path", str(policy), "--model.dtype", "float32", "--learner.param_dtype", "float32"),
        *("--run.languages", str(list(LANGUAGES)), "--learner.address", f"ipc://{directory}/queue"),
        *("--reward.addresses", f'["ipc://{directory}/reward"]', "--learner.steps", "10000"),
        *("--sampling.max_new_tokens", "64"),
    ]  # fmt: skip


def end_at_a_random_moment(
    command: Sequence[str], out: Path, rng: np.random.Generator, kind: signal.Signals, first_s: float = _SOON_S
) -> None:
    light = str(ROOT / "tests" / "support" / "light")
    with started(command, out, PYTHONPATH=os.pathsep.join([str(ROOT), light])) as running:
        moment_s = float(rng.uniform(0, first_s))
        time.sleep(moment_s)
        assert running.process.poll() is None, out.read_text()
        had = len(running.left())
        with Pace() as pace:
            begin = time.monotonic()
            running.process.send_signal(kind)
            ended = running.process.wait(_PATIENCE_S)
            left = running.left_after(_PATIENCE_S)
            seconds = time.monotonic() - begin
        told = (
            f"{moment_s:.1f} s after the start, with {had} processes; all had ended {seconds:.1f} s later, on a "
            f"machine {pace.slowness:.2f} times slower than a quiet one:\n{out.read_text()}"
        )
        assert not left, f"{left} are left; ended {told}"
        assert ended != 0, told
        assert seconds < _END_S * pace.slowness, told


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_train_leaves_nothing(
    kind: signal.Signals, tiny_policy: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    command = [sys.executable, "-m", "scripts.lrpo", "train", *settings(tiny_policy, tmp_path)]
    end_at_a_random_moment(command, tmp_path / "out", rng, kind)


def test_the_demo_leaves_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    command = [sys.executable, "-m", "scripts.world.demo", "--cache", str(tmp_path), "--run-dir", str(tmp_path / "run")]
    end_at_a_random_moment(command, tmp_path / "out", rng, signal.SIGTERM)


ROLES = ("learner", "actor", "reward")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["train", "demo", "compare", "pool"])
def test_each_launcher_leaves_nothing_at_any_moment(
    launcher: str, tiny_policy: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    for attempt in range(10):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        flags = settings(tiny_policy, directory)
        command = [sys.executable, "-m", "scripts.lrpo", launcher]
        if launcher == "demo":
            command += ["--cache", str(directory), "--run-dir", str(directory / "run")]
        elif launcher == "compare":
            command += [f"one={' '.join(flags)}", "--out", str(directory / "out")]
        elif launcher == "pool":
            pool = directory / "pool.toml"
            nodes = [f'[[nodes]]\nrole = "{role}"\ngpu = "any"\nhosts = ["nowhere.invalid"]\n' for role in ROLES]
            pool.write_text("\n".join(["[gpus.any]", *nodes]))
            command += [str(pool), *flags]
        else:
            command += flags
        kind = signal.SIGTERM if attempt % 2 else signal.SIGKILL
        end_at_a_random_moment(command, directory / "log", rng, kind, _FIRST_S)
