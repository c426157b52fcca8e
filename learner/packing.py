"""Sequences of a step laid end to end, without padding, in micro-batches of even cost over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import ceil

import numpy as np
import torch
from torch import Tensor

from common.wire import Rollout


@dataclass(frozen=True)
class Sample:
    """One rollout and what the step makes of it."""

    rollout: Rollout
    advantage: float

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

    def to(self, device: torch.device) -> Packed:
        return Packed(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def plan(lengths: Sequence[int], budget: int, ranks: int) -> list[list[list[int]]]:
    """Which sequences go into which micro-batch: ``[rank][micro-batch] -> indices``.

    Every rank gets the same number of micro-batches, because each runs the same collectives; longest first into the
    emptiest one. A micro-batch holds at most ``budget`` tokens, unless one sequence alone is longer; it may be empty.
    """
    count = max(1, ceil(sum(lengths) / (budget * ranks)))
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while True:
        bins: list[list[int]] = [[] for _ in range(count * ranks)]
        filled = [0] * len(bins)
        for index in order:
            target = min(range(len(bins)), key=lambda candidate: filled[candidate])
            bins[target].append(index)
            filled[target] += lengths[index]
        if all(total <= budget or len(members) == 1 for total, members in zip(filled, bins, strict=True)):
            return [bins[rank::ranks] for rank in range(ranks)]
        count += 1


def pack(samples: Sequence[Sample]) -> Packed:
    """Lays the samples end to end. No samples give a sequence of two tokens that trains nothing."""
    if not samples:
        empty = np.zeros(0, np.float32)
        return _tensors([np.zeros(2, np.int64)], [np.zeros(0, np.int64)], [empty], [empty], [empty])
    ids = [np.concatenate([s.rollout.prompt_ids, s.rollout.response_ids]) for s in samples]
    begin = np.cumsum([0, *map(len, ids)])[:-1]
    responses = [len(s.rollout.response_ids) for s in samples]
    rows = [
        np.arange(len(s.rollout.response_ids)) + start + len(s.rollout.prompt_ids) - 1
        for s, start in zip(samples, begin, strict=True)
    ]
    return _tensors(
        ids,
        rows,
        [s.rollout.response_ids for s in samples],
        [s.rollout.logprobs for s in samples],
        [np.full(n, s.advantage, np.float32) for s, n in zip(samples, responses, strict=True)],
    )


def _tensors(ids: list, rows: list, targets: list, behaviour: list, advantage: list) -> Packed:  # type: ignore[type-arg]
    def joined(arrays: list, dtype: type) -> Tensor:  # type: ignore[type-arg]
        return torch.from_numpy(np.concatenate(arrays).astype(dtype))

    return Packed(
        ids=joined(ids, np.int64)[None],
        positions=joined([np.arange(len(a)) for a in ids], np.int64)[None],
        boundaries=torch.from_numpy(np.cumsum([0, *map(len, ids)]).astype(np.int32)),
        rows=joined(rows, np.int64),
        targets=joined(targets, np.int64),
        behaviour_logp=joined(behaviour, np.float32),
        advantage=joined(advantage, np.float32),
    )
