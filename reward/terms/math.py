"""Verifies mathematical answers with math-verify, in worker processes with limits, because a policy finds any hole.

math-verify reads formulas by a grammar and evaluates as Python nothing but digits and operators. Its own time limits
are signals, which have to wait until big-integer arithmetic ends. The verifier therefore runs in worker processes of
pebble, which kills a worker that exceeds its time and starts another one.

pebble has no limits of memory and files, no deadline for the start of a worker, and workers that survive the death of
their parent while they compute. ``_start_worker`` and ``MathVerifier`` add these. A worker that something else kills
while it takes an answer keeps the lock of pebble's pipe, and no other worker is ever given anything: ``MathVerifier``
replaces a pool that has finished nothing. pebble measures the time of an answer by the time of day, so that setting the
clock would end every answer that is being verified, or none: it is given the monotonic clock instead.

pebble unpickles what a worker returns, over a pipe to its own child. This is acceptable because a worker runs no code
that an answer contains.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import re
import resource
import signal
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import pebble.pool.process
import psutil
from pebble import ProcessPool

from common.numbers import last_number, number_of, plain_digits
from common.parent import die_with_parent
from common.process import FatalError
from common.sparse_log import is_logged
from reward.terms.multiples import without_multiples
from reward.terms.results import (
    closing_brace,
    ends_in_box,
    ends_multiplied,
    is_hostile,
    is_multiplied_box,
    number_in_box,
    result_of,
)

logger = logging.getLogger("reward")

WORKERS = 4
_STEP_S = 1  # math-verify's own limit, by a signal, for each formula that is read and for each comparison
_DEADLINE_S = 2.0  # for a whole answer, counted from when a worker takes it
_BATCH_S = 40.0  # for all answers of a batch; of what is not verified by then nothing is known
_START_S = 240.0  # for a worker to start and import everything, on a busy machine
_END_S = 5.0  # for a pool to end once its workers are killed
_STARTS = 3  # tries to start the pool, with growing pauses between them
_BACK_OFF_S = 1.0  # after the first failed start
_MEMORY = 1 << 30  # bytes that an answer may take, beyond what the worker has when it starts
_KILLS = 2  # times in a row that an answer exceeds its limits, with which it is worth 0
_REMEMBERED = 4096  # answers that exceeded their limits
_LONGEST = 20_000  # characters at the end of an answer that are read: the result stands there
_SHOWN = 80  # characters of an answer that a message quotes
_FORMULA = re.compile(r"\\|[\^_={}√<>]|\d\s*(?:[a-zA-Z]\b|!)|^\s*[(\[]")

# Pebble counts a task's seconds by the time of day, which may be set meanwhile; here it counts by the monotonic clock.
pebble.pool.process.time = SimpleNamespace(time=time.monotonic, sleep=time.sleep)  # type: ignore[assignment, attr-defined]


class MathVerifier:
    """Gives 1 where the formula that an answer ends with equals an accepted one, and 0 where it does not.

    ``reward/terms/results.py`` says what an answer ends with; nothing else of it is read. An answer is also worth 0
    where its own text is why this cannot be found out: its formula cannot be read, or it exceeds a limit of time or
    memory, or ends its worker, twice in a row. Such answers are remembered, so that they cost no time when their groups
    are scored again. Once may be the fault of a busy machine, or of somebody who kills processes. Where no worker was
    done with an answer, nothing is known of it: its value is None, which is not 0.

    ``counts`` holds the answers ``math_killed`` for exceeding a limit twice, those ``math_refused`` because they end
    with an astronomical number, those left ``math_unverified`` when the time of their batch was over, and
    ``math_restarts`` of the whole pool.

    Args:
        workers: how many answers are verified at a time.

    Raises:
        FatalError: math-verify is not installed, or its workers do not start.
    """

    def __init__(self, workers: int = WORKERS) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise FatalError(
                'the term "math" of reward.terms needs math-verify: pip install "math-verify[antlr4_13_2]", '
                "or take the term out"
            )
        self._workers = workers
        self.counts: Counter[str] = Counter()
        self._restarting = threading.Lock()  # several threads may verify at a time
        self._is_stuck = False
        # How often answers, by hash, exceeded their limits; those that did so last stand at the end.
        self._kills: OrderedDict[bytes, int] = OrderedDict()
        self._pool = self._start_pool()

    def __call__(self, answer: str, accepted: list[str], language: str = "") -> float | None:
        """Verifies one answer; see :meth:`verify`."""
        return self.verify([(answer, accepted, language)])[0]

    def verify(
        self, answers: Sequence[tuple[str, list[str], str]], check: Callable[[str, list[str], str], bool] | None = None
    ) -> list[float | None]:
        """Compares the formula of each answer with its accepted ones, several answers at a time.

        Blocks for 40 s at most. When the pool has died, or has finished none of the answers of an earlier call, it also
        blocks until another one is ready. Answers that look cheap come first, so that the time of the batch is up, if
        at all, for those that are not.

        Args:
            answers: for each the text, the accepted answers, and the language of the text, which decides what 1.234
                means; ``""``: not known.
            check: compares one answer in a worker, in place of our own rules; a function of a module.

        Returns:
            For each answer 1, 0, or None where no worker was done with it in time.

        Raises:
            FatalError: the workers do not start any more.
        """
        results = [result_of(text[-_LONGEST:]) for text, _, _ in answers]
        read = [  # a rule of somebody else's reads the text by itself
            (text[-_LONGEST:] if check else result.text, accepted, language)
            for (text, accepted, language), result in zip(answers, results, strict=True)
        ]
        keys = [_key(one, check) for one in read]
        harmless = [number for number, result in enumerate(results) if not is_hostile(result.formula)]
        for number in sorted({*range(len(answers))} - {*harmless}):
            self._count("math_refused", "ends with an astronomical number", results[number].formula[-_SHOWN:])
        values: list[float | None] = [0.0] * len(answers)
        waiting = [number for number in harmless if not self._is_to_blame(keys[number])]
        for number in waiting:
            values[number] = None
        with self._restarting:
            self._restart_if_needed()
        ends = time.monotonic() + _BATCH_S
        while waiting and time.monotonic() < ends:
            outcomes = self._attempt([read[number] for number in waiting], check or _verify, ends)
            again = []  # what was killed for the first time, or scheduled in a pool that another thread has replaced
            for number, outcome in zip(waiting, outcomes, strict=True):
                if isinstance(outcome, float):
                    values[number] = outcome
                    self._kills.pop(keys[number], None)
                elif outcome is not None and self._blame(keys[number], outcome):
                    values[number] = 0.0
                else:
                    again.append(number)
            waiting = again
        self.counts["math_unverified"] += sum(value is None for value in values)
        return values

    def _attempt(
        self, answers: Sequence[tuple[str, list[str], str]], check: Callable[[str, list[str], str], bool], ends: float
    ) -> list[float | _Killed | None]:
        """What came of each answer until this monotonic time; None where no worker took it."""
        with self._restarting:
            self._restart_if_needed()
            pool, began = self._pool, time.monotonic()
            futures: dict[int, Future[bool]] = {
                number: _schedule(pool, check, answers[number][0], answers[number][1:])
                for number in sorted(range(len(answers)), key=lambda number: reading_cost(answers[number][0]))
            }
        outcomes = {number: _outcome(future, ends) for number, future in futures.items()}
        nothing_done = all(one is None or (isinstance(one, _Killed) and one.hung) for one in outcomes.values())
        if nothing_done and ends - began >= _BATCH_S / 2:
            with self._restarting:
                self._is_stuck |= pool is self._pool
        return [outcomes[number] for number in range(len(answers))]

    def _is_to_blame(self, key: bytes) -> bool:
        with self._restarting:
            return self._kills.get(key, 0) >= _KILLS

    def _blame(self, key: bytes, outcome: _Killed) -> bool:
        """Enters that an answer exceeded its limits; whether it has done so often enough to be worth 0."""
        with self._restarting:
            times = self._kills[key] = self._kills.pop(key, 0) + 1
            if len(self._kills) > _REMEMBERED:
                self._kills.popitem(last=False)
        if times < _KILLS:
            return False
        self._count("math_killed", "exceeded its limits", outcome.error)
        return True

    def _count(self, name: str, what: str, shown: object) -> None:
        """Counts an answer that is worth 0 because it could not be evaluated."""
        self.counts[name] += 1
        times = self.counts[name]
        if is_logged(times):
            logger.warning("a mathematical answer %s, and counts as wrong (%d so far): %r", what, times, shown)

    def close(self) -> None:
        """Ends the workers. Blocks for at most a few seconds."""
        _stop(self._pool)

    def _restart_if_needed(self) -> None:
        """Replaces a pool that has died or is stuck; to be called under the lock."""
        if not self._pool.active or self._is_stuck:
            self.counts["math_restarts"] += 1
            self.close()
            self._pool, self._is_stuck = self._start_pool(), False

    def _start_pool(self) -> ProcessPool:
        for attempt in range(_STARTS):
            # A forked worker would inherit sockets, threads and the memory of torch; a worker from a fork server would
            # not be a child of this process and so would not die with it.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPool(
                max_workers=self._workers, initializer=_start_worker, initargs=(os.getpid(),), context=context
            )
            if _is_ready(pool):
                return pool
            _stop(pool)
            logger.warning("the workers of math-verify did not start (attempt %d of %d)", attempt + 1, _STARTS)
            time.sleep(_BACK_OFF_S * 2.0**attempt)
        raise FatalError(
            f"math-verify did not start in {_STARTS} attempts of up to {_START_S:.0f} s; is its installation complete?"
        )


@dataclass(frozen=True)
class _Killed:
    """A worker took the answer and did not come through it: its time was up, or the worker ended.

    Attributes:
        hung: whether the worker was at it until the end, although its time was up long before.
    """

    error: BaseException
    hung: bool = False


def _outcome(future: Future[bool], ends: float) -> float | _Killed | None:
    """What came of an answer until this monotonic time; None where no worker took it."""
    try:
        # A worker that hangs before it takes an answer is not seen by pebble's own timeout.
        error = future.exception(max(0.0, ends - time.monotonic()))
    except CancelledError:  # another thread has replaced the pool
        return None
    except FutureTimeout as late:
        hung = future.running()
        future.cancel()
        return _Killed(late, hung=True) if hung else None
    return float(future.result()) if error is None else _Killed(error)


def _key(answer: tuple[str, list[str], str], check: Callable[[str, list[str], str], bool] | None) -> bytes:
    name = check.__qualname__ if check is not None else ""
    return blake2b(repr((answer, name)).encode(), digest_size=16).digest()


def _schedule(
    pool: ProcessPool, check: Callable[[str, list[str], str], bool], text: str, rest: tuple[list[str], str]
) -> Future[bool]:
    future: Future[bool] = pool.schedule(check, (text, *rest), timeout=_DEADLINE_S)
    return future


def _stop(pool: ProcessPool) -> None:
    """Kills the workers. Blocks for at most ``_END_S``: a thread of pebble's that is stuck is left behind."""
    pool.stop()  # type: ignore[no-untyped-call]
    ending = threading.Thread(target=pool.join, name="ending verifiers", daemon=True)
    ending.start()
    ending.join(_END_S)


def _is_ready(pool: ProcessPool) -> bool:
    """Waits until a worker of the pool is ready; False when none can start or exceeds the deadline."""
    try:
        return pool.schedule(_nothing).exception(_START_S) is None
    except (FutureTimeout, RuntimeError):  # RuntimeError: the pool has already failed
        return False


def _nothing() -> None:
    """What a worker does to show that it is ready."""


def _start_worker(parent: int) -> None:
    """Prepares a worker process: it dies with its parent, imports math-verify, and then limits itself."""
    die_with_parent(parent)
    # pebble ends a worker by SIGTERM. A handler in Python would have to wait for big-integer arithmetic to end.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # its warnings quote whole answers
    # The first use fills tables, which on a busy machine takes longer than an answer may take.
    verify(parse(r"$\frac{1}{2}$", parsing_timeout=0), parse("0.5", parsing_timeout=0), timeout_seconds=0)
    memory = psutil.Process().memory_info().vms + _MEMORY
    for kind, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (limit, limit))


def reading_cost(text: str) -> int:
    """How long an answer may take to verify, on a scale of its own: what looks cheap should come first."""
    return len(text) + 1000 * (text.count("^") + text.count("**") + text.count("!"))


def last_box(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` of a text; None where it has none, or where that one is cut off."""
    start = max(text.rfind(r"\boxed{"), text.rfind(r"\fbox{"))
    if start < 0 or ends_in_box(text):
        return None
    begin = text.index("{", start) + 1
    return text[begin : closing_brace(text, begin)]


def read_gold(gold: str) -> list[Any]:
    r"""What math-verify reads in an accepted answer, empty where it reads nothing.

    Published data sets write ``$\frac{3}{4}$``, ``\boxed{\frac{3}{4}}``, and the inside of the box alone.
    """
    from math_verify import parse

    plain = plain_digits(gold)
    is_formula = _FORMULA.search(plain) or number_of(plain.lstrip(" -−")) is not None
    bare = "$" not in plain and r"\boxed" not in plain and is_formula
    found: list[Any] = parse(f"${plain}$", parsing_timeout=_STEP_S) if bare else []
    return found or parse(plain, parsing_timeout=_STEP_S)


def _verify(answer: str, accepted: list[str], language: str) -> bool:
    from math_verify import parse, verify

    try:
        box = last_box(answer)
        shown = answer if box is None else box
        # 5 thousand is not 5, of which math-verify knows nothing; but it is 5 thousand.
        if is_multiplied_box(shown) if box is not None else ends_multiplied(shown, language):
            accepted = [gold for gold in accepted if without_multiples(plain_digits(gold)) != plain_digits(gold)]
        for gold in accepted:
            # A number is compared by its value, whatever script, grouping or unit it is written with.
            value = number_of(gold, "en")
            if value is None and (inside := last_box(gold)) is not None:
                value = number_of(inside, "en")
            if value is not None and _says_number(shown, value, language, boxed=box is not None):
                return True
        given: Any = parse(plain_digits(answer), parsing_timeout=_STEP_S)
        return any(verify(read_gold(gold), given, timeout_seconds=_STEP_S) for gold in accepted)
    # Whatever a text provokes is not a match: MemoryError, RecursionError, math-verify's TimeoutException and others.
    except Exception:
        return False


def _says_number(shown: str, value: Fraction, language: str, boxed: bool) -> bool:
    """Whether a box holds this number, with or without a unit, or a text without a box ends with it."""
    if boxed:
        return value in (number_in_box(shown, language), number_in_box(shown, "en"))
    formula = "$" in shown or "\\" in shown or "/" in shown or "^" in shown
    return not formula and value in (last_number(shown, language), last_number(shown, "en"))
