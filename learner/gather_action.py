"""The action ``gather``: all ranks gather the weights together, and each node's leader sends them to its engines."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor

from common import wire
from common.config import Config
from learner.rank_links import RankLinks, leads_its_node
from learner.ranks import Command
from learner.train.policy import full_weights, published_shapes
from learner.train.trainer import Trainer
from learner.weights.buckets import cut_into_buckets
from learner.weights.leader import Leader, group_backend
from learner.weights.leader_messages import CHANNEL, LeaderOrder, LeaderReport, RoundPlan

log = logging.getLogger("learner.publisher")


class GatherAction:
    """What a rank does when rank 0 publishes. Every rank makes one before it follows.

    Rank 0 walks through the weights as its publisher sends them. The first rank of any other node does the same as a
    leader, and all further ranks only take part in gathering. Adapters alone need no leaders: rank 0 sends them.

    Args:
        links: over which rank 0 gives orders to leaders.
    """

    def __init__(self, config: Config, trainer: Trainer, links: RankLinks) -> None:
        self._policy, self._links = trainer.policy, links
        self._adapters = trainer.policy.adapters if config.lora.sends_adapters else None
        self._leader: Leader | None = None  # rank 0's belongs to its publisher
        if dist.get_rank() and leads_its_node() and self._adapters is None:
            buckets = published_buckets(config, trainer)
            self._leader = Leader(buckets, group_backend(config.sync, trainer.device), trainer.device, self._report)
            links.listen(CHANNEL, LeaderOrder, self._obey)

    def __call__(self, command: Command) -> Iterator[tuple[str, Tensor]]:
        """On rank 0 the names and tensors, which must be walked through; other ranks have done so when this returns.

        Args:
            command: its data is the plan of the round, see ``Publisher.publish``.
        """
        weights = full_weights(self._policy) if self._adapters is None else self._adapters.gather()
        if dist.get_rank() == 0:
            return weights
        try:
            if self._leader is not None:
                self._leader.begin_round(wire.unpack(command.data, RoundPlan), dist.get_rank())
                self._leader.gather(weights)
        finally:
            deque(weights, maxlen=0)  # the other ranks take part until the end
        return weights

    def _obey(self, _rank: int, order: LeaderOrder) -> None:
        assert self._leader is not None
        self._leader.obey(order)

    def _report(self, report: LeaderReport) -> None:
        try:
            self._links.send(0, CHANNEL, report)
        except OSError as error:  # rank 0 is gone, for which this rank ends; or it will give the engine up by itself
            log.warning("rank 0 cannot be told about an engine: %s", error)


def published_buckets(config: Config, trainer: Trainer) -> list[wire.Bucket]:
    """How the weights are cut for the engines; the same on all ranks."""
    return cut_into_buckets(published_shapes(trainer.policy), config.model.dtype, config.sync.bucket_mb)
