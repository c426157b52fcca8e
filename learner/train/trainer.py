"""A training step on a batch of prompt groups, of one or more optimizer steps, executed alike on every rank."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from common.config import Config, LearnerConfig
from common.wire import Probe
from learner.groups import Group, StepResult
from learner.ranks import collective_timeout_s
from learner.train.distributed import sharding_mesh, training_device
from learner.train.fidelity import Agreement, check_fidelity, check_first_layers, compare, rounding_difference
from learner.train.gradient_noise import noise_share
from learner.train.lora import Adapters
from learner.train.non_finite import describe_non_finite, finite_samples
from learner.train.objective import Objective
from learner.train.optimizer import make_optimizer, set_rates, take_step
from learner.train.packing import MicroBatch, Sample, assign_micro_batches, bare_sample, pack
from learner.train.policy import Policy, drop_gathered, shard
from learner.train.prefetch import prefetch
from learner.train.reference import Reference
from learner.train.samples import group_samples
from learner.train.schedules import learning_rate
from learner.train.statistics import Axes, StepSums, make_axes
from learner.weights.probe import make_probe_sequence, probe_tolerance

log = logging.getLogger("learner.trainer")


@dataclass
class MiniBatch:
    """What one optimizer step trains on, and how it is divided.

    Args:
        samples: those of all ranks.
        assigned: the indices of the samples in each micro-batch of this rank.
        old_logp: log-probabilities of each of these micro-batches [R] under the policy at the beginning of the step;
            empty before they are known.
    """

    samples: Sequence[Sample]
    assigned: Sequence[Sequence[int]]
    old_logp: list[Tensor] = field(default_factory=list)

    def micro_batches(self) -> list[list[Sample]]:
        """The samples of each micro-batch of this rank."""
        return [[self.samples[n] for n in members] for members in self.assigned]


@dataclass(frozen=True)
class BatchGradient:
    """What came of the backward passes of a mini-batch, whose gradient has been added to the parameters.

    Args:
        sums: sums over the response tokens of all ranks by statistic, each a table [languages, lags, actors] float64:
            ``loss`` with the weights of the tokens, ``tokens`` their number, ``entropy``, and the statistics of
            ``Objective``.
        finite: [number of samples] int32, 0 where this rank saw a loss that is not finite, else 1.
        room: tokens that the micro-batches of all ranks have room for.
    """

    sums: dict[str, Tensor]
    finite: Tensor
    room: int


class Trainer:
    """Owns the policy, the reference policy and the optimizer.

    The default process group must be set up. Nothing in a step is random but ``lora.dropout``, whose seed is that of
    the run and the step. The loss is a mean over the whole mini-batch, that is over all its micro-batches of all ranks
    together.

    Args:
        reference_moves: whether the checkpoint that the run goes on from has adapters of a reference policy, which this
            configuration alone would not need.

    Raises:
        FatalError: the model cannot be loaded, its log-probabilities are not those of transformers,
            learner.replicas does not divide the number of ranks, or the package of the optimizer is not installed.
    """

    def __init__(self, config: Config, *, reference_moves: bool = False) -> None:
        learner = self._config = config.learner
        self._seed, self._dropout = config.run.seed, config.lora.dropout if config.lora.rank else 0.0
        self._model_dtype, self._probe_tolerance = config.model.dtype, config.sync.probe_tolerance
        self.device = training_device()
        self.ranks = dist.get_world_size()
        mesh = sharding_mesh(self.device, learner.replicas, collective_timeout_s(config))
        dtype = getattr(torch, learner.param_dtype)
        make_policy = partial(
            Policy,
            config.model.path,
            temperature=config.sampling.temperature,
            head_chunk=learner.head_chunk,
            checkpointing=learner.checkpointed_layers if learner.activation_checkpointing else 0.0,
            compiled=learner.compile,
        )
        in_float32 = not config.lora.rank or dtype == torch.float32
        if not in_float32:
            check_first_layers(make_policy, config.model.path, self.device)
        policy = make_policy(dtype=torch.float32 if in_float32 else dtype).to(self.device)
        agreement = check_fidelity(policy) if in_float32 else compare(policy)
        if config.lora.rank:
            moves = reference_moves or any(stage.reset_anchor for stage in learner.stages)
            policy.adapters = Adapters(policy.lm, config.lora, config.run.seed, reference_moves=moves)
        reference_on_cpu = learner.reference_on_cpu and self.device.type == "cuda"
        self.reference = Reference(learner, policy, mesh, on_cpu=reference_on_cpu)
        on_cpu = learner.optimizer_on_cpu and self.device.type == "cuda"
        self.policy = shard(policy, mesh, dtype, on_cpu=on_cpu, stays_gathered=learner.keep_gathered)
        self._tell_agreement(agreement)
        trained = [one for one in self.policy.parameters() if one.requires_grad]
        self.optimizer = make_optimizer(trained, learner)
        self._objective = make_objective(learner)

    def step(self, batch: Sequence[Group], number: int) -> StepResult:
        """Trains on ``batch``; ``number`` counts steps from 0. A collective: every rank passes the same arguments.

        Where the loss or the gradient of an optimizer step is not finite, that one is left out, also of the means, and
        ``StepResult.problem`` says why.
        """
        self.reference.begin_step(number)
        if (stage := self._config.stage(number)) is not None:
            self._objective = replace(self._objective, kl=stage.kl)
        samples, languages = group_samples(batch, self._config)
        lr = self._set_optimizer(number)
        if not samples:  # there is no gradient, and weight decay alone does not make a step
            return StepResult(means={}, by_language={}, fill=0.0, grad_norm=0.0, lr=lr)
        if self._dropout:  # another mask on every rank, and the same ones when the step is trained again
            seeds = np.random.SeedSequence([self._seed, number, dist.get_rank()])
            torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        axes = make_axes(samples, batch, languages, number)
        minibatches = self._minibatches(samples)
        group_norms = self._group_norms(minibatches[0], axes) if self._measures_noise(number) else []
        sums = StepSums()
        norms, problems, room = list[float](), list[str](), 0  # the norms of all optimizer steps
        norms_taken = list[float]()  # of those that were taken
        taken = set[int]()  # groups of which some optimizer step was taken
        for count, minibatch in enumerate(minibatches * self._config.passes):
            # Against the behaviour policy nobody keeps the log-probabilities under the policy that the step began with,
            # so that the agreement with the engines shows in the first optimizer step alone.
            agreement = count == 0 or self._config.proximal == "step"
            gradient = self.backward(minibatch, axes)
            grad_norm, problem = self._update(minibatch, gradient)
            norms.append(grad_norm)
            room += gradient.room
            if problem:
                problems.append(problem)
            else:
                norms_taken.append(grad_norm)
                taken |= {sample.group for sample in minibatch.samples}
                sums.add(gradient.sums, agreement=agreement)
        shown = norms_taken or norms  # a step of which nothing was taken shows what was wrong with it
        return StepResult(
            means=sums.means() | ({"loss": sums.total("loss") / len(norms_taken)} if norms_taken else {}),
            by_language=sums.means_along(0, axes.languages),
            by_lag=sums.means_along(1, range(axes.lags)),
            by_actor=sums.means_along(2, axes.actors),
            fill=sum(map(len, samples)) * self._config.passes / room,
            grad_norm=sum(shown) / len(shown),
            gradient_noise=noise_share(group_norms, norms[0]),
            lr=lr,
            problem=problems[0] if problems else "",
            skipped=frozenset({sample.group for sample in samples} - taken),
            optimizer_steps=len(norms),
            left_out=len(problems),
        )

    def divide(self, samples: Sequence[Sample]) -> MiniBatch:
        """Divides the samples of an optimizer step into micro-batches for every rank."""
        lengths = [len(sample) for sample in samples]
        costs = [self.policy.cost(len(s.rollout.prompt_ids), len(s.rollout.response_ids)) for s in samples]
        assigned = assign_micro_batches(lengths, costs, self._config.microbatch_tokens, self.ranks)
        return MiniBatch(samples, assigned[dist.get_rank()])

    def _minibatches(self, samples: Sequence[Sample]) -> list[MiniBatch]:
        """The mini-batches of a step, with what their ratios to the step's first policy need.

        The log-probabilities under that policy have to be computed before the first optimizer step changes the weights.
        The first mini-batch gets them from its own forward pass, before which nothing has changed. A ratio to the
        behaviour policy needs none.
        """
        count = max(sample.minibatch for sample in samples) + 1
        found = [self.divide([one for one in samples if one.minibatch == n]) for n in range(count)]
        if self._config.proximal == "step":
            for minibatch in found[1:]:
                minibatch.old_logp = self._logp(minibatch)
        return found

    @torch.no_grad()
    def _logp(self, minibatch: MiniBatch) -> list[Tensor]:
        """Log-probabilities under the present policy, of each micro-batch of this rank [R]. A collective."""
        packed = prefetch(partial(self._pack, some) for some in minibatch.micro_batches())
        found = [self.policy(batch, with_entropy=False)[0] for batch in packed]
        drop_gathered(self.policy)
        return found

    def _update(self, minibatch: MiniBatch, gradient: BatchGradient) -> tuple[float, str]:
        """Takes the optimizer step, unless something is not finite.

        Returns:
            The norm of the gradient before it is clipped, and which loss or gradient is not finite, else "".
        """
        norm = self._gradient_norm()
        grad_norm, parameters = float(norm), list(self.policy.parameters())
        problem = ""
        if math.isfinite(grad_norm) and gradient.sums["loss"].isfinite().all():
            torch.nn.utils.clip_grads_with_norm_(parameters, self._config.max_grad_norm, norm)
            take_step(self.optimizer)
        else:
            problem = describe_non_finite(minibatch.samples, gradient.finite, self.policy)
        self.optimizer.zero_grad()
        return grad_norm, problem

    def _gradient_norm(self) -> Tensor:
        """The norm of the gradient of all ranks, a scalar. A collective."""
        gradients = [one.grad for one in self.policy.parameters() if one.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _measures_noise(self, number: int) -> bool:
        every = self._config.gradient_noise_every
        return every > 0 and number % every == 0

    def _group_norms(self, minibatch: MiniBatch, axes: Axes) -> list[float]:
        """The norm of what each prompt group adds to the gradient of a mini-batch [groups]. A collective.

        With ``lora.dropout`` the masks are others than those of the mini-batch, whose noise is then counted as well.
        Takes as long as the forward and backward passes of the mini-batch, or longer where micro-batches hold several
        groups. The gradient is empty before and after.
        """
        found = []
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):  # the step's masks stay
            for group in sorted({sample.group for sample in minibatch.samples}):
                self.backward(self.divide([one for one in minibatch.samples if one.group == group]), axes)
                found.append(float(self._gradient_norm()))
                self.optimizer.zero_grad()
        return found

    def _set_optimizer(self, number: int) -> float:
        """Sets the optimizer as the configuration says. The learning rate of the step."""
        config = self._config
        lr = learning_rate(
            number, lr=config.lr, schedule=config.lr_schedule, warmup_steps=config.warmup_steps, steps=config.steps,
            min_lr=config.min_lr,
        )  # fmt: skip
        set_rates(self.optimizer, lr, config)
        return lr

    def backward(self, minibatch: MiniBatch, axes: Axes) -> BatchGradient:
        """Adds the gradient of a whole mini-batch to the parameters. A collective of all ranks.

        Keeps the log-probabilities of its forward passes in ``minibatch.old_logp`` where it has none.
        """
        names, total = list[str](), torch.zeros(0)
        losses, old_logp = list[Tensor](), list[Tensor]()
        packed = prefetch(partial(self._pack, some) for some in minibatch.micro_batches())
        for number, batch in enumerate(packed):
            known_R = minibatch.old_logp[number] if minibatch.old_logp else None
            loss_R, logp_R, statistics = self._accumulate(batch, known_R)
            losses.append(loss_R)
            old_logp.append(logp_R)
            statistics = {**statistics, "loss": loss_R * batch.weight_R}
            if not names:
                names = list(statistics)
                total = torch.zeros(len(names), math.prod(axes.shape), dtype=torch.float64, device=self.device)
            total.index_add_(1, axes.cells(batch), torch.stack(list(statistics.values())).double())
        if not minibatch.old_logp:
            minibatch.old_logp = old_logp
        dist.all_reduce(total)
        return BatchGradient(
            sums={name: table.reshape(axes.shape) for name, table in zip(names, total.cpu(), strict=True)},
            finite=finite_samples(minibatch.assigned, losses, minibatch.samples),
            room=self.ranks * len(minibatch.assigned) * self._config.microbatch_tokens,
        )

    @torch.no_grad()
    def probe(self) -> Probe:
        """What the present weights say about a fixed sequence, by which an engine proves its own. A collective."""
        ids = make_probe_sequence(self.policy.vocabulary)
        logp_R = self.policy(self._pack([bare_sample(ids)]), temperature=1.0, with_entropy=False)[0]
        drop_gathered(self.policy)
        tolerance = probe_tolerance(
            self._probe_tolerance,
            exact=self._config.param_dtype == self._model_dtype == "float32",
            layers=self.policy.layers,
            spread=float(logp_R.std()),
        )
        return Probe(ids=ids, logprobs=logp_R.cpu().numpy(), tolerance=tolerance)

    def _tell_agreement(self, agreement: Agreement) -> None:
        """Logs how far the policy is from transformers, also with the dtype and the kernels of training."""
        theirs, dtype = str(agreement.dtype).removeprefix("torch."), self._config.param_dtype
        log.info("log-probabilities in %s: %.1e nats from those of transformers", theirs, agreement.difference)
        if dtype != "float32":
            apart, allowed = rounding_difference(self.policy, agreement, self.device)
            if not apart <= allowed:  # also where it is not a number
                log.warning(
                    "in %s the log-probabilities are %.2g nats from those of transformers in %s, which is more than "
                    "the rounding of most models makes (%.2g): ratios and KL will be noisy; try "
                    "learner.param_dtype = 'float32'", dtype, apart, theirs, allowed,
                )  # fmt: skip

    def _pack(self, samples: list[Sample]) -> MicroBatch:
        return pack(samples).to(self.device)

    def _accumulate(self, batch: MicroBatch, old_logp_R: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Adds the gradient of a micro-batch.

        Args:
            old_logp_R: log-probabilities under the policy at the beginning of the step; None: it is the present one.

        Returns:
            The losses, log-probabilities and statistics of its response tokens, each [R].
        """
        ref_logp_R = self.reference.logp(batch) if self._objective.kl > 0 else None
        logp_R, entropy_R = self.policy(batch)
        loss_R, statistics = self._objective(
            logp_R,
            logp_R.detach() if old_logp_R is None else old_logp_R,
            batch.behaviour_logp_R,
            batch.advantage_R,
            ref_logp_R,
            entropy_R=entropy_R,
            sequence_R=batch.sequence_R,
        )
        # FSDP averages gradients over the ranks, and the loss is to be a sum over them: hence the factor.
        (loss_R @ batch.weight_R * self.ranks).backward()
        more = {"entropy": entropy_R.detach(), "tokens": torch.ones_like(entropy_R)}
        return loss_R.detach(), logp_R.detach(), {**statistics, **more}


def make_objective(config: LearnerConfig) -> Objective:
    """The loss of a token that the configuration describes, but for what a stage changes of it."""
    return Objective(
        loss=config.loss,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        proximal=config.proximal,
        kl=config.kl,
        kl_form=config.kl_form,
        kl_importance=config.kl_importance,
        entropy_bonus=config.entropy_bonus,
        correction=config.importance,
        importance_cap=config.importance_cap,
        importance_floor=config.importance_floor,
    )
