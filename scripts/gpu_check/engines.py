"""An SGLang engine on two GPUs: it starts, generates, takes weights through a process group, and proves them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import time
from collections import deque
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from scripts.gpu_check.figures import Figure, Sizes, Skipped
from scripts.gpu_check.numerics import device_of_checks
from scripts.gpu_check.training import make_config, make_model, one_rank

_HOST, _GROUP = "127.0.0.1", "lrpo-gpu-check"
_RANKS = 2  # of the engine
_UPDATES = 2  # the second one finds the group connected
_NOISE = 0.5  # added to every matrix, as a share of its deviation
_START_S, _PATIENCE_S = 180.0, 60.0  # of the engine's start, and of each of its calls
_TINY_S = 900.0  # of both on a CPU, which may be busy


def check_tensor_parallel(sizes: Sizes) -> list[Figure]:
    """The learner's leader and the actor's client give an engine with ``--tp 2`` new weights, twice.

    With three GPUs the group is NCCL's. Two GPUs are both the engine's, and NCCL does not allow the learner to share
    one of them with it; then the group is gloo's, as with ``sync.backend = "gloo"``.
    """
    if find_spec("sglang") is None:
        raise Skipped("the package sglang is not installed")
    device = device_of_checks()
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if gpus == 1:
        raise Skipped("it needs two GPUs")
    from common.nccl import set_nccl_defaults
    from learner.train.trainer import Trainer

    patience_s = _TINY_S if sizes.tiny else _PATIENCE_S
    arguments = f"tp = {_RANKS}, max_total_tokens = 16384" + ("" if gpus == 0 else ", mem_fraction_static = 0.4")
    config = make_config(
        make_model(sizes), sizes,
        "--actor.engine_args", f"{{{arguments}}}", "--actor.groups_in_flight", "1",
        "--actor.start_timeout_s", str(_TINY_S if sizes.tiny else _START_S), "--sync.timeout_s", str(patience_s),
        "--run.dir", str(sizes.scratch / "run"), "--model.dtype", "float32" if sizes.tiny else "bfloat16",
        "--sync.backend", "nccl" if gpus > _RANKS else "gloo", "--sync.bucket_mb", "0.05" if sizes.tiny else "256",
    )  # fmt: skip
    set_nccl_defaults()
    with one_rank():
        trainer = Trainer(config)
        with _environment_of_engine(gpus):
            return asyncio.run(_use(config, trainer, sizes))


async def _use(config: Any, trainer: Any, sizes: Sizes) -> list[Figure]:
    from actor.engine.readiness import make_http_session
    from actor.engine.start import open_engine
    from learner.weights.buckets import bytes_of

    generator = torch.Generator(trainer.device).manual_seed(0)
    patience_s, begin = config.sync.timeout_s, time.monotonic()
    async with make_http_session() as http, open_engine(config, "gpu-check", http) as (engine, _):
        found = [
            Figure("start of the engine", time.monotonic() - begin, "s"),
            Figure("its tensor-parallel ranks", engine.ranks, "", engine.ranks == _RANKS, str(_RANKS)),
            await _answers(engine, sizes),
        ]
        probe = trainer.probe()
        off = await engine.measure_probe_error(probe, patience_s)
        found.append(_agreement("log-probabilities with the weights of the checkpoint", off, probe))
        sender = _Sender(config, trainer)
        size = sum(map(bytes_of, sender.buckets))
        for version in range(1, _UPDATES + 1):
            _disturb(trainer.policy, generator)
            probe = trainer.probe()
            old = await engine.measure_probe_error(probe, patience_s)
            begin = time.monotonic()
            await sender.update(engine, version, probe)
            seconds = time.monotonic() - begin
            off = await engine.measure_probe_error(probe, patience_s)
            found += [
                Figure(
                    f"update {version}: log-probabilities before it", old, "nats", old > probe.tolerance,
                    f"> {probe.tolerance:.3g}, or the proof proves nothing",
                ),
                _agreement(f"update {version}: log-probabilities after it", off, probe),
                Figure(f"update {version}: {size / 1e9:.3g} GB by {sender.backend}, with the pause", seconds, "s"),
            ]  # fmt: skip
        return [*found, await _answers(engine, sizes, _UPDATES)]


def _agreement(name: str, off: float, probe: Any) -> Figure:
    return Figure(name, off, "nats", off <= probe.tolerance, f"<= {probe.tolerance:.3g}")


async def _answers(engine: Any, sizes: Sizes, version: int = 0) -> Figure:
    """Generates, and looks at lengths, log-probabilities and versions."""
    count, tokens = 8, 16 if sizes.tiny else 64
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, sizes.model["vocab_size"], 20 + n).tolist() for n in range(count)]
    answers = await engine.generate(prompts, {"temperature": 1.0, "max_new_tokens": tokens, "ignore_eos": True})
    right = sum(
        len(one.ids) == tokens and bool((one.logprobs <= 0).all()) and set(one.versions.tolist()) == {version}
        for one in answers
    )
    return Figure(f"answers of version {version} with log-probabilities", right, "", right == count, str(count))


def _disturb(policy: torch.nn.Module, generator: torch.Generator) -> None:
    """Changes every matrix of the policy, so much that its log-probabilities are others."""
    with torch.no_grad():
        for parameter in policy.parameters():
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if local.dim() > 1:
                noise = torch.randn(local.shape, generator=generator, device=local.device, dtype=local.dtype)
                local.add_(noise, alpha=_NOISE * float(local.std()))


class _Sender:
    """Rank 0 of a learner, as far as one engine is concerned, with the real leader."""

    def __init__(self, config: Any, trainer: Any) -> None:
        from learner.gather_action import published_buckets
        from learner.weights.deadlines import round_deadlines
        from learner.weights.leader import Leader, group_backend
        from learner.weights.process_group import GroupStore

        self._trainer, self._timeout_s = trainer, config.sync.timeout_s
        self.buckets = published_buckets(config, trainer)
        self.backend = group_backend(config.sync, trainer.device)
        self._reports: queue.Queue[Any] = queue.Queue()
        self._store = GroupStore(_HOST, 0, self._timeout_s)
        self._leader = Leader(self.buckets, self.backend, trainer.device, self._reports.put)
        self._deadlines = round_deadlines(config.sync, 1, 0, 0, 0.0, float("inf"))

    async def update(self, engine: Any, version: int, probe: Any) -> None:
        """Gives the engine the policy's weights, in the first update with all that comes before.

        Raises:
            RuntimeError: the leader has given the engine up.
        """
        from common import wire
        from learner.weights.buckets import smallest_tensor
        from learner.weights.leader_messages import GroupFormed, RoundPlan, SendWeights, WeightsSent

        connects = version == 1
        if connects:
            await asyncio.gather(self._join(engine), asyncio.to_thread(self._expect, GroupFormed))
        await engine.pause(self._timeout_s, 0.0)
        plan = RoundPlan(version, self._deadlines, {0: {_GROUP: self._deadlines.first_bucket_s(0.0)}}, [])
        self._leader.begin_round(plan, 0)
        self._leader.obey(SendWeights(_GROUP, version, connects))
        buckets = [*([smallest_tensor(self.buckets)] if connects else []), *self.buckets]
        order = wire.Receive(
            group=_GROUP, path="", version=version, buckets=buckets, probe=probe, timeout_s=self._timeout_s
        )
        await asyncio.gather(
            engine.receive_weights(order),
            asyncio.to_thread(self._gather),
            asyncio.to_thread(self._expect, WeightsSent),
        )
        await engine.resume(self._timeout_s)

    async def _join(self, engine: Any) -> None:
        from common import wire
        from common.nccl import nccl_settings
        from learner.weights.leader_messages import FormGroup

        join = wire.Join(
            group=_GROUP, host=self._store.host, port=self._store.port, backend=self.backend,
            world=1 + engine.ranks, timeout_s=self._timeout_s, nccl=nccl_settings(),
        )  # fmt: skip
        self._leader.obey(FormGroup(join.group, join.backend, join.host, join.port, join.world, join.timeout_s))
        await engine.join_group(join)

    def _gather(self) -> None:
        from learner.train.policy import full_weights

        weights = full_weights(self._trainer.policy)
        try:
            self._leader.gather(weights)
        finally:
            deque(weights, maxlen=0)  # to its end, which drops what was gathered last

    def _expect(self, kind: type) -> None:
        try:
            report = self._reports.get(timeout=2 * self._timeout_s)
        except queue.Empty:
            raise RuntimeError(f"the leader did not report {kind.__name__}") from None
        if not isinstance(report, kind):
            raise RuntimeError(getattr(report, "reason", None) or getattr(report, "error", None) or repr(report))


@contextlib.contextmanager
def _environment_of_engine(gpus: int) -> Iterator[None]:
    """Gives an engine that is started now the GPUs after this process's own, where there are enough.

    Args:
        gpus: how many there are; 0 for a CPU.
    """
    if gpus:
        from common.gpus import visible_gpus

        changed = {"CUDA_VISIBLE_DEVICES": ",".join(visible_gpus()[-_RANKS:])}
    else:
        changed = {"SGLANG_CPU_OMP_THREADS_BIND": "|".join(map(str, range(_RANKS)))}  # a core for each rank
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
