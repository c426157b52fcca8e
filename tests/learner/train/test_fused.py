"""Parts of a layer in one kernel each: what is exchanged, and that generated kernels compute the same, for all lengths.

That the formulas are those of transformers, for every architecture, is shown in test_architectures.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from common.config import LoraConfig
from learner.train import kernels
from learner.train.fused import fuse, plain
from learner.train.lora import Adapters
from learner.train.packing import MicroBatch, Sample, pack
from learner.train.policy import Policy, drop_gathered, shard
from tests.support.groups import random_rollout


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def made(path: Path, mesh: DeviceMesh, compiled: bool, lora: int) -> Policy:
    """A policy whose layers are sharded, half of them checkpointed; with adapters that are not zero, if any."""
    # One chunk of logits: a last one of a single row would be traced by itself.
    policy = Policy(str(path), temperature=0.7, head_chunk=1024, checkpointing=0.5, compiled=compiled)
    if lora:
        policy.adapters = Adapters(policy.lm, LoraConfig(rank=lora), seed=1)
        with torch.no_grad():
            for layer in policy.adapters.layers.values():
                layer.lora_B.fill_(0.01)
    return shard(policy, mesh, torch.float32, stays_gathered=compiled)


def gradients(policy: Policy, batch: MicroBatch) -> dict[str, Tensor]:
    """Log-probabilities, entropies, and the gradient of a loss with both, by name."""
    logp_R, entropy_R = policy(batch)
    (logp_R @ batch.weight_R - 0.1 * entropy_R @ batch.weight_R).backward()
    found = {"logp": logp_R.detach(), "entropy": entropy_R.detach()}
    for name, value in policy.named_parameters():
        if value.grad is not None:
            found[name] = value.grad.full_tensor() if isinstance(value.grad, DTensor) else value.grad
            value.grad = None
    return found


def graphs() -> int:
    """How many functions have been traced in this process, for each combination of what does not vary."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def check_same_and_made_once(path: Path, mesh: DeviceMesh, rng: np.random.Generator, lora: int) -> None:
    policies = [made(path, mesh, compiled, lora) for compiled in (False, True)]
    counts = list[int]()
    for answers in (5, 3, 9, 4, 7):
        batch = pack([Sample(random_rollout(rng), 0.0, weight=float(rng.random())) for _ in range(answers)])
        wanted, got = (gradients(policy, batch) for policy in policies)
        assert got.keys() == wanted.keys() and len(got) > 2
        for name, value in wanted.items():
            assert (got[name] - value).norm() <= 1e-4 * value.norm() + 1e-7, name
        counts.append(graphs())
    assert counts[0] > 0, counts
    assert counts[-1] == counts[1], f"nothing is traced anew for batches of other lengths: {counts}"


@pytest.mark.parametrize("lora", [0, 4])
def test_traced_parts_have_the_same_gradient_and_are_traced_once(
    lora: int, tiny_policy: Path, mesh: DeviceMesh, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced by torch.compile as for a GPU, but no code is generated."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    kernels.generated_kernel.cache_clear()
    check_same_and_made_once(tiny_policy, mesh, rng, lora)
    kernels.generated_kernel.cache_clear()


@pytest.mark.slow
def test_generated_code_has_the_same_gradient(tiny_policy: Path, mesh: DeviceMesh, rng: np.random.Generator) -> None:
    """Code for the CPU, by torch.compile's own backend."""
    check_same_and_made_once(tiny_policy, mesh, rng, 0)


def test_weights_that_stay_gathered_are_used_until_they_are_dropped(
    tiny_policy: Path, mesh: DeviceMesh, rng: np.random.Generator
) -> None:
    batch = pack([Sample(random_rollout(rng), 0.0)])
    policy = shard(Policy(str(tiny_policy), temperature=1.0, head_chunk=16), mesh, torch.float32, stays_gathered=True)
    with torch.no_grad():
        before = policy(batch)[0]
        drop_gathered(policy)
        for parameter in policy.parameters():
            parameter.mul_(1.1)
        assert not torch.allclose(policy(batch)[0], before)


def test_what_is_exchanged_and_put_back(tiny_policy: Path) -> None:
    """Qwen3 has two norms in each of its two layers, two more in their attention, and one at the end."""
    norms = 9

    def exchanged(policy: Policy) -> int:
        return sum(type(module).__name__.startswith("Fused") for module in policy.lm.modules())

    policy = Policy(str(tiny_policy), temperature=1.0, head_chunk=16)
    assert exchanged(policy) == norms
    assert fuse(policy.lm, compiled=True) == 4, "the attention and the gated activation of each layer"
    with plain(policy.lm):
        assert exchanged(policy) == 0
    assert exchanged(policy) == norms + 4
