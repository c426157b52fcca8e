"""Verifies mathematical answers with math-verify, in a process of its own with limits, because a policy finds any hole.

math-verify reads formulas by a grammar and evaluates as Python nothing but digits and operators. Its own time limits
are signals, which have to wait until big-integer arithmetic ends. The verifier therefore runs in a worker process of
pebble, which kills a worker that exceeds its time and starts another one.

pebble has no limits of memory and files, no deadline for the start of a worker, and workers that survive the death of
their parent while they compute. ``_start_worker`` and ``MathVerifier`` add these.

pebble unpickles what a worker returns. This is acceptable because a worker runs no code that an answer contains.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import resource
import signal
from typing import Any

import psutil
from pebble import ProcessPool

from common.parent import die_with_parent
from common.process import FatalError

_STEP_S = 2  # math-verify's own limit, by a signal, for each formula that is read and for each comparison
_DEADLINE_S = 5.0  # for a whole answer, counted from when the worker takes it
_START_S = 240.0  # for a worker to start and import everything, on a busy machine
_MEMORY = 1 << 30  # bytes that an answer may take, beyond what the worker has when it starts


class MathVerifier:
    """Gives 1 where the formula that an answer ends with equals an accepted one, and 0 where it does not.

    An answer is also worth 0 where this cannot be found out: where the formula cannot be read, or where it exceeds the
    limit of time or memory. A hostile answer costs only itself.

    ``killed`` counts the answers that exceeded a limit and made the worker end.

    Raises:
        FatalError: math-verify is not installed, or its worker does not start within 240 s.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise FatalError(
                'the term "math" of reward.terms needs math-verify: pip install "math-verify[antlr4_13_2]", '
                "or take the term out"
            )
        self.killed = 0
        self._pool = self._start_pool()

    def __call__(self, answer: str, accepted: list[str]) -> float:
        """Compares the formula of an answer with the accepted ones. Blocks for at most 10 s.

        When the worker had to be killed, it also blocks until another one is ready.

        Raises:
            FatalError: another worker does not start within 240 s.
        """
        if not self._pool.active:  # the worker died between two answers
            self._restart_pool()
        future = self._pool.schedule(_verify, (answer, accepted), timeout=_DEADLINE_S)
        try:
            # pebble counts its timeout from when the worker takes the answer. The longer wait here is for a worker that
            # never takes it, because it hangs.
            error = future.exception(2 * _DEADLINE_S)
        except TimeoutError:
            self.killed += 1
            self._restart_pool()
            return 0.0
        if error is None:
            return float(future.result())
        self.killed += 1
        if not self._pool.active or not _is_ready(self._pool):
            self._restart_pool()
        return 0.0

    def close(self) -> None:
        """Ends the worker. Blocks for at most a few seconds."""
        _stop(self._pool)

    def _restart_pool(self) -> None:
        self.close()
        self._pool = self._start_pool()

    @staticmethod
    def _start_pool() -> ProcessPool:
        # A forked worker would inherit sockets, threads and the memory of torch; a worker from a fork server would not
        # be a child of this process and so would not die with it.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPool(max_workers=1, initializer=_start_worker, initargs=(os.getpid(),), context=context)
        if not _is_ready(pool):
            _stop(pool)
            raise FatalError(f"math-verify did not start within {_START_S:.0f} s; is its installation complete?")
        return pool


def _stop(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def _is_ready(pool: ProcessPool) -> bool:
    """Waits until the pool's worker is ready; False when it cannot start or exceeds the deadline."""
    try:
        return pool.schedule(_nothing).exception(_START_S) is None
    except (TimeoutError, RuntimeError):  # RuntimeError: the pool has already failed
        return False


def _nothing() -> None:
    """What a worker does to show that it is ready."""


def _start_worker(parent: int) -> None:
    """Prepares a worker process: it dies with its parent, imports math-verify, and then limits itself."""
    die_with_parent(parent)
    # pebble ends a worker by SIGTERM. A handler in Python would have to wait for big-integer arithmetic to end.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from math_verify import parse, verify

    # The first use fills tables, which on a busy machine takes longer than an answer may take.
    verify(parse(r"$\frac{1}{2}$", parsing_timeout=0), parse("0.5", parsing_timeout=0), timeout_seconds=0)
    memory = psutil.Process().memory_info().vms + _MEMORY
    for kind, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (limit, limit))


def _verify(answer: str, accepted: list[str]) -> bool:
    from math_verify import parse, verify

    try:
        given: Any = parse(answer, parsing_timeout=_STEP_S)
        golds = (parse(text, parsing_timeout=_STEP_S) for text in accepted)
        return any(verify(gold, given, timeout_seconds=_STEP_S) for gold in golds)
    # Whatever a text provokes is not a match: MemoryError, RecursionError, math-verify's TimeoutException and others.
    except Exception:
        return False
