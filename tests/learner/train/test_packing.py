"""Packing and micro-batches: no sequence is lost, none sees another, and the cost is spread evenly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from learner.train.packing import Sample, assign_micro_batches, pack
from learner.train.policy import Policy
from tests.support.groups import random_rollout


def test_packed_equals_each_sequence_alone_in_float64(tiny_policy: Path, rng: np.random.Generator) -> None:
    samples = [Sample(random_rollout(rng), 0.0) for _ in range(7)]
    policy = Policy(str(tiny_policy), temperature=0.8, head_chunk=16)
    with torch.no_grad():
        logp, _ = policy(pack(samples))
        alone = torch.cat([policy(pack([sample]))[0] for sample in samples])
    torch.testing.assert_close(logp, alone, rtol=1e-5, atol=1e-5)
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
def test_assignment_places_each_sequence_once_within_the_budget(lengths: list[int], budget: int, ranks: int) -> None:
    shares = assign_micro_batches(lengths, [float(n) for n in lengths], budget, ranks)
    assert len(shares) == ranks and len({len(share) for share in shares}) == 1
    assert sorted(index for share in shares for members in share for index in members) == list(range(len(lengths)))
    for share in shares:
        for members in share:
            assert sum(lengths[index] for index in members) <= budget or len(members) == 1


def test_assignment_balances_cost_where_attention_makes_long_sequences_expensive(rng: np.random.Generator) -> None:
    """Ranks wait for one another at every micro-batch, so each loses the difference to the most expensive one."""
    lengths = rng.gamma(2, 512, 200).astype(int).clip(16, 4096).tolist()
    costs = [n + n**2 / 1000 for n in lengths]
    shares = assign_micro_batches(lengths, costs, 16384, 4)
    spent = np.array([[sum(costs[index] for index in members) for members in share] for share in shares])
    assert spent.max(0).sum() < 1.05 * spent.mean(0).sum()
    assert spent.sum(1).max() < 1.05 * spent.sum(1).mean()


def test_checkpointed_layers_are_computed_again_for_the_same_gradient(
    tiny_policy: Path, rng: np.random.Generator
) -> None:
    batch = pack([Sample(random_rollout(rng), 0.0) for _ in range(3)])
    found = []
    for checkpointing in (False, True):
        policy = Policy(str(tiny_policy), temperature=1.0, head_chunk=16, checkpointing=checkpointing)
        passes = Counter[nn.Module]()
        for layer in policy.lm.get_decoder().layers:
            layer.mlp.register_forward_pre_hook(lambda module, _, passes=passes: passes.update([module]))
        policy(batch)[0].sum().backward()
        assert [*passes.values()] == [1 + checkpointing] * policy.layers
        found.append({name: value.grad for name, value in policy.named_parameters()})
    torch.testing.assert_close(*found)


def test_a_share_of_the_layers_is_checkpointed_from_the_first_on(tiny_policy: Path, rng: np.random.Generator) -> None:
    policy = Policy(str(tiny_policy), temperature=1.0, head_chunk=16, checkpointing=0.5)
    passes = Counter[int]()
    for number, layer in enumerate(policy.lm.get_decoder().layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: passes.update([number]))
    policy(pack([Sample(random_rollout(rng), 0.0)]))[0].sum().backward()
    assert passes == {0: 2, 1: 1}


def test_an_empty_micro_batch_trains_nothing(tiny_policy: Path) -> None:
    logp, entropy = Policy(str(tiny_policy), temperature=1.0, head_chunk=16)(pack([]))
    assert logp.shape == entropy.shape == (0,)
    logp.sum().backward()


@pytest.mark.parametrize("length", [1, 5])
def test_pack_marks_the_positions_before_each_response_token(length: int, rng: np.random.Generator) -> None:
    rollout = random_rollout(rng)
    packed = pack([Sample(rollout, 1.5, weight=0.25, language=2)] * length)
    assert torch.equal(packed.ids_T[packed.rows_R + 1], packed.targets_R)
    assert packed.boundaries.tolist() == [n * len(packed.ids_T) // length for n in range(length + 1)]
    assert packed.advantage_R.unique().tolist() == [1.5]
    assert packed.weight_R.unique().tolist() == [0.25] and packed.language_R.unique().tolist() == [2]


def test_cost_counts_the_multiplications_of_a_forward_pass(tiny_policy: Path) -> None:
    policy = Policy(str(tiny_policy), temperature=1.0, head_chunk=16)
    layers, hidden, inner, heads, kv, width, vocabulary = 2, 64, 128, 4, 2, 16, 320
    projections = hidden * width * (2 * heads + 2 * kv) + 3 * hidden * inner
    attention = sum(2 * heads * width * (seen + 0.5) for seen in range(50))  # scores and values; half of the diagonal
    wanted = 50 * layers * projections + 30 * vocabulary * hidden + layers * attention
    assert policy.cost(20, 30) == pytest.approx(wanted, rel=0.02)
