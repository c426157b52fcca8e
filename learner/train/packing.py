"""Micro-batches: the sequences of a step laid end to end without padding, at about equal cost on every rank.

Shape suffixes: T tokens of a micro-batch, R of them in responses (see ``advantages.py`` for the others).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.wire import Rollout, Score


@dataclass(frozen=True)
class Sample:
    """A rollout to train on, with its advantage; its length is that of prompt and response, in tokens."""

    rollout: Rollout
    advantage: float
    weight: float = 0.0  # of each of its response tokens in the loss
    language: int = 0  # index into the languages of the step
    actor: int = 0  # index into the actors of the step
    group: int = 0  # index into the groups of the step
    minibatch: int = 0  # which optimizer step of the batch it belongs to
    name: str = ""  # for error messages

    def __len__(self) -> int:
        return len(self.rollout.prompt_ids) + len(self.rollout.response_ids)


def bare_sample(ids: NDArray[np.int32]) -> Sample:
    """A sample of these token ids, of which the first is the prompt. All else in it is without meaning."""
    zeros = np.zeros(len(ids) - 1, np.float32)
    nothing = Score(reward=0, quality=0, similarity=0, compliant=True, detected="")
    rollout = Rollout(
        language="", prompt_ids=ids[:1], response_ids=ids[1:], logprobs=zeros, versions=zeros.astype(np.int32),
        truncated=False, text="", score=nothing,
    )  # fmt: skip
    return Sample(rollout, 0.0)


@dataclass(frozen=True)
class MicroBatch:
    """Sequences laid end to end, T tokens in all, of which R are response tokens.

    ``rows_R`` are the positions whose hidden state predicts ``targets_R``: one before each response token.
    """

    ids_T: Tensor  # int64
    positions_T: Tensor  # int64; begins at 0 in each sequence
    boundaries: Tensor  # [number of sequences + 1] int32: cumulative lengths, from 0 to T
    rows_R: Tensor  # int64
    targets_R: Tensor  # int64
    behaviour_logp_R: Tensor  # float32, nats
    advantage_R: Tensor  # float32
    weight_R: Tensor  # float32, weight of the token in the loss
    language_R: Tensor  # int64, index into the languages of the step
    actor_R: Tensor  # int64, index into the actors of the step
    versions_R: Tensor  # int64, policy version that generated the token
    sequence_R: Tensor  # int64, which of the micro-batch's sequences the token is in
    longest: int  # tokens of the longest sequence

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on ``device``. To a GPU the copy is asynchronous, from pinned memory."""
        if device.type == "cpu":
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        with torch.cuda.device(device):  # every thread has a current device of its own, and this runs on others too
            moved: dict[str, Any] = {n: t.pin_memory().to(device, non_blocking=True) for n, t in tensors.items()}
        return replace(self, **moved)


def assign_micro_batches(
    lengths: Sequence[int], costs: Sequence[float], budget: int, ranks: int
) -> list[list[list[int]]]:
    """Decides which sequences go into which micro-batch of which rank.

    The most expensive sequence is placed first, each into the cheapest micro-batch that has room for it. Every rank
    gets the same number of micro-batches, because every rank must take part in the same collectives; some may be
    empty. Micro-batches that run at the same time on different ranks have about the same cost.

    Args:
        lengths: tokens of each sequence.
        costs: computing cost of each sequence, in any unit.
        budget: most tokens in a micro-batch. A single sequence that is longer gets a micro-batch of its own.
        ranks: number of ranks.

    Returns:
        ``result[rank][micro_batch]`` lists the indices of its sequences.
    """
    order = sorted(range(len(lengths)), key=lambda index: -costs[index])
    count = max(1, ceil(sum(lengths) / (budget * ranks)))
    while (bins := _fill(order, lengths, costs, budget, count * ranks)) is None:
        count += 1
    bins.sort(key=lambda members: -sum(costs[index] for index in members))
    return [bins[rank::ranks] for rank in range(ranks)]


def _fill(
    order: list[int], lengths: Sequence[int], costs: Sequence[float], budget: int, count: int
) -> list[list[int]] | None:
    """The sequences spread over ``count`` micro-batches in the given order; None if they do not fit."""
    bins: list[list[int]] = [[] for _ in range(count)]
    filled, spent = [0] * count, [0.0] * count
    for index in order:
        with_room = [n for n in range(count) if not bins[n] or filled[n] + lengths[index] <= budget]
        if not with_room:
            return None
        target = min(with_room, key=spent.__getitem__)
        bins[target].append(index)
        filled[target] += lengths[index]
        spent[target] += costs[index]
    return bins


def pack(samples: Sequence[Sample]) -> MicroBatch:
    """Lays the samples end to end. Without samples the result is one sequence of two tokens and R = 0."""
    rollouts = [sample.rollout for sample in samples]
    ids = [np.concatenate([r.prompt_ids, r.response_ids]) for r in rollouts] or [np.zeros(2, np.int32)]
    ends = np.cumsum([0, *map(len, ids)])
    responses = np.array([len(r.response_ids) for r in rollouts], np.int64)
    begins = [start + len(r.prompt_ids) - 1 for r, start in zip(rollouts, ends, strict=False)]

    def joined(arrays: Sequence[Any], dtype: type) -> Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype))

    def repeated(values: Sequence[float], dtype: type) -> Tensor:
        """The value of each sample, once for each of its response tokens."""
        return torch.from_numpy(np.repeat(np.array(values, dtype), responses))

    return MicroBatch(
        ids_T=joined(ids, np.int64),
        positions_T=joined([np.arange(len(a)) for a in ids], np.int64),
        boundaries=torch.from_numpy(ends.astype(np.int32)),
        rows_R=joined([np.arange(begin, begin + n) for begin, n in zip(begins, responses, strict=True)], np.int64),
        targets_R=joined([r.response_ids for r in rollouts], np.int64),
        behaviour_logp_R=joined([r.logprobs for r in rollouts], np.float32),
        advantage_R=repeated([sample.advantage for sample in samples], np.float32),
        weight_R=repeated([sample.weight for sample in samples], np.float32),
        language_R=repeated([sample.language for sample in samples], np.int64),
        actor_R=repeated([sample.actor for sample in samples], np.int64),
        versions_R=joined([r.versions for r in rollouts], np.int64),
        sequence_R=repeated(list(range(len(samples))), np.int64),
        longest=max(map(len, ids)),
    )
