"""Supervises a set of processes: if one fails, all are ended and the last lines of its log are shown."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from common.process import FatalError, die_with_parent

_POLL_S = 0.2
_GRACE_S = 5.0  # from the request to end to the kill; short enough that an interrupted run ends within 10 s


class ChildFailed(FatalError):
    """A process ended with an error; the message holds the last lines of its log."""


class Children:
    """Child processes, each with its own log file and process group. All are ended when the ``with`` block ends.

    Args:
        logs: directory of the log files.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, Sequence[str]] = {}
        self._restarts: dict[str, int] = {}
        self._offset: dict[str, int] = {}  # size of the log when the process was first started
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], restarts: int = 0) -> None:
        """Starts a process, and again at most ``restarts`` times if it fails after it has logged `` is ready``."""
        self._commands[name], self._restarts[name] = command, restarts
        self._offset[name] = self.log(name).stat().st_size if self.log(name).exists() else 0
        self._spawn(name)

    def _spawn(self, name: str) -> None:
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
        """The log file of a process."""
        return self._logs / f"{name}.log"

    def wait_for(self, name: str) -> None:
        """Blocks until ``name`` has ended with code 0, and copies its progress to standard output until then.

        Raises:
            ChildFailed: a process ended with an error and may not be started again.
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
                        self._handle_failure(other, process.returncode)
                time.sleep(_POLL_S)

    def stop(self) -> None:
        """Asks the first process to end, and then the others, which the first may need until then. Kills what is left.

        Blocks for at most 7.5 seconds.
        """
        first = list(self._running.values())[:1]
        for group, grace in ((first, _GRACE_S), (list(self._running.values()), _GRACE_S / 2)):
            for process in group:
                _send_signal(process, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while time.monotonic() < deadline and any(process.poll() is None for process in group):
                time.sleep(_POLL_S / 4)
        for process in self._running.values():
            _send_signal(process, signal.SIGKILL)
            process.wait()

    def _handle_failure(self, name: str, code: int) -> None:
        message = self._last_lines(name, code)
        if self._restarts[name] == 0 or " is ready" not in self._output(name):
            raise ChildFailed(message)
        print(f"{message}\nstarting {name} again", flush=True)
        self._restarts[name] -= 1
        _send_signal(self._running[name], signal.SIGKILL)  # ends what is left of its process group
        self._spawn(name)

    def _show(self, lines: list[str]) -> None:
        for line in lines:
            if " INFO learner: " in line or " WARNING " in line or " ERROR " in line:
                print(line.rstrip(), flush=True)

    def _output(self, name: str) -> str:
        return self.log(name).read_bytes()[self._offset[name] :].decode(errors="replace")

    def _last_lines(self, name: str, code: int) -> str:
        lines = self._output(name).splitlines()
        errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        shown = lines[errors[-1] :] if errors else lines[-20:]
        return f"{name} ended with code {code}; its last lines (all in {self.log(name)}):\n" + "\n".join(shown)


def _send_signal(process: subprocess.Popen[bytes], kind: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, kind)
