"""How long each part of a weight sync may take: from the bytes that travel and their bandwidth.

This is the only place where these deadlines are put together. A round with every one of them used up is shorter than
what the learner's other ranks wait for in a collective, because they wait for rank 0 while it publishes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from common.config import SyncConfig

log = logging.getLogger("learner.publisher")

SHARE_OF_COLLECTIVE = 0.9  # of what the ranks wait in a collective that a round, or a checkpoint, may take


@dataclass(frozen=True)
class Deadlines:
    """Of one engine in a round, in seconds; they follow one another.

    Args:
        form_s: for its process group to form, again for the engine to say that it has joined, and again for the first
            broadcast, which connects both.
        pause_s: from the order to pause until it has paused. An actor adds what its answers in flight may take to end.
        bucket_s: for one bucket to be sent, or to be held by an engine that does not take it.
        transfer_s: from the order to take the weights until all have been sent, and again until the engine has them.
            The time in which other engines hold the buckets up does not count.
    """

    form_s: float
    pause_s: float
    bucket_s: float
    transfer_s: float

    def round_s(self, drain_s: float) -> float:
        """The longest time a round may take: all of them, one after the other."""
        return self.first_bucket_s(drain_s) - self.bucket_s + 2 * self.transfer_s

    def first_bucket_s(self, drain_s: float) -> float:
        """How long the first bucket may be held by an engine that joins and pauses before it takes the bucket."""
        return 3 * self.form_s + self.pause_s + drain_s + self.bucket_s


def round_deadlines(
    config: SyncConfig, engines: int, total_bytes: int, bucket_bytes: int, drain_s: float, collective_s: float
) -> Deadlines:
    """The deadlines of a round.

    Bytes have ``sync.slowest_mb_per_s`` for each engine, one engine after the other, on top of ``sync.timeout_s``.

    Args:
        config: the section ``sync``.
        engines: the most engines that one learner node sends to; they share its connection.
        total_bytes: of the weights.
        bucket_bytes: of the largest bucket.
        drain_s: how long the answers of an engine may take to end before it pauses.
        collective_s: what the learner's other ranks wait for rank 0 in a collective; infinite where there are none.
    """
    rate = config.slowest_mb_per_s * 1e6
    transfer_s = config.timeout_s + engines * total_bytes / rate
    found = Deadlines(
        form_s=config.timeout_s,
        pause_s=config.timeout_s,
        bucket_s=min(transfer_s, config.timeout_s + engines * bucket_bytes / rate),
        transfer_s=transfer_s,
    )
    longest_s = SHARE_OF_COLLECTIVE * collective_s
    if found.round_s(drain_s) <= longest_s:
        return found
    # What does not grow with the bytes comes first, but the two transfers have at least a third of the time.
    short_s = 3 * found.form_s + found.pause_s
    shorter_s = max((longest_s - short_s - drain_s) / 2, longest_s / 6)
    factor = min(1.0, max(longest_s - 2 * shorter_s - drain_s, longest_s / 6) / short_s)
    log.warning(
        "%d engines of one node and %.1f GB may take %.0f s at sync.slowest_mb_per_s = %g, but the learner's ranks "
        "wait for one another for %.0f s (learner.group_timeout_s + actor.start_timeout_s): an engine has %.0f s to "
        "take weights",
        engines, total_bytes / 1e9, found.round_s(drain_s), config.slowest_mb_per_s, collective_s, shorter_s,
    )  # fmt: skip
    return Deadlines(
        form_s=factor * found.form_s,
        pause_s=factor * found.pause_s,
        bucket_s=min(found.bucket_s, shorter_s),
        transfer_s=shorter_s,
    )
