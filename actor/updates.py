"""What an actor asks of its weight updates, whether they send all weights to the engine or adapters alone."""

from __future__ import annotations

from collections.abc import Set
from typing import NoReturn, Protocol, TypeAlias

from common import wire

Order: TypeAlias = wire.Join | wire.Pause | wire.Receive | wire.LoadAdapter


class EngineUpdates(Protocol):
    """Carries out the learner's orders, one after another, and says which weights are proved to be the learner's.

    Attributes:
        proved_updates: how many updates the engine has completed and proved.
        probe_error: of the last proof, in nats per token; None before the first.
    """

    proved_updates: int
    probe_error: float | None

    def take_order(self, order: Order) -> None:
        """Queues an order of the learner."""

    def drop_orders(self) -> None:
        """Drops the orders that wait: they are of a learner, or of a life, that is over."""

    async def wait_until_proved(self, versions: Set[int]) -> bool:
        """Waits until it is known whether answers may be sent whose tokens are of these policy versions.

        Without a deadline, as a proof has one, and its failure ends everything.

        Returns:
            Whether all these weights are proved. False if some were replaced before, so that they never will be.
        """

    async def run(self) -> NoReturn:
        """Carries out orders until it is cancelled.

        Raises:
            EngineError: the engine failed an order or a proof. It must be started again.
            FatalError: the engine serves another model than the learner's.
        """
