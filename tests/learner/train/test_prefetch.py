"""The next micro-batch is made while the present one is used, and one ahead at most."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from learner.train import trainer
from learner.train.prefetch import prefetch
from tests.support.train_once import configuration, copied_weights, random_batch, run_ranks

_PATIENCE_S = 60.0


def test_the_next_item_is_made_while_the_present_one_is_used_and_none_after_it() -> None:
    begun = [threading.Event() for _ in range(4)]
    threads = set[int]()

    def make(number: int) -> int:
        threads.add(threading.get_ident())
        begun[number].set()
        return number

    found = []
    for item in prefetch(partial(make, number) for number in range(4)):
        found.append(item)
        if item < 3:
            assert begun[item + 1].wait(_PATIENCE_S), "the next item waits until this one has been used"
        assert not any(event.is_set() for event in begun[item + 2 :]), "its memory would be held for nothing"
    assert found == [0, 1, 2, 3]
    assert threading.get_ident() not in threads


def test_an_error_comes_when_its_item_is_due() -> None:
    def fail() -> int:
        raise ValueError("the second one")

    calls: list[Callable[[], int]] = [lambda: 1, fail, lambda: 3]
    items = prefetch(calls)
    assert next(items) == 1
    with pytest.raises(ValueError, match="the second one"):
        next(items)


def test_whoever_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    items = prefetch([lambda: 1, lambda: 2, lambda: 3])
    assert next(items) == 1
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert list(prefetch([])) == []


def train_with_and_without(out: Path, model: Path) -> None:
    """Trains two steps of several micro-batches, packed ahead and packed when they are needed."""

    def one_by_one(calls: Iterable[Callable[[], Any]]) -> Iterator[Any]:
        return (call() for call in calls)

    found = []
    for iterate in (prefetch, one_by_one):
        with patch.object(trainer, "prefetch", iterate):
            learner = trainer.Trainer(configuration(model, "--learner.microbatch_tokens", "64"))
            norms = [learner.step(random_batch(seed), seed).grad_norm for seed in range(2)]
            found.append((norms, copied_weights(learner)))
    torch.save(found, out)


def test_a_step_is_the_same_to_the_last_bit_as_without(tiny_policy: Path, tmp_path: Path) -> None:
    assert run_ranks(1, train_with_and_without, tmp_path / "found", tiny_policy) == [0]
    (norms, ahead), (same_norms, needed) = torch.load(tmp_path / "found")
    assert norms == same_norms and min(norms) > 0
    assert ahead.keys() == needed.keys() and all(torch.equal(value, needed[name]) for name, value in ahead.items())
