"""Runs a set of processes as one: if any fails all end, and the failing one's last words are shown."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.config import Config, load
from common.gpus import visible_gpus
from common.process import FatalError, die_with_parent

_ROOT = Path(__file__).parents[2]
_POLL_S = 0.2
_GRACE_S = 5.0  # between asking and killing: an interrupted run is gone within 10 s


class ChildFailed(FatalError):
    """A process ended though it should not have; the message holds its last lines."""


class Children:
    """Child processes, each with a log file and a process group of its own; all end with the ``with`` block.

    Args:
        logs: directory of the log files.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, Sequence[str]] = {}
        self._restarts: dict[str, int] = {}
        self._offset: dict[str, int] = {}  # where in its log a process begins, its first life
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], restarts: int = 0) -> None:
        """Starts a process. One that has logged `` is ready`` and fails later is started again, ``restarts`` times."""
        self._commands[name], self._restarts[name] = command, restarts
        self._offset[name] = self.log(name).stat().st_size if self.log(name).exists() else 0
        self._launch(name)

    def _launch(self, name: str) -> None:
        with self.log(name).open("ab") as output:
            self._running[name] = subprocess.Popen(
                self._commands[name],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def wait_for(self, name: str) -> None:
        """Until ``name`` has ended well, copying its progress to standard output.

        Raises:
            ChildFailed: it, or any other, ended with an error.
        """
        with self.log(name).open(errors="replace") as progress:
            progress.seek(self._offset[name])
            while True:
                self._show(progress.readlines())
                if self._running[name].poll() == 0:
                    self._show(progress.readlines())
                    return
                for other, process in list(self._running.items()):
                    if process.poll() not in (None, 0):
                        self._failed(other, process.returncode)
                time.sleep(_POLL_S)

    def stop(self) -> None:
        """Asks the first one to end and then the others, which it may still need; kills those that do not."""
        first = list(self._running.values())[:1]
        for group, grace in ((first, _GRACE_S), (list(self._running.values()), _GRACE_S / 2)):
            for process in group:
                _signal(process, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while time.monotonic() < deadline and any(process.poll() is None for process in group):
                time.sleep(_POLL_S / 4)
        for process in self._running.values():
            _signal(process, signal.SIGKILL)
            process.wait()

    def _failed(self, name: str, code: int) -> None:
        words = self._last_words(name, code)
        if self._restarts[name] == 0 or " is ready" not in self._output(name):
            raise ChildFailed(words)
        print(f"{words}\nstarting {name} again", flush=True)
        self._restarts[name] -= 1
        _signal(self._running[name], signal.SIGKILL)  # whatever its process group left behind
        self._launch(name)

    def _show(self, lines: list[str]) -> None:
        for line in lines:
            if " INFO learner: " in line or " WARNING " in line or " ERROR " in line:
                print(line.rstrip(), flush=True)

    def _output(self, name: str) -> str:
        return self.log(name).read_bytes()[self._offset[name] :].decode(errors="replace")

    def _last_words(self, name: str, code: int) -> str:
        lines = self._output(name).splitlines()
        errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        shown = lines[errors[-1] :] if errors else lines[-20:]
        return f"{name} ended with code {code}; its last lines (all in {self.log(name)}):\n" + "\n".join(shown)


def _signal(process: subprocess.Popen[bytes], kind: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, kind)


def run_to_end(command: Sequence[str]) -> None:
    """Runs a preparation step in the foreground.

    Raises:
        SystemExit: with the step's code, when it failed; it has said why.
    """
    code = subprocess.run([sys.executable, *command], check=False).returncode
    if code:
        raise SystemExit(code)


def shares(gpus: Sequence[str], config: Config, actors: int) -> list[Sequence[str]]:
    """The GPUs of the learner, of the reward process and of each actor; where they are too few, all have all.

    The reward process takes one that is left over, else the learner's last.
    """
    ranks, width = config.learner.ranks, int(config.actor.engine_args.get("tp", 1))
    used = ranks + actors * width
    if len(gpus) < used:
        return [gpus] * (2 + actors)
    engines = [gpus[first : first + width] for first in range(ranks, used, width)]
    return [gpus[:ranks], gpus[used : used + 1] or gpus[ranks - 1 : ranks], *engines]


def run_all(settings: Sequence[str], run_dir: Path, actors: int) -> None:
    """Trains with one reward process and this many actors on this machine's GPUs or CPU, until the learner is done.

    Raises:
        ChildFailed: a process ended with an error and could not be started again.
    """
    with Children(run_dir / "logs") as children:
        own = shares(visible_gpus(), load(settings), actors)
        names = ["learner", "reward", *(f"actor-{number}" for number in range(actors))]
        for name, visible in zip(names, own, strict=True):
            role = name.partition("-")[0]
            launch = ["env", f"CUDA_VISIBLE_DEVICES={','.join(visible)}", str(_ROOT / "scripts" / f"launch_{role}.sh")]
            flags = ["--actor.name", name] if role == "actor" else []
            children.start(name, [*launch, *settings, *flags], restarts=0 if role == "learner" else 3)
        print(f"training in {run_dir}; watch it: {sys.executable} -m tensorboard.main --logdir {run_dir}", flush=True)
        children.wait_for("learner")
