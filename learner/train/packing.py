"""Sequences of a step laid end to end, without padding, in micro-batches of even cost over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.wire import Rollout


@dataclass(frozen=True)
class Sample:
    """One rollout and what the step makes of it."""

    rollout: Rollout
    advantage: float
    weight: float = 0.0  # of each of its tokens in the loss
    language: int = 0  # index among those of the step
    name: str = ""  # for messages

    def __len__(self) -> int:
        return len(self.rollout.prompt_ids) + len(self.rollout.response_ids)


@dataclass(frozen=True)
class Packed:
    """A micro-batch of n sequences with T tokens, R of them in responses.

    ``rows`` are the positions whose hidden state predicts the ``targets``: one before each response token.
    """

    ids: Tensor  # [1, T] int64
    positions: Tensor  # [1, T] int64, from 0 in each sequence
    boundaries: Tensor  # [n + 1] int32, cumulative lengths
    rows: Tensor  # [R] int64
    targets: Tensor  # [R] int64
    behaviour_logp: Tensor  # [R] float32
    advantage: Tensor  # [R] float32
    weight: Tensor  # [R] float32
    language: Tensor  # [R] int64
    longest: int  # tokens of the longest sequence

    def to(self, device: torch.device) -> Packed:
        if device.type == "cpu":
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        with torch.cuda.device(device):  # the current device is a thread's own, and this runs on others too
            moved: dict[str, Any] = {n: t.pin_memory().to(device, non_blocking=True) for n, t in tensors.items()}
        return replace(self, **moved)


def plan(lengths: Sequence[int], costs: Sequence[float], budget: int, ranks: int) -> list[list[list[int]]]:
    """Which sequences go into which micro-batch: ``[rank][micro-batch] -> indices``.

    A micro-batch holds at most ``budget`` tokens, unless one sequence alone is longer. The costliest sequence goes
    first, into the cheapest micro-batch with room. Every rank gets the same number of them, some maybe empty, because
    each runs the same collectives; those that run at the same time have about the same cost.
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
    bins: list[list[int]] = [[] for _ in range(count)]
    filled, spent = [0] * count, [0.0] * count
    for index in order:
        room = [n for n in range(count) if not bins[n] or filled[n] + lengths[index] <= budget]
        if not room:
            return None
        target = min(room, key=spent.__getitem__)
        bins[target].append(index)
        filled[target] += lengths[index]
        spent[target] += costs[index]
    return bins


def pack(samples: Sequence[Sample]) -> Packed:
    """Lays the samples end to end. No samples give a sequence of two tokens that trains nothing."""
    rollouts = [sample.rollout for sample in samples]
    ids = [np.concatenate([r.prompt_ids, r.response_ids]) for r in rollouts] or [np.zeros(2, np.int32)]
    ends = np.cumsum([0, *map(len, ids)])
    responses = np.array([len(r.response_ids) for r in rollouts], np.int64)
    begins = [start + len(r.prompt_ids) - 1 for r, start in zip(rollouts, ends, strict=False)]

    def joined(arrays: Sequence[Any], dtype: type) -> Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype))

    def repeated(values: list[float], dtype: type) -> Tensor:
        return torch.from_numpy(np.repeat(np.array(values, dtype), responses))

    return Packed(
        ids=joined(ids, np.int64)[None],
        positions=joined([np.arange(len(a)) for a in ids], np.int64)[None],
        boundaries=torch.from_numpy(ends.astype(np.int32)),
        rows=joined([np.arange(begin, begin + n) for begin, n in zip(begins, responses, strict=True)], np.int64),
        targets=joined([r.response_ids for r in rollouts], np.int64),
        behaviour_logp=joined([r.logprobs for r in rollouts], np.float32),
        advantage=repeated([sample.advantage for sample in samples], np.float32),
        weight=repeated([sample.weight for sample in samples], np.float32),
        language=repeated([sample.language for sample in samples], np.int64),
        longest=max(map(len, ids)),
    )
