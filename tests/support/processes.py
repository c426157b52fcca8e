"""Processes of the tests, forked from one that has imported everything: ``Popen`` and ``run`` as in ``subprocess``.

``Popen([sys.executable, "-m", "learner", ...])`` costs a tenth of a second of a core instead of five to ten. Use it
where a test is about what a process does; where it is about how a process starts, use ``subprocess``.
Every process dies with the process that asked for it. Commands that ``forking`` does not fork are started as usual.
``forked`` makes the code under test start its processes this way.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from common.parent import LAUNCHER, die_with_parent
from tests.support.forking import ROOT, program_of

_START_S = 300.0  # until the server has imported everything, on a busy machine
_ANSWER_BYTES = 1024
_Interpreter = subprocess.Popen  # which starts an interpreter, also where ``forked`` holds
cpu_seconds = 0.0  # of processes that have ended, with those that they waited for: not in getrusage's of this one


class Popen(subprocess.Popen[Any]):
    """``subprocess.Popen``, of a process forked elsewhere.

    ``pass_fds`` are refused, and so is any ``preexec_fn`` but ``die_with_parent``, which holds for all.
    """

    def _execute_child(self, *given: Any) -> None:
        (command, _, preexec, _, passed, directory, environment, _, _, shell, *pipes) = given[:16]
        new_session = given[21]
        variables = dict(os.environ if environment is None else environment)
        place = Path(directory or ".").absolute()
        program = None
        if not shell and not isinstance(command, str | bytes | os.PathLike):
            program = program_of([os.fsdecode(word) for word in command], variables, place)
        self._connection: socket.socket | None = None
        if program is None:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        program.environment.pop(LAUNCHER, None)  # its parent is the server
        assert getattr(preexec, "func", preexec) in (None, die_with_parent) and not passed, (
            "what a process forked elsewhere cannot have"
        )
        request = {
            "module": program.module, "arguments": program.arguments, "environment": program.environment,
            "directory": str(place), "new_session": new_session,
        }  # fmt: skip
        streams = [number if end == -1 else end for number, end in enumerate((pipes[0], pipes[3], pipes[5]))]
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        try:
            self._connection = _connection()
            socket.send_fds(self._connection, [json.dumps(request).encode()], streams)
            answer = self._connection.recv(_ANSWER_BYTES)
            if not answer:
                raise RuntimeError("the fork server has died")
        finally:
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
            self._closed_child_pipe_fds = True
        self.pid, self._child_created = json.loads(answer)["pid"], True
        _waited_for[self.pid] = self._connection

    def _status(self, timeout_s: float | None) -> int | None:
        """The wait status of the process; nothing while it runs."""
        global cpu_seconds
        assert self._connection is not None
        if not select.select([self._connection], [], [], timeout_s)[0]:
            return None
        answer = self._connection.recv(_ANSWER_BYTES)
        if not answer:
            raise RuntimeError("the fork server has died")
        found = json.loads(answer)
        cpu_seconds += found["cpu_s"]
        self._connection.close()
        _waited_for.pop(self.pid, None)
        return int(found["status"])

    def _internal_poll(self, *rest: Any, **others: Any) -> int | None:
        if getattr(self, "_connection", None) is None:
            return super()._internal_poll(*rest, **others)  # type: ignore[misc, no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None and (status := self._status(0)) is not None:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._connection is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc, no-any-return]
        status = self._status(0 if wait_flags & os.WNOHANG else None)
        return (0, 0) if status is None else (self.pid, status)


_waited_for: dict[int, socket.socket] = {}  # kept: a closed connection ends its process


def run(
    command: Sequence[str], *, timeout: float | None = None, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """``subprocess.run`` of a process forked elsewhere."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, out, err)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextmanager
def forked() -> Iterator[None]:
    """Within the block every ``subprocess.Popen`` of this process is the one of this module."""
    original = subprocess.Popen
    subprocess.Popen = Popen  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess.Popen = original  # type: ignore[misc]


def _connection() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(_server()[0]))
    return connection


@cache
def _server() -> tuple[Path, socket.socket]:
    """The socket of the server that all workers of this test run share, and a connection that keeps it alive.

    Who needs it first starts it.
    """
    run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    directory = Path(tempfile.gettempdir()) / f"lrpo-fork-server-{run_id}"
    directory.mkdir(mode=0o700, exist_ok=True)
    path, log = directory / "socket", directory / "log"
    alive = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            alive.connect(str(path))
            return path, alive
        except OSError:
            path.unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["SPACE_FOR_LONG_COMMAND_LINES"] = "." * 16384
        with log.open("wb") as output:
            server = _Interpreter(
                [sys.executable, "-m", "tests.support.fork_server", str(directory)],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + _START_S
        try:
            while True:
                try:
                    alive.connect(str(path))
                    return path, alive
                except OSError:
                    assert server.poll() is None, f"the fork server has died:\n{log.read_text(errors='replace')}"
                    assert time.monotonic() < deadline, "the fork server does not start"
                    time.sleep(0.1)
        except BaseException:
            server.kill()  # it would wait for its first client for ever
            server.wait()
            raise
