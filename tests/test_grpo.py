"""The objective and the packed forward pass against plain float64 code on fresh random inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from learner.grpo import Objective, advantages
from learner.packing import Sample, pack, plan
from learner.policy import Policy, _ChunkedLogProb
from tests.helpers import random_rollout


def test_advantages_follow_the_formula() -> None:
    rewards = np.random.default_rng().random(8).astype(np.float32)
    exact = rewards.astype(np.float64)
    wanted = (exact - exact.mean()) / (np.sqrt(((exact - exact.mean()) ** 2).mean()) + 1e-6)
    np.testing.assert_allclose(advantages(rewards, divide_by_std=True), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(advantages(rewards, divide_by_std=False), exact - exact.mean(), atol=1e-7)
    assert not advantages(np.full(4, 0.3, np.float32), divide_by_std=True).any()


def _token_loss(logp: float, old: float, behaviour: float, advantage: float, ref: float, o: Objective) -> float:
    """The definition, one token at a time, in Python floats."""
    ratio = np.exp(logp - old)
    clipped = min(max(ratio, 1 - o.clip_low), 1 + o.clip_high)
    objective = min(advantage * ratio, advantage * clipped)
    if advantage < 0:
        objective = max(objective, o.dual_clip * advantage)
    weight = min(np.exp(old - behaviour), o.importance_cap)
    k3 = np.exp(ref - logp) - (ref - logp) - 1
    return float(-weight * objective + o.kl * k3)


def test_objective_and_its_gradient_match_the_definition() -> None:
    rng = np.random.default_rng()
    objective = Objective(clip_low=0.2, clip_high=0.28, kl=0.1, importance_cap=2.0)
    old, behaviour, ref, advantage = rng.normal(size=(4, 400))
    logp = old + rng.normal(size=400) * 0.6
    leaf = torch.tensor(logp, requires_grad=True)
    loss, stats = objective(leaf, *(torch.tensor(x) for x in (old, behaviour, advantage, ref)))
    wanted = [_token_loss(*row, objective) for row in zip(logp, old, behaviour, advantage, ref, strict=True)]
    np.testing.assert_allclose(loss.detach(), wanted, rtol=1e-9)
    loss.sum().backward()
    h = 1e-6
    slope = [
        (_token_loss(row[0] + h, *row[1:], objective) - _token_loss(row[0] - h, *row[1:], objective)) / (2 * h)
        for row in zip(logp, old, behaviour, advantage, ref, strict=True)
    ]
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad, slope, rtol=1e-4, atol=1e-6)
    assert set(stats) == {"clip_share", "importance_weight", "mismatch", "kl"}


def test_chunked_log_probabilities_match_float64() -> None:
    generator = torch.Generator().manual_seed(int(np.random.default_rng().integers(2**31)))
    hidden, weight = torch.randn(37, 16, generator=generator), torch.randn(101, 16, generator=generator)
    targets, upstream = torch.randint(0, 101, (37,), generator=generator), torch.randn(37, generator=generator)
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    logits = torch.log_softmax(exact[0] @ exact[1].T / 0.7, -1)
    (logits[torch.arange(37), targets] * upstream).sum().backward()
    ours = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    logp, entropy = _ChunkedLogProb.apply(*ours, targets, 0.7, 8)  # type: ignore[no-untyped-call]
    (logp * upstream).sum().backward()
    torch.testing.assert_close(logp.double(), logits[torch.arange(37), targets], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(logits.exp() * logits).sum(-1), rtol=1e-5, atol=1e-5)
    for mine, reference in zip(ours, exact, strict=True):
        assert mine.grad is not None and reference.grad is not None
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)


def test_packed_equals_each_sequence_alone_in_float64(tiny_policy: Path) -> None:
    rng = np.random.default_rng()
    samples = [Sample(random_rollout(rng), 0.0) for _ in range(7)]
    policy = Policy(str(tiny_policy), temperature=0.8, head_chunk=16)
    with torch.no_grad():
        logp, _ = policy(pack(samples))
    plain = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float64)
    wanted = []
    for sample in samples:
        ids = np.concatenate([sample.rollout.prompt_ids, sample.rollout.response_ids]).astype(np.int64)
        with torch.no_grad():
            logits = torch.log_softmax(plain(torch.from_numpy(ids)[None]).logits[0] / 0.8, -1)
        begin = len(sample.rollout.prompt_ids)
        wanted += [logits[position - 1, ids[position]] for position in range(begin, len(ids))]
    torch.testing.assert_close(logp.double(), torch.stack(wanted), rtol=1e-5, atol=2e-5)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(8, 100), ranks=st.integers(1, 4))
def test_plan_places_each_sequence_once_within_the_budget(lengths: list[int], budget: int, ranks: int) -> None:
    shares = plan(lengths, budget, ranks)
    assert len(shares) == ranks and len({len(share) for share in shares}) == 1
    assert sorted(index for share in shares for members in share for index in members) == list(range(len(lengths)))
    for share in shares:
        for members in share:
            assert sum(lengths[index] for index in members) <= budget or len(members) == 1


def test_an_empty_micro_batch_trains_nothing(tiny_policy: Path) -> None:
    logp, entropy = Policy(str(tiny_policy), temperature=1.0, head_chunk=16)(pack([]))
    assert logp.shape == entropy.shape == (0,)
    logp.sum().backward()


@pytest.mark.parametrize("length", [1, 5])
def test_pack_marks_the_positions_before_each_response_token(length: int) -> None:
    rollout = random_rollout(np.random.default_rng())
    packed = pack([Sample(rollout, 1.5)] * length)
    assert torch.equal(packed.ids[0, packed.rows + 1], packed.targets)
    assert packed.boundaries.tolist() == [n * len(packed.ids[0]) // length for n in range(length + 1)]
    assert packed.advantage.unique().tolist() == [1.5]
