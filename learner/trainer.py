"""One optimizer step on a batch of groups, the same on every rank."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from common.config import Config
from common.process import has_cuda
from learner.grpo import Objective, advantages
from learner.packing import Packed, Sample, pack, plan
from learner.policy import Policy, shard
from learner.server import Finished

log = logging.getLogger("learner.trainer")


@dataclass(frozen=True)
class StepResult:
    """Means over the response tokens of the whole batch, and what is one number a step."""

    means: dict[str, float]
    packed_tokens: int  # prompts included
    grad_norm: float
    lr: float


class Trainer:
    """Owns policy, reference and optimizer.

    The default process group must be up. Loss: the mean over all response tokens of the batch, on all ranks and in all
    micro-batches together.
    """

    def __init__(self, config: Config) -> None:
        learner = config.learner
        self._config = learner
        self.device = torch.device("cuda", torch.cuda.current_device()) if has_cuda() else torch.device("cpu")
        self.ranks = dist.get_world_size()
        mesh = init_device_mesh(self.device.type, (self.ranks,))
        dtype = getattr(torch, learner.param_dtype)
        policy = Policy(
            config.model.path,
            temperature=config.sampling.temperature,
            head_chunk=learner.head_chunk,
            checkpointing=learner.activation_checkpointing,
        ).to(self.device)
        self.reference = None
        if learner.kl > 0:
            self.reference = shard(copy.deepcopy(policy).requires_grad_(False), mesh, dtype)
        self.policy = shard(policy, mesh, dtype)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=learner.lr, betas=learner.betas, weight_decay=learner.weight_decay
        )
        self._objective = Objective(
            clip_low=learner.clip_low,
            clip_high=learner.clip_high,
            kl=learner.kl,
            importance_cap=learner.importance_cap,
        )

    def step(self, batch: Sequence[Finished], number: int) -> StepResult:
        """Trains on the groups of ``batch``, the same on every rank; ``number`` counts steps from 0."""
        samples = [
            sample for group in batch for sample in group_samples(group, divide_by_std=self._config.advantage_std)
        ]
        total = sum(len(sample.rollout.response_ids) for sample in samples)
        lr = self._config.lr * min(1.0, (number + 1) / max(1, self._config.warmup_steps))
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=self.device))
        shares = plan([len(sample) for sample in samples], self._config.microbatch_tokens, self.ranks)
        for chosen in shares[dist.get_rank()]:
            self._accumulate(pack([samples[index] for index in chosen]).to(self.device), max(total, 1), sums)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self._config.max_grad_norm)
        grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(grad_norm):
            log.error("step %d: the gradient is not finite; the weights stay as they are", number + 1)
        elif total:  # without a trainable token there is no gradient, and weight decay alone is no step
            self.optimizer.step()
        self.optimizer.zero_grad()
        stacked = torch.stack(list(sums.values()))
        dist.all_reduce(stacked)
        return StepResult(
            means={name: value / max(total, 1) for name, value in zip(sums, stacked.tolist(), strict=True)},
            packed_tokens=sum(map(len, samples)),
            grad_norm=grad_norm,
            lr=lr,
        )

    def _accumulate(self, batch: Packed, total: int, sums: dict[str, Tensor]) -> None:
        ref_logp = None
        if self.reference is not None:
            with torch.no_grad():
                ref_logp = self.reference(batch)[0]
        logp, entropy = self.policy(batch)
        # One optimizer step a batch: the policy at its beginning is the one being differentiated.
        loss, stats = self._objective(logp, logp.detach(), batch.behaviour_logp, batch.advantage, ref_logp)
        (loss.sum() * self.ranks / total).backward()  # FSDP averages gradients over ranks; the loss is a global mean
        for name, values in {**stats, "loss": loss, "entropy": entropy}.items():
            sums[name] += values.detach().sum()


def varied(group: Finished) -> bool:
    """Whether the rewards of a group differ, so that there is something to learn from it."""
    return bool(np.ptp(_rewards(group)) > 0)


def _rewards(group: Finished) -> NDArray[np.float32]:
    return np.array([rollout.score.reward for rollout in group.rollouts], np.float32)


def group_samples(group: Finished, *, divide_by_std: bool) -> list[Sample]:
    """The rollouts of a group that carry gradient; [] when their rewards do not differ."""
    if not varied(group):
        return []
    values = advantages(_rewards(group), divide_by_std=divide_by_std)
    return [Sample(rollout, float(value)) for rollout, value in zip(group.rollouts, values, strict=True)]


def set_up_distributed(timeout_s: float) -> None:
    """The default process group under torchrun: gloo for commands and CPU tensors, nccl for CUDA tensors."""
    backend = "gloo"
    if has_cuda():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
