"""One optimizer step on a batch of groups, the same on every rank."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from common.config import Config, LearnerConfig
from common.gpus import has_cuda
from common.process import FatalError
from common.wire import Probe, Rollout, Score
from learner.groups import Group, Outcome, StepResult
from learner.train.grpo import Objective, advantages, token_weights
from learner.train.packing import Packed, Sample, pack, plan
from learner.train.policy import Policy, shard
from learner.weights.probe import make_probe_sequence, probe_tolerance

log = logging.getLogger("learner.trainer")

Item = TypeVar("Item")


class Trainer:
    """Owns policy, reference and optimizer.

    The default process group must be up. Nothing in a step is random. Losses are means over the whole batch, on all
    ranks and in all micro-batches together.
    """

    def __init__(self, config: Config) -> None:
        learner = self._config = config.learner
        self._model_dtype, self._tolerance = config.model.dtype, config.sync.probe_tolerance
        self.device = torch.device("cuda", torch.cuda.current_device()) if has_cuda() else torch.device("cpu")
        self.ranks = dist.get_world_size()
        if self.ranks % learner.replicas:
            raise FatalError(f"learner.replicas = {learner.replicas} does not divide the {self.ranks} ranks")
        shape = (learner.replicas, self.ranks // learner.replicas)
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard"))
        if learner.replicas == 1:
            mesh = mesh["shard"]
        dtype = getattr(torch, learner.param_dtype)
        policy = Policy(
            config.model.path,
            temperature=config.sampling.temperature,
            head_chunk=learner.head_chunk,
            checkpointing=learner.activation_checkpointing,
        ).to(self.device)
        self.reference: Policy | None = None
        self.anchor_moved = False  # the reference is no longer the policy that the run began with
        if max([learner.kl] if not learner.stages else [stage.kl for stage in learner.stages]) > 0:
            on_cpu = learner.reference_on_cpu and self.device.type == "cuda"
            self.reference = shard(copy.deepcopy(policy).requires_grad_(False), mesh, dtype, on_cpu=on_cpu)
        self.policy = shard(policy, mesh, dtype)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), lr=learner.lr, betas=learner.betas, weight_decay=learner.weight_decay, fused=True
        )
        self._objective = Objective(
            clip_low=learner.clip_low,
            clip_high=learner.clip_high,
            dual_clip=learner.dual_clip,
            kl=learner.kl,
            correction=learner.importance,
            importance_cap=learner.importance_cap,
            importance_floor=learner.importance_floor,
        )

    def step(self, batch: Sequence[Group], number: int) -> StepResult:
        """Trains on the groups of ``batch``, the same on every rank; ``number`` counts steps from 0."""
        self._enter(number)
        samples, languages = group_samples(batch, self._config)
        lr = self._config.lr * min(1.0, (number + 1) / max(1, self._config.warmup_steps))
        for group in self.optimizer.param_groups:  # a checkpoint brings what it was made with
            group |= {"lr": lr, "betas": self._config.betas, "weight_decay": self._config.weight_decay}
        if not samples:  # no gradient, and weight decay alone is no step
            return StepResult(means={}, by_language={}, fill=0.0, grad_norm=0.0, lr=lr)
        sums, finite = self.backward(samples, len(languages))
        parameters = list(self.policy.parameters())
        norm = torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
        grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        problem = ""
        if math.isfinite(grad_norm) and sums["loss"].isfinite().all():
            torch.nn.utils.clip_grads_with_norm_(parameters, self._config.max_grad_norm, norm)
            self.optimizer.step()
        else:
            problem = self._blame(samples, finite)
        self.optimizer.zero_grad()
        tokens = sums.pop("tokens")
        means = {name: float(values.sum() / tokens.sum()) for name, values in sums.items()}
        by_language = {name: dict(zip(languages, (v / tokens).tolist(), strict=True)) for name, v in sums.items()}
        return StepResult(
            means={**means, "loss": float(sums["loss"].sum())},
            by_language=by_language,
            fill=sum(map(len, samples)) / self._room,
            grad_norm=grad_norm,
            lr=lr,
            problem=problem,
        )

    def _enter(self, number: int) -> None:
        """What a stage changes: the weight of the KL, and the anchor it is taken to."""
        stage = self._config.stage(number)
        if stage is None:
            return
        self._objective = replace(self._objective, kl=stage.kl)
        begins = number > 0 and self._config.stage(number - 1) is not stage
        if begins and stage.reset_anchor and self.reference is not None:
            self.reference.reshard()  # type: ignore[operator]  # of FSDP; a whole copy would outlive what it copied
            with torch.no_grad():
                for anchor, present in zip(self.reference.parameters(), self.policy.parameters(), strict=True):
                    cast(DTensor, anchor).to_local().copy_(cast(DTensor, present).to_local())  # maybe in host memory
            self.anchor_moved = True

    def backward(self, samples: Sequence[Sample], languages: int) -> tuple[dict[str, Tensor], Tensor]:
        """Adds the gradient of the whole batch; the same on every rank.

        Returns:
            Sums over the tokens of all ranks, each [languages] float64: ``loss`` weighted, ``tokens`` their number.
            And [samples], on a CPU: 0 where this rank saw a loss that is not finite.
        """
        lengths = [len(sample) for sample in samples]
        costs = [self.policy.cost(len(s.rollout.prompt_ids), len(s.rollout.response_ids)) for s in samples]
        mine = plan(lengths, costs, self._config.microbatch_tokens, self.ranks)[dist.get_rank()]
        self._room = self.ranks * len(mine) * self._config.microbatch_tokens
        sums: dict[str, Tensor] = {}
        losses = []
        for batch in _ahead(partial(self._pack, [samples[n] for n in members]) for members in mine):
            loss, statistics = self._accumulate(batch)
            losses.append(loss)
            for name, values in {**statistics, "loss": loss * batch.weight}.items():
                table = sums.setdefault(name, torch.zeros(languages, dtype=torch.float64, device=self.device))
                table.index_add_(0, batch.language, values.double())
        stacked = torch.stack(list(sums.values()))
        dist.all_reduce(stacked)
        finite = torch.ones(len(samples), dtype=torch.int32)
        for members, loss in zip(mine, losses, strict=True):
            parts = loss.isfinite().cpu().split([len(samples[n].rollout.response_ids) for n in members])
            finite[members] = torch.tensor([int(part.all()) for part in parts], dtype=torch.int32)
        return dict(zip(sums, stacked.cpu(), strict=True)), finite

    @torch.no_grad()
    def probe(self) -> Probe:
        """What the present weights say of a fixed random sequence; all ranks call it together."""
        ids = make_probe_sequence(self.policy.vocabulary)
        zeros = np.zeros(len(ids) - 1, np.float32)
        nothing = Score(reward=0, quality=0, similarity=0, compliant=True, detected="")
        rollout = Rollout(
            language="", prompt_ids=ids[:1], response_ids=ids[1:], logprobs=zeros, versions=zeros.astype(np.int32),
            truncated=False, text="", score=nothing,
        )  # fmt: skip
        logp = self.policy(self._pack([Sample(rollout, 0.0)]), temperature=1.0)[0]
        self.policy.reshard()  # type: ignore[operator]  # of FSDP; without a backward pass it would not
        exact = self._config.param_dtype == self._model_dtype == "float32"
        tolerance = probe_tolerance(self._tolerance, exact=exact, layers=self.policy.layers, spread=float(logp.std()))
        return Probe(ids=ids, logprobs=logp.cpu().numpy(), tolerance=tolerance)

    def _pack(self, samples: list[Sample]) -> Packed:
        return pack(samples).to(self.device)

    def _accumulate(self, batch: Packed) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds the gradient of a micro-batch; losses and statistics of its tokens, each [R]."""
        ref_logp = None
        if self.reference is not None and self._objective.kl > 0:
            with torch.no_grad():
                ref_logp = self.reference(batch)[0]
        logp, entropy = self.policy(batch)
        # One optimizer step a batch: the policy at its beginning is the one being differentiated.
        loss, statistics = self._objective(logp, logp.detach(), batch.behaviour_logp, batch.advantage, ref_logp)
        (loss @ batch.weight * self.ranks).backward()  # FSDP averages gradients over ranks; the loss is a global mean
        return loss.detach(), {**statistics, "entropy": entropy, "tokens": torch.ones_like(entropy)}

    def _blame(self, samples: Sequence[Sample], finite: Tensor) -> str:
        """Which losses and gradients are not finite, on any rank; all ranks call it together."""
        parameters = list(self.policy.named_parameters())
        gradients = [
            value.grad.to_local() if isinstance(value.grad, DTensor) else value.grad for _, value in parameters
        ]
        fine = torch.tensor([gradient is None or bool(gradient.isfinite().all()) for gradient in gradients])
        found = torch.cat([finite, fine.int()])
        dist.all_reduce(found, dist.ReduceOp.MIN)
        names = [f"loss of {sample.name}" for sample in samples] + [f"gradient of {name}" for name, _ in parameters]
        bad = [name for name, good in zip(names, found.tolist(), strict=True) if not good] or ["gradient norm"]
        return f"not finite: {', '.join(bad[:4])}" + (f" and {len(bad) - 4} more" if len(bad) > 4 else "")


def _ahead(calls: Iterable[Callable[[], Item]]) -> Iterator[Item]:
    """The results of the calls; each is made on a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        before: Future[Item] | None = None
        for call in calls:
            after = thread.submit(call)
            if before is not None:
                yield before.result()
            before = after
        if before is not None:
            yield before.result()


def outcome(group: Group, config: LearnerConfig) -> Outcome:
    """What a step makes of a group."""
    if not _advantages(group, config).any():
        return "zero_variance"
    masked = config.mask_truncated and all(rollout.truncated for rollout in group.rollouts)
    return "masked" if masked else "trained"


def _advantages(group: Group, config: LearnerConfig) -> NDArray[np.float64]:
    scores = [rollout.score for rollout in group.rollouts]
    return advantages(
        np.array([score.reward for score in scores]),
        np.array([score.compliant for score in scores]),
        form=config.advantage,
        divide_by_std=config.advantage_std,
        compliance_weight=config.compliance_weight,
    )


def group_samples(batch: Sequence[Group], config: LearnerConfig) -> tuple[list[Sample], list[str]]:
    """The rollouts of a batch that carry gradient, and the languages they count in."""
    chosen = [
        (f"{group.work.id}, answer {n + 1} ({rollout.language or 'none'})", rollout, float(value))
        for group in batch
        if outcome(group, config) == "trained"
        for n, (rollout, value) in enumerate(zip(group.rollouts, _advantages(group, config), strict=True))
        if not (config.mask_truncated and rollout.truncated)
    ]
    used = [rollout.language or "none" for _, rollout, _ in chosen]
    languages = sorted(set(used))
    weights = token_weights([len(rollout.response_ids) for _, rollout, _ in chosen], used, config.aggregation)
    samples = [
        Sample(rollout, value, float(weight), languages.index(language), name)
        for (name, rollout, value), language, weight in zip(chosen, used, weights, strict=True)
    ]
    return samples, languages


def set_up_distributed(timeout_s: float) -> None:
    """The default process group under torchrun: gloo for commands and CPU tensors, nccl for CUDA tensors."""
    backend = "gloo"
    if has_cuda():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
