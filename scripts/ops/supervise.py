"""Supervises a set of processes: shows what they log; if one fails, ends all and shows the last lines of its log."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from common.parent import die_with_parent
from common.process import FatalError
from scripts.ops.progress_display import Display, PlainLines

_POLL_S = 0.2
_GRACE_S = 5.0  # from the request to end to the kill; short enough that an interrupted run ends within 10 s
_NOTICE_S = 45.0  # in which a lost connection is noticed: ssh asks every 10 s, and gives up after three questions
_AWAY_S = 5.0  # from a lost connection to the next attempt
_FIRST_PAUSE_S = 1.0  # before a failed process is started again; doubles each time it fails early
_LONGEST_PAUSE_S = 60.0
_READY = " is ready"  # which a process logs
_KILL_S = 2.0  # for the system to end what was killed; longer if a process hangs inside the system itself


class ChildFailed(FatalError):
    """A process ended with an error; the message holds the last lines of its log."""


class Children:
    """Child processes, each with its own log file and process group. All are ended when the ``with`` block ends.

    Children die with this process, even if it is killed.

    Args:
        logs: directory of the log files.
        display: shows their lines while one of them is waited for; plain lines by default.
    """

    def __init__(self, logs: Path, display: Display | None = None) -> None:
        self._logs = logs
        self._display: Display = display or PlainLines()
        self._read: dict[str, int] = {}  # size of that part of the log which has been shown
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, Sequence[str]] = {}
        self._restarts: dict[str, int] = {}
        self._again: dict[str, Sequence[str]] = {}  # commands of the processes that are started again together
        self._lost: int | None = None  # the code of one of them for which they are
        self._offset: dict[str, int] = {}  # size of the log when the process was first started
        self._newest_offset: dict[str, int] = {}  # and when it was last started
        self._peers: dict[str, frozenset[str]] = {}  # of those of which one is enough, with their own name
        self._replaceable: set[str] = set()  # of these, those beside which others work that are not started here
        self._failed_early: set[str] = set()  # of these, those that failed before they were ready
        self._early_failures: dict[str, int] = {}  # in a row
        self._due: dict[str, float] = {}  # monotonic time at which a failed process is started again
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], restarts: int = 0) -> None:
        """Starts a process, and again at most ``restarts`` times if it fails after it has logged `` is ready``."""
        self._commands[name], self._restarts[name] = command, restarts
        self._offset[name] = self.log(name).stat().st_size if self.log(name).exists() else 0
        self._read[name] = self._offset[name]
        self._spawn(name)

    def start_any(self, commands: Mapping[str, Sequence[str]], restarts: int, *, elsewhere: bool = False) -> None:
        """Starts processes of which one is enough. Each that fails is started again.

        All are ended only where none of them has been ready and each has failed, or where one has failed more than
        ``restarts`` times while no other was ever ready.

        Args:
            elsewhere: whether others do the same work that are not started here, as in the jobs of a cluster. Then none
                of these is needed, and each is started again as often as it takes.
        """
        if elsewhere:
            self._replaceable |= {*commands}
        for name, command in commands.items():
            self._peers[name] = frozenset(commands)
            self.start(name, command, restarts)

    def start_together(self, first: Mapping[str, Sequence[str]], again: Mapping[str, Sequence[str]], lost: int) -> None:
        """Starts processes that cannot go on without each other.

        Args:
            first: the command of each.
            again: the command with which each is started again.
            lost: the exit code of any of them for which all are ended and, after a while, started again. The failure of
                another one before that is taken for a consequence.
        """
        for name, command in first.items():
            self.start(name, command)
        self._again, self._lost = dict(again), lost

    def _spawn(self, name: str) -> None:
        self._display.started(name)
        self._newest_offset[name] = self.log(name).stat().st_size if self.log(name).exists() else 0
        with self.log(name).open("ab") as output:
            self._running[name] = subprocess.Popen(
                self._commands[name],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )

    def log(self, name: str) -> Path:
        """The log file of a process."""
        return self._logs / f"{name}.log"

    def wait_for(self, *names: str) -> None:
        """Blocks until one of these has ended with code 0, and shows what all processes log until then.

        Raises:
            ChildFailed: a process ended with an error and may not be started again.
        """
        self.wait_until(lambda: self.any_ended(*names))

    def any_ended(self, *names: str) -> bool:
        """Whether one of these has ended with code 0."""
        return any(self._running[name].poll() == 0 for name in names)

    def wait_until(self, over: Callable[[], bool]) -> None:
        """Blocks until ``over()``, which is asked again and again, and shows what all processes log until then.

        Raises:
            ChildFailed: a process ended with an error and may not be started again.
        """
        while True:
            ended = over()
            self._show_new_lines()
            if ended:
                return
            for other, process in list(self._running.items()):
                if other in self._due:
                    if time.monotonic() >= self._due[other]:
                        del self._due[other]
                        self._spawn(other)
                    continue
                # One that was started again meanwhile, with another that failed, has not failed itself.
                if process is self._running[other] and process.poll() not in (None, 0):
                    self._handle_failure(other, process.returncode)
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Asks the first process to end, and then the others, which the first may need until then. Kills what is left.

        Blocks for at most 9.5 seconds. If it is interrupted meanwhile, all are killed at once.
        """
        first = list(self._running.values())[:1]
        try:
            for group, grace in ((first, _GRACE_S), (list(self._running.values()), _GRACE_S / 2)):
                for process in group:
                    _send_signal(process, signal.SIGTERM)
                deadline = time.monotonic() + grace
                while time.monotonic() < deadline and any(process.poll() is None for process in group):
                    time.sleep(_POLL_S / 4)
        finally:
            for process in self._running.values():
                _send_signal(process, signal.SIGKILL)
            deadline = time.monotonic() + _KILL_S
            for name, process in self._running.items():
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    self._display.message(f"{name} (process {process.pid}) was killed, and the system keeps it")
            self._show_new_lines()

    def _handle_failure(self, name: str, code: int) -> None:
        if name in self._again and (lost := self._await_lost()):
            self._start_together_again(lost)
            return
        failure = self._failure(name, code)
        # Where another one of those of which one is enough does the work, this one is tried for as long as it takes.
        dispensable = name in self._replaceable or any(
            _READY in self._output(other) for other in self._peers.get(name, frozenset()) - {name}
        )
        if not self._may_come(name) or (self._restarts[name] == 0 and not dispensable):
            raise failure
        was_ready = _READY in self._output(name, self._newest_offset[name])
        early = self._early_failures[name] = 0 if was_ready else self._early_failures.get(name, 0) + 1
        pause_s = min(_FIRST_PAUSE_S * 2 ** min(early, 9), _LONGEST_PAUSE_S)
        self._display.message(f"{failure}\nstarting {name} again in {pause_s:.0f} s")
        self._restarts[name] -= not dispensable
        _send_signal(self._running[name], signal.SIGKILL)  # ends what is left of its process group
        self._due[name] = time.monotonic() + pause_s

    def _may_come(self, name: str) -> bool:
        """Whether a process that has failed could be of use when it is started again.

        It was ready once; or it is one of those of which one is enough, and another was ready or may still be.
        """
        if name in self._replaceable or _READY in self._output(name):
            return True
        self._failed_early.add(name)
        others = self._peers.get(name, frozenset()) - {name}
        return any(other not in self._failed_early or _READY in self._output(other) for other in others)

    def _await_lost(self) -> str:
        """Which process that was started together with others has been lost; empty if none was.

        One that fails because another is lost may end first. So this blocks for as long as others may turn out to be.
        """
        deadline = time.monotonic() + _NOTICE_S
        while True:
            codes = {name: self._running[name].poll() for name in self._again}
            lost = [name for name, code in codes.items() if code == self._lost]
            if lost or None not in codes.values() or time.monotonic() > deadline:
                return next(iter(lost), "")
            time.sleep(_POLL_S)
            self._show_new_lines()

    def _start_together_again(self, lost: str) -> None:
        names = ", ".join(self._again)
        self._display.message(f"the connection to {lost} broke; starting {names} again in {_AWAY_S:.0f} s")
        group = [self._running[name] for name in self._again]
        for process in group:
            _send_signal(process, signal.SIGTERM)
        deadline = time.monotonic() + _AWAY_S
        while time.monotonic() < deadline:
            time.sleep(_POLL_S)
            self._show_new_lines()
        for name, process in zip(self._again, group, strict=True):
            _send_signal(process, signal.SIGKILL)
            process.wait()
            self._commands[name] = self._again[name]
            self._spawn(name)

    def _show_new_lines(self) -> None:
        for name in self._running:
            with self.log(name).open("rb") as log:
                log.seek(self._read[name])
                whole_lines, newline, _ = log.read().rpartition(b"\n")
            self._read[name] += len(whole_lines + newline)
            for line in whole_lines.decode(errors="replace").splitlines():
                self._display.line(name, line.rstrip())

    def _output(self, name: str, offset: int | None = None) -> str:
        """What a process has logged since it was first started, or from ``offset`` on."""
        return self.log(name).read_bytes()[self._offset[name] if offset is None else offset :].decode(errors="replace")

    def _failure(self, name: str, code: int) -> ChildFailed:
        lines = self._output(name, self._newest_offset[name]).splitlines()
        errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        shown = lines[errors[-1] :] if errors else lines[-20:]
        last = "\n".join(shown)
        return ChildFailed(f"{name} ended with code {code}; its last lines (all in {self.log(name)}):\n{last}")


def _send_signal(process: subprocess.Popen[bytes], kind: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, kind)
