"""Waits for the groups of the next step. Which groups those are is decided in ``learner.work.scheduler``."""

from __future__ import annotations

import time

from common.progress import BRIEF_S, Activity
from common.stood_still import stood_still_s
from common.stopwatch import Stopwatch
from learner.groups import Group
from learner.loop.interrupts import Interrupts, NobodyCame
from learner.loop.publishing import Publishing
from learner.ranks import Ranks
from learner.work.server import WorkServer

_TURN_S = 0.5  # how long one wait lasts before newcomers, the deadline and interrupts are looked at


class Batches:
    """The batches of the queue that is being served.

    Args:
        server: collects the groups.
        publishing: gives actors that come during a wait the current weights.
        ranks: are kept waiting meanwhile.
        timeout_s: ``learner.group_timeout_s``, how long the next group may take.
        stopwatch: counts the seconds waited.
        interrupts: end a wait.
    """

    def __init__(
        self,
        server: WorkServer,
        publishing: Publishing,
        ranks: Ranks,
        timeout_s: float,
        stopwatch: Stopwatch,
        interrupts: Interrupts,
    ) -> None:
        self._server, self._publishing, self._ranks, self._timeout_s = server, publishing, ranks, timeout_s
        self._stopwatch, self._interrupts = stopwatch, interrupts

    def next_batch(self, state: str = "wait") -> list[Group]:
        """The groups of the next step, oldest first; blocks until they are there, as long as groups come.

        How long a whole step takes depends on its size and on the actors, so that only a wait in which no group was
        accepted for ``timeout_s`` ends with an error.

        Args:
            state: of the stopwatch, in which the wait counts.

        Raises:
            NobodyCame: no group came in time.
            EveryQuestionGivenUp: none can come any more.
            Interrupted: the process was asked to end.
        """
        deadline, accepted = time.monotonic() + self._timeout_s, self._server.accepted()
        what = "evaluating" if state == "evaluate" else "waiting for the groups of the next step"
        with Activity("learner", what, detail=self._progress, missing=self._missing, silent_s=BRIEF_S):
            while True:
                self._interrupts.check()
                began = time.monotonic()
                with self._stopwatch(state):
                    batch = self._server.take(_TURN_S)
                deadline += stood_still_s(began, _TURN_S)
                if batch is not None:
                    return batch
                self._publishing.publish_to_newcomers()
                self._ranks.keep_waiting(self._timeout_s / 2)
                if (now_accepted := self._server.accepted()) > accepted:
                    deadline, accepted = time.monotonic() + self._timeout_s, now_accepted
                if time.monotonic() > deadline:
                    oldest = self._server.describe_oldest()
                    raise NobodyCame(
                        f"no group came within learner.group_timeout_s = {self._timeout_s:.0f} s: "
                        f"{self._server.counts()}, actors: {', '.join(self._server.members()) or 'none'}"
                        f"{oldest and f'; {oldest}'}"
                    )

    def _progress(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self._server.counts().items() if count)

    def _missing(self) -> str:
        if self._server.members():
            return ""  # the actors generate; each says itself if it waits
        return "no actor is left: start one with scripts/launch_actor.sh and the same configuration"
