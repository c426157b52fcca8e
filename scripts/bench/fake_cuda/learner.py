"""The real ``Trainer`` on a pretended GPU: one step, counted. To be imported after ``shim.load``."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.nn.utils.stateless import _reparametrize_module
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AutoConfig, AutoModelForCausalLM, modeling_utils
from transformers.initialization import no_init_weights

from common.config import Config
from common.wire import Rollout, Score
from learner.groups import Group
from learner.ranks import collective_timeout_s
from learner.train import fused, kernels, logprob, policy, trainer
from learner.train.distributed import sharding_mesh
from learner.train.trainer import Trainer
from scripts.bench.fake_cuda.meter import Counts, Meter
from scripts.bench.fake_cuda.shim import host_waits
from scripts.bench.support.groups import work
from scripts.ops.dry_run import limit_layers

_PROMPT, _ANSWER, _K = 219, 600, 8  # tokens, and answers of a group
_MICRO_BATCHES = 2  # of a step and rank: what happens between two is looked at
_DEVICE = torch.device("cuda", 0)
_PROPAGATES = "_propagate_tensor_meta_non_cached"  # of DTensor: the shape of a result
_ASKS_FOR_DEVICE = "get_torch_context_manager_or_global_device"  # of transformers; makes a tensor that would be real


@dataclass(frozen=True)
class Prediction:
    """What one step of a configuration would take.

    Args:
        parameters: of the model, those that are trained or not.
        tokens: of a micro-batch.
        phases: counts of one micro-batch by phase: ``reference``, ``forward``, ``head``, ``loss``, ``backward``; and of
            the step ``optimizer``.
        state: bytes of CUDA memory before the step but with the optimizer's state: weights, their copies and moments.
        peak: most bytes of CUDA memory during a step.
        peak_at: the operation that reached it.
        waits: where the host waited for the GPU between micro-batches.
        foreign: operations that took tensors of the CPU together with CUDA tensors, with the phase.
        wide: products of float32 matrices, with the phase.
    """

    parameters: int
    tokens: int
    phases: dict[str, Counts]
    state: int
    peak: int
    peak_at: str
    waits: list[str]
    foreign: list[str]
    wide: list[str]

    @property
    def micro_batch(self) -> Counts:
        """A micro-batch from the reference pass to the backward pass."""
        total = Counts()
        for name, counts in self.phases.items():
            if name != "optimizer":
                total.seconds += counts.seconds
                total.kernels += counts.kernels
                total.bytes += counts.bytes
                total.flops += counts.flops
                total.sent += counts.sent
        return total


def predict(config: Config, *, layers: int = 0) -> Prediction:
    """Counts one step of the trainer with this configuration, without weights and without a GPU.

    Args:
        config: ``model.path`` is a directory with ``config.json``, or that file. ``learner.ranks`` ranks are pretended,
            of which this is the first.
        layers: of the model; 0 for as many as it has.
    """
    ranks = config.learner.ranks
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        with _pretended(config, layers):
            return _predict(config, ranks)
    finally:
        dist.destroy_process_group()


def _predict(config: Config, ranks: int) -> Prediction:
    sequences = max(1, config.learner.microbatch_tokens // (_PROMPT + _ANSWER))
    meter = Meter(sequences * (_PROMPT + _ANSWER) ** 2 / 2)
    mesh = sharding_mesh(_DEVICE, config.learner.replicas, collective_timeout_s(config))
    batch = _groups(sequences * _MICRO_BATCHES * ranks)
    with FakeTensorMode(allow_non_fake_inputs=True), meter, _watched(meter):
        with patch.object(trainer, "sharding_mesh", lambda *_: mesh):
            learner = Trainer(config)
        for parameter in learner.policy.parameters():  # makes the optimizer's state, as a step before would have
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        _name_phases(learner, meter)
        state = meter.live
        meter.reset()
        waited = host_waits()
        learner.step(batch, 0)
        meter.enter("end")
    between = [place for phase, place in meter.waits if phase not in ("optimizer", "end")]
    between += ["the host waits for a stream"] * (host_waits() - waited)
    phases = {name: counts for name, counts in meter.phases.items() if name not in ("start", "end")}
    for name, counts in phases.items():
        if name != "optimizer":
            _divide(counts, _MICRO_BATCHES)
    return Prediction(
        parameters=sum(one.numel() for one in learner.policy.parameters()),
        tokens=sequences * (_PROMPT + _ANSWER),
        phases=phases,
        state=state,
        peak=meter.peak,
        peak_at=meter.peak_at,
        waits=between,
        foreign=[f"{count} x {name} in {phase}" for (name, phase), count in meter.foreign.items()],
        wide=[f"{count} x {name} in {phase}" for (name, phase), count in meter.wide.items()],
    )


def _divide(counts: Counts, number: int) -> None:
    counts.seconds /= number
    counts.kernels //= number
    counts.bytes /= number
    counts.flops /= number
    counts.sent /= number
    for name in counts.by_operation:
        counts.by_operation[name] /= number


def _groups(answers: int) -> list[Group]:
    """Groups of answers that are all equally long, with rewards that differ."""
    rng = np.random.default_rng(0)
    rollouts = [
        Rollout(
            language="en",
            prompt_ids=rng.integers(3, 1000, _PROMPT).astype(np.int32),
            response_ids=rng.integers(3, 1000, _ANSWER).astype(np.int32),
            logprobs=np.full(_ANSWER, -1, np.float32),
            versions=np.zeros(_ANSWER, np.int32),
            truncated=False,
            text="",
            score=Score(reward=n % _K / _K, quality=0.5, similarity=0.5, compliant=True, detected="en"),
        )
        for n in range(answers)
    ]
    return [
        Group(work=work(n, ["en"] * len(some)), actor="a", rollouts=some)
        for n, some in enumerate(rollouts[first : first + _K] for first in range(0, answers, _K))
    ]


@contextlib.contextmanager
def _pretended(config: Config, layers: int) -> Iterator[None]:
    """What differs from a real learner: weights are made and not read, and everything runs on this thread."""
    shape: Any = AutoConfig.from_pretrained(config.model.path)
    if layers:
        limit_layers(shape, layers)

    class Made:
        @staticmethod
        def from_pretrained(path: str, *, dtype: torch.dtype, attn_implementation: str, **_: Any) -> Any:
            with _DEVICE, no_init_weights(), patch.object(modeling_utils, _ASKS_FOR_DEVICE, lambda: None):
                made = AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=attn_implementation)
            made.tie_weights()  # which is part of the initialisation that is left out
            return made.eval()

    agree, rotates = fused._agree, fused._rotates_halves

    def agree_with_numbers(module: nn.Module, ours: Callable[[Tensor], Tensor], width: int) -> bool:
        with _disable_current_modes():
            real = {name: torch.rand(one.shape, dtype=one.dtype) for name, one in module.named_parameters()}
            with _reparametrize_module(module, real):
                return agree(module, ours, width)

    def rotates_numbers(theirs: Callable[..., Any]) -> bool:
        with _disable_current_modes():
            return rotates(theirs)

    def one_by_one(calls: Iterable[Callable[[], Any]]) -> Iterator[Any]:
        return (call() for call in calls)  # the modes that count belong to this thread

    with (
        patch.object(policy, "AutoModelForCausalLM", Made),
        patch.object(policy.Policy, "to", lambda self, device: self),  # it is there already
        patch.object(fused, "_agree", agree_with_numbers),
        patch.object(fused, "_rotates_halves", rotates_numbers),
        patch.object(trainer, "check_fidelity", lambda policy: None),  # compares values, as the two that follow
        patch.object(trainer, "compare", lambda policy: None),
        patch.object(trainer, "check_first_layers", lambda make_policy, path, device: None),
        patch.object(Trainer, "_tell_agreement", lambda self, agreement: None),
        patch.object(trainer, "training_device", lambda: _DEVICE),
        patch.object(trainer, "prefetch", one_by_one),
        patch.object(FakeTensorMode, "avoid_device_init", True),  # torch.tensor would ask for a real device
    ):
        yield


@contextlib.contextmanager
def _watched(meter: Meter) -> Iterator[None]:
    """Tells the meter what does not pass through torch's dispatcher."""
    resize, to_list = torch.UntypedStorage.resize_, Tensor.tolist
    propagate = getattr(ShardingPropagator, _PROPAGATES)
    head: Any = logprob._ChunkedLogp
    forward, backward = head.forward, head.backward

    def resized(storage: torch.UntypedStorage, size: int) -> Any:
        result = resize(storage, size)
        meter.resized(storage, size)
        return result

    def listed(tensor: Tensor) -> Any:
        if not isinstance(tensor, FakeTensor):
            return to_list(tensor)
        if tensor.device.type == "cuda":
            meter.waited("a list is read")
        return np.zeros(tuple(tensor.shape)).tolist()

    def in_head(function: Callable[..., Any]) -> Any:
        def counted(*arguments: Any) -> Any:
            with meter.within("head"):
                return function(*arguments)

        return staticmethod(counted)

    def propagated(propagator: ShardingPropagator, *arguments: Any) -> Any:
        with meter.ignoring():  # shapes are computed there, with whole tensors that hold no data on a real GPU either
            return propagate(propagator, *arguments)

    def generated(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            # The maximum and the sum are computed in one pass (Inductor's online softmax), and the entropy in another.
            has_entropy = function is logprob._score and arguments[4]
            with meter.one_kernel(function.__name__, 2 if has_entropy else 1):
                return function(*arguments)

        return called

    with (
        patch.object(kernels, "generated_kernel", generated),
        patch.object(ShardingPropagator, _PROPAGATES, propagated),
        patch.object(torch.UntypedStorage, "resize_", resized),
        patch.object(Tensor, "tolist", listed),
        patch.object(head, "forward", in_head(forward)),
        patch.object(head, "backward", in_head(backward)),
    ):
        yield


def _name_phases(learner: Trainer, meter: Meter) -> None:
    """Has the meter count by phases, which begin where the parts of a step do."""
    if learner.reference.copy is not None:
        learner.reference.copy.register_forward_pre_hook(lambda *_: meter.enter("reference"))
    learner.policy.register_forward_pre_hook(lambda *_: meter.enter("forward"))
    learner.policy.register_forward_hook(lambda *_: meter.enter("loss"))
    accumulate, backward = learner._accumulate, Tensor.backward
    count = itertools.count(1)

    def accumulated(batch: Any, old_logp_R: Any) -> Any:
        def backward_in_phase(tensor: Tensor, *arguments: Any, **named: Any) -> None:
            meter.enter("backward")
            backward(tensor, *arguments, **named)  # type: ignore[no-untyped-call]
            meter.enter("loss")

        with patch.object(Tensor, "backward", backward_in_phase):
            result = accumulate(batch, old_logp_R)
        if next(count) % _MICRO_BATCHES == 0:  # the last one of a step
            meter.enter("optimizer")
        return result

    learner._accumulate = accumulated  # type: ignore[method-assign]
