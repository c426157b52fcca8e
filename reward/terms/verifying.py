"""Which answer is verified next, where more wait than the verifier has workers: the one that looks cheapest.

So hostile answers, which look expensive, delay one another and not the answers of other groups.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from concurrent.futures import ThreadPoolExecutor

from reward.terms.math import WORKERS, MathVerifier, reading_cost

_PATIENCE_S = 40.0  # of an answer that waits; of one that is not verified by then nothing is known

_Answer = tuple[str, list[str], str]  # text, accepted answers, language


class VerifyingQueue:
    """Gives answers to a verifier, as many at a time as it has workers. All calls come from one event loop.

    Args:
        verifier: its counter ``math_unverified`` also counts those whose turn did not come in time.
    """

    def __init__(self, verifier: MathVerifier) -> None:
        self._verifier = verifier
        self._threads = ThreadPoolExecutor(WORKERS, "verifying")  # they wait for the verifier's processes
        self._order = itertools.count()  # among answers of one cost, the first comes first
        self._waiting: list[tuple[int, int, _Answer, asyncio.Future[float | None]]] = []  # a heap
        self._running: set[asyncio.Task[None]] = set()

    async def verify(self, text: str, accepted: list[str], language: str = "") -> float | None:
        """As ``MathVerifier.__call__``; None also where the answer's turn does not come within 40 s."""
        future: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        answer = (text, accepted, language)
        heapq.heappush(self._waiting, (reading_cost(text), next(self._order), answer, future))
        if len(self._running) < WORKERS:
            task = asyncio.create_task(self._work())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        try:
            return await asyncio.wait_for(future, _PATIENCE_S)
        except TimeoutError:
            self._verifier.counts["math_unverified"] += 1
            return None

    def close(self) -> None:
        """Takes no more answers. Does not wait for those that are being verified."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        """Verifies what waits, until nothing does."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            _, _, answer, future = heapq.heappop(self._waiting)
            if future.done():  # nobody waits for it any more
                continue
            try:
                value = await loop.run_in_executor(self._threads, self._verifier.verify, [answer])
            except Exception as error:  # as when the pool does not start any more; whoever waits gets it
                if not future.done():
                    future.set_exception(error)
                continue
            if not future.done():
                future.set_result(value[0])
