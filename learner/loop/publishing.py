"""Gives the engines the learner's current weights. How they travel is in ``learner.weights``."""

from __future__ import annotations

import time

from common.config import Config
from common.progress import BRIEF_S, Activity
from common.stood_still import stood_still_s
from common.stopwatch import Stopwatch
from learner.loop.interrupts import Interrupts, NobodyCame
from learner.ranks import Ranks
from learner.weights.adapter_publisher import AdapterPublisher
from learner.weights.publisher import Published, Publisher
from learner.work.server import WorkServer

_POLL_S = 0.1


class Publishing:
    """Publishes from all ranks to all actors.

    Args:
        config: for the address and the deadline in the error when no actor comes.
        server: knows the actors.
        publisher: sends to them.
        ranks: knows the actions ``probe`` and ``gather``.
        stopwatch: counts the seconds of the states ``start`` and ``publish``.
        interrupts: end the wait for an actor.
    """

    def __init__(
        self,
        config: Config,
        server: WorkServer,
        publisher: Publisher | AdapterPublisher,
        ranks: Ranks,
        stopwatch: Stopwatch,
        interrupts: Interrupts,
    ) -> None:
        self._config, self._server, self._publisher, self._ranks = config, server, publisher, ranks
        self._stopwatch, self._interrupts = stopwatch, interrupts
        self.version = 0  # of the policy that was published last
        self._untold = list[Published]()  # the rounds that take_rounds has not given yet

    def publish(self, version: int) -> None:
        """Publishes the current weights as ``version`` to every actor that is there and does not have them.

        Blocks until each has them or was given up, and first until there is an actor.

        Raises:
            NobodyCame: no actor came within ``actor.start_timeout_s``.
            Interrupted: the process was asked to end.
        """
        self._wait_for_an_actor()
        members = self._server.members().items()
        needing = [name for name, actor in members if version != self.version or not actor.has_weights]
        engines = f"publishing the weights of step {version} to {', '.join(needing)}"
        with self._stopwatch("publish"), Activity("learner", engines, silent_s=BRIEF_S):
            probe = self._ranks.run("probe")
            published = self._publisher.publish(
                version, lambda plan: self._ranks.walk(self._ranks.run("gather", data=plan)), probe
            )
        self._untold.append(published)
        self.version = version
        self._server.mark_published(published.members)

    def take_rounds(self) -> list[Published]:
        """The rounds since the last call, such as that of a step's policy and those for actors that came later."""
        taken, self._untold = self._untold, []
        return taken

    def publish_to_newcomers(self) -> None:
        """Publishes the current version again, if an actor came since; raises what :meth:`publish` raises."""
        if self._server.has_newcomers():
            self.publish(self.version)

    def _wait_for_an_actor(self) -> None:
        if self._server.members():
            return
        address, deadline = self._config.learner.address, time.monotonic() + self._config.actor.start_timeout_s
        logs = self._config.run.dir / "logs"
        missing = (
            "start one with scripts/launch_actor.sh and the same configuration. If one is running, its output or its "
            f"engine's ({logs}/engine-*.log) says what it does"
        )
        with Activity("learner", f"waiting for an actor at {address}", missing=missing):
            while not self._server.members():
                began = time.monotonic()
                with self._stopwatch("start"):
                    time.sleep(_POLL_S)
                deadline += stood_still_s(began, _POLL_S)
                self._interrupts.check()
                if time.monotonic() > deadline:
                    raise NobodyCame(
                        f"no actor came to {address} within actor.start_timeout_s = "
                        f"{self._config.actor.start_timeout_s:.0f} s: {missing}"
                    )
