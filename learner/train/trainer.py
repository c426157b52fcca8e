"""One optimizer step on a batch of prompt groups, executed alike on every rank."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from common.config import Config
from common.wire import Probe
from learner.groups import Group, StepResult
from learner.train.distributed import sharding_mesh, training_device
from learner.train.fidelity import Agreement, check_fidelity, rounding_difference
from learner.train.grpo import Objective
from learner.train.lora import Adapters
from learner.train.non_finite import describe_non_finite, finite_samples
from learner.train.packing import MicroBatch, Sample, assign_micro_batches, bare_sample, pack
from learner.train.policy import Policy, shard, store_weights
from learner.train.prefetch import prefetch
from learner.train.samples import group_samples
from learner.weights.probe import make_probe_sequence, probe_tolerance

log = logging.getLogger("learner.trainer")


@dataclass(frozen=True)
class BatchGradient:
    """What came of the backward passes of a batch, whose gradient has been added to the parameters.

    Args:
        sums: sums over the response tokens of all ranks by statistic, each [languages] float64: ``loss`` with the
            weights of the tokens, ``tokens`` their number, and the statistics of ``Objective``.
        finite: [number of samples] int32, 0 where this rank saw a loss that is not finite, else 1.
        room: tokens that the micro-batches of all ranks have room for.
    """

    sums: dict[str, Tensor]
    finite: Tensor
    room: int


class Trainer:
    """Owns the policy, the reference policy and the optimizer.

    The default process group must be set up. Nothing in a step is random but ``lora.dropout``, whose seed is that of
    the run and the step. The loss is a mean over the whole batch, that is over all micro-batches of all ranks together.
    With ``lora.rank`` the reference policy is the policy itself without its adapters.

    Raises:
        FatalError: the model cannot be loaded, its log-probabilities are not those of transformers, or
            learner.replicas does not divide the number of ranks.
    """

    def __init__(self, config: Config) -> None:
        learner = self._config = config.learner
        self._seed, self._dropout = config.run.seed, config.lora.dropout if config.lora.rank else 0.0
        self._model_dtype, self._probe_tolerance = config.model.dtype, config.sync.probe_tolerance
        self.device = training_device()
        self.ranks = dist.get_world_size()
        mesh = sharding_mesh(self.device, learner.replicas)
        dtype = getattr(torch, learner.param_dtype)
        policy = Policy(
            config.model.path,
            temperature=config.sampling.temperature,
            head_chunk=learner.head_chunk,
            checkpointing=learner.checkpointed_layers if learner.activation_checkpointing else 0.0,
            compiled=learner.compile,
            dtype=dtype if config.lora.rank else torch.float32,
        ).to(self.device)
        agreement = check_fidelity(policy)
        self.reference: Policy | None = None  # only where some step has a KL penalty, and all weights are trained
        self.anchor_moved = False  # whether the reference is no longer the policy that the run began with
        if config.lora.rank:
            anchored = any(stage.reset_anchor for stage in learner.stages)
            policy.adapters = Adapters(policy.lm, config.lora, config.run.seed, anchored=anchored)
        elif max([learner.kl] if not learner.stages else [stage.kl for stage in learner.stages]) > 0:
            on_cpu = learner.reference_on_cpu and self.device.type == "cuda"
            reference = copy.deepcopy(policy).requires_grad_(False)
            store_weights(reference, dtype)
            self.reference = shard(reference, mesh, dtype, on_cpu=on_cpu)
        self.policy = shard(policy, mesh, dtype)
        self._tell_agreement(agreement)
        trained = [one for one in self.policy.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameter_groups(trained), lr=learner.lr, betas=learner.betas, weight_decay=0.0, fused=True
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
        """Trains on ``batch``; ``number`` counts steps from 0. A collective: every rank passes the same arguments.

        If the loss or the gradient is not finite, the weights stay as they were and ``StepResult.problem`` says why.
        """
        self._apply_stage(number)
        samples, languages = group_samples(batch, self._config)
        lr = self._set_optimizer(number)
        if not samples:  # there is no gradient, and weight decay alone does not make a step
            return StepResult(means={}, by_language={}, fill=0.0, grad_norm=0.0, lr=lr)
        if self._dropout:  # another mask on every rank, and the same ones when the step is trained again
            seeds = np.random.SeedSequence([self._seed, number, dist.get_rank()])
            torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        gradient = self.backward(samples, len(languages))
        sums = gradient.sums
        parameters = list(self.policy.parameters())
        norm = torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
        grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        problem = ""
        if math.isfinite(grad_norm) and sums["loss"].isfinite().all():
            torch.nn.utils.clip_grads_with_norm_(parameters, self._config.max_grad_norm, norm)
            self.optimizer.step()
        else:
            problem = describe_non_finite(samples, gradient.finite, self.policy)
        self.optimizer.zero_grad()
        tokens = sums.pop("tokens")
        means = {name: float(values.sum() / tokens.sum()) for name, values in sums.items()}
        by_language = {name: dict(zip(languages, (v / tokens).tolist(), strict=True)) for name, v in sums.items()}
        return StepResult(
            means={**means, "loss": float(sums["loss"].sum())},
            by_language=by_language,
            fill=sum(map(len, samples)) / gradient.room,
            grad_norm=grad_norm,
            lr=lr,
            problem=problem,
        )

    def _apply_stage(self, number: int) -> None:
        """Sets what the stage of this step changes: the weight of the KL and, if it says so, the reference policy."""
        stage = self._config.stage(number)
        if stage is None:
            return
        self._objective = replace(self._objective, kl=stage.kl)
        begins = number > 0 and self._config.stage(number - 1) is not stage
        if begins and stage.reset_anchor and self.policy.adapters is not None:
            self.policy.adapters.move_anchor()
        elif begins and stage.reset_anchor and self.reference is not None:
            # Drops the gathered copy of the old weights, which FSDP would otherwise go on using.
            self.reference.reshard()  # type: ignore[operator]  # a method that FSDP adds
            with torch.no_grad():
                for anchor, present in zip(self.reference.parameters(), self.policy.parameters(), strict=True):
                    # The shards are copied one by one, because those of the reference may be in host memory.
                    cast(DTensor, anchor).to_local().copy_(cast(DTensor, present).to_local())
            self.anchor_moved = True

    def _set_optimizer(self, number: int) -> float:
        """Sets the optimizer as the configuration says, because a checkpoint brings its own settings. The step's lr."""
        lr = self._config.lr * min(1.0, (number + 1) / max(1, self._config.warmup_steps))
        for group in self.optimizer.param_groups:
            decays = self._config.weight_decay_on == "all" or _is_matrix(group["params"][0])
            group |= {"lr": lr, "betas": self._config.betas}
            group["weight_decay"] = self._config.weight_decay if decays else 0.0
        return lr

    def backward(self, samples: Sequence[Sample], languages: int) -> BatchGradient:
        """Adds the gradient of the whole batch to the parameters. A collective of all ranks.

        Args:
            languages: how many languages ``Sample.language`` indexes.
        """
        lengths = [len(sample) for sample in samples]
        costs = [self.policy.cost(len(s.rollout.prompt_ids), len(s.rollout.response_ids)) for s in samples]
        assigned = assign_micro_batches(lengths, costs, self._config.microbatch_tokens, self.ranks)[dist.get_rank()]
        sums: dict[str, Tensor] = {}
        losses = []
        for batch in prefetch(partial(self._pack, [samples[n] for n in members]) for members in assigned):
            loss_R, statistics = self._accumulate(batch)
            losses.append(loss_R)
            for name, values_R in {**statistics, "loss": loss_R * batch.weight_R}.items():
                table = sums.setdefault(name, torch.zeros(languages, dtype=torch.float64, device=self.device))
                table.index_add_(0, batch.language_R, values_R.double())
        stacked = torch.stack(list(sums.values()))
        dist.all_reduce(stacked)
        return BatchGradient(
            sums=dict(zip(sums, stacked.cpu(), strict=True)),
            finite=finite_samples(assigned, losses, samples),
            room=self.ranks * len(assigned) * self._config.microbatch_tokens,
        )

    @torch.no_grad()
    def probe(self) -> Probe:
        """What the present weights say about a fixed sequence, by which an engine proves its own. A collective."""
        ids = make_probe_sequence(self.policy.vocabulary)
        logp_R = self.policy(self._pack([bare_sample(ids)]), temperature=1.0, with_entropy=False)[0]
        # Without a backward pass FSDP keeps the gathered weights until it is told to drop them.
        self.policy.reshard()  # type: ignore[operator]  # a method that FSDP adds
        tolerance = probe_tolerance(
            self._probe_tolerance,
            exact=self._config.param_dtype == self._model_dtype == "float32",
            layers=self.policy.layers,
            spread=float(logp_R.std()),
        )
        return Probe(ids=ids, logprobs=logp_R.cpu().numpy(), tolerance=tolerance)

    def _tell_agreement(self, agreement: Agreement) -> None:
        """Logs how far the policy is from transformers, also with the dtype and the kernels of training."""
        log.info("log-probabilities agree with those of transformers: %.1e nats apart", agreement.difference)
        dtype = self._config.param_dtype
        if dtype != "float32":
            apart, allowed = rounding_difference(self.policy, agreement, self.device)
            if apart > allowed:
                log.warning(
                    "in %s the log-probabilities are %.2g nats from those of transformers in float32, which is more "
                    "than rounding explains (%.2g): ratios and KL will be noisy; try learner.param_dtype = 'float32'",
                    dtype, apart, allowed,
                )  # fmt: skip

    def _pack(self, samples: list[Sample]) -> MicroBatch:
        return pack(samples).to(self.device)

    def _accumulate(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds the gradient of a micro-batch; returns losses and statistics of its response tokens, each [R]."""
        ref_logp_R = self._reference_logp(batch) if self._objective.kl > 0 else None
        logp_R, entropy_R = self.policy(batch)
        # A batch is one optimizer step, so the policy at its beginning is the one that is differentiated.
        loss_R, statistics = self._objective(
            logp_R, logp_R.detach(), batch.behaviour_logp_R, batch.advantage_R, ref_logp_R
        )
        # FSDP averages gradients over the ranks, and the loss is to be a sum over them: hence the factor.
        (loss_R @ batch.weight_R * self.ranks).backward()
        return loss_R.detach(), {**statistics, "entropy": entropy_R, "tokens": torch.ones_like(entropy_R)}

    @torch.no_grad()
    def _reference_logp(self, batch: MicroBatch) -> Tensor:
        """Log-probabilities of ``batch.targets_R`` under the reference policy, [R] float32. A collective."""
        if self.policy.adapters is None:
            assert self.reference is not None  # there is one wherever a step has a KL penalty
            logp_R: Tensor = self.reference(batch)[0]
            return logp_R
        with self.policy.adapters.reference():
            logp_R = self.policy(batch)[0]
        return logp_R


def parameter_groups(parameters: Iterable[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """The optimizer's two groups: matrices, and the vectors that ``learner.weight_decay_on`` may leave out.

    Vectors are biases and the gains of norms. The groups are the same whatever the setting, so that a checkpoint can be
    read under another one.
    """
    every = list(parameters)
    matrices = [one for one in every if _is_matrix(one)]
    vectors = [one for one in every if not _is_matrix(one)]
    return [{"params": members} for members in (matrices, vectors) if members]


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.dim() >= 2
