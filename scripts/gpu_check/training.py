"""The real trainer on one GPU: its speed and memory with each option, and its checkpoints."""

from __future__ import annotations

import contextlib
import json
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from scripts.gpu_check.figures import Figure, Sizes

_H100_FLOPS = 989e12  # bfloat16, dense; of an H200, too
_SAME_LOSS = 0.02  # relative, between options that differ in rounding alone


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    """The default process group of a learner with one rank."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store: Any = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def make_model(sizes: Sizes, layers: int = 0) -> Path:
    """A random model as a Hugging Face directory, in bfloat16; made on the GPU where there is one."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    from scripts.gpu_check.numerics import device_of_checks

    shape = {**sizes.model, **({"num_hidden_layers": layers} if layers else {})}
    path = sizes.scratch / f"model-{shape['num_hidden_layers']}"
    if not (path / "config.json").exists():
        torch.manual_seed(0)
        with device_of_checks():
            config = Qwen2Config(tie_word_embeddings=True, max_position_embeddings=4096, **shape)  # type: ignore[arg-type]
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(path)
    return path


def make_config(model: Path, sizes: Sizes, *flags: str) -> Any:
    """The configuration of a run with this model, with a KL penalty."""
    from common.config import load

    lengths = ["--data.max_prompt_tokens", "16", "--sampling.max_new_tokens", "32"] if sizes.tiny else []
    dtype = ["--learner.param_dtype", "float32"] if sizes.tiny else []
    own = ["--model.path", str(model), "--learner.microbatch_tokens", str(sizes.tokens), "--learner.lr", "1e-4"]
    return load([*own, *lengths, *dtype, *flags])


def make_groups(sizes: Sizes, micro_batches: int) -> list[Any]:
    """Groups of random answers that fill so many micro-batches."""
    from common.wire import Question, Rollout, Score, Work
    from learner.groups import Group

    prompt, answer = (8, 24) if sizes.tiny else (219, 600)
    rng, vocabulary = np.random.default_rng(0), sizes.model["vocab_size"]
    count = micro_batches * (sizes.tokens // (prompt + answer))
    rollouts = [
        Rollout(
            language="en",
            prompt_ids=rng.integers(3, vocabulary, prompt).astype(np.int32),
            response_ids=rng.integers(3, vocabulary, answer).astype(np.int32),
            logprobs=np.full(answer, -math.log(vocabulary), np.float32),
            versions=np.zeros(answer, np.int32),
            truncated=False,
            text="",
            score=Score(reward=n % 2, quality=n % 2, similarity=0.5, compliant=True, detected="en"),
        )
        for n in range(count)
    ]
    question = Question(index=0, messages=[], reference="", language="en", topics=[], regions=[])
    groups = []
    for number, first in enumerate(range(0, count, 4)):
        some = rollouts[first : first + 4]
        work = Work(
            id=f"train-{number}", question=question, languages=["en"] * len(some), propensities=[1.0] * len(some),
            router_version=0, policy_version=0, greedy=False,
        )  # fmt: skip
        groups.append(Group(work=work, actor="check", rollouts=some))
    return groups


def check_trainer(sizes: Sizes) -> list[Figure]:
    """A step with full micro-batches: with checkpointing, without, and compiled; all must have the same loss."""
    variants = {
        "checkpointing": ["--learner.activation_checkpointing", "true"],
        "half of the layers checkpointed": [
            "--learner.activation_checkpointing", "true", "--learner.checkpointed_layers", "0.5",
        ],
        "no checkpointing": [],
    }  # fmt: skip
    if not sizes.tiny:
        variants["no checkpointing, compiled"] = ["--learner.compile", "true", "--learner.keep_gathered", "true"]
    found, losses, norms = list[Figure](), list[float](), list[float]()
    with one_rank():
        for name, flags in variants.items():
            figures, loss, norm = _train(sizes, flags)
            found += [Figure(f"{name}: {one.name}", one.value, one.unit, one.ok, one.goal) for one in figures]
            losses.append(loss)
            norms.append(norm)
    for name, values in (("loss", losses), ("gradient norm", norms)):
        apart = (max(values) - min(values)) / max(abs(values[0]), 1e-6)
        ok = math.isfinite(apart) and apart < _SAME_LOSS
        found.append(Figure(f"difference of the {name} between these", apart, "relative", ok, f"< {_SAME_LOSS}"))
    return found


def _train(sizes: Sizes, flags: list[str]) -> tuple[list[Figure], float, float]:
    from learner.train.trainer import Trainer
    from scripts.gpu_check.numerics import device_of_checks
    from scripts.ops.dry_run import ModelShape, peak_memory

    model, device = make_model(sizes), device_of_checks()
    config, batch = make_config(model, sizes, *flags), make_groups(sizes, 2)
    trainer = Trainer(config)
    with _host_waits(trainer, device) as waits:
        first = trainer.step(batch, 0)
    trainer.step(batch, 1)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    last = trainer.step(batch, 2)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    tokens = sum(len(r.prompt_ids) + len(r.response_ids) for group in batch for r in group.rollouts)
    parameters = sum(one.numel() for one in trainer.policy.parameters())
    found = [
        Figure("step of two micro-batches", seconds * 1e3, "ms"),
        Figure("throughput", tokens / seconds, "tokens/s"),
        Figure("problems", first.problem or last.problem or "none", "", not (first.problem or last.problem), "none"),
        Figure("waits for the GPU within micro-batches", waits[0], "", waits[0] == 0, "0"),
    ]
    if device.type == "cuda":
        peak, expected = torch.cuda.max_memory_allocated(), peak_memory(ModelShape(str(model)), config)
        found.append(Figure("peak memory", peak / 1e9, "GB"))
        found.append(Figure("peak memory by dry_run", expected / 1e9, "GB"))
        if torch.cuda.get_device_capability() == (9, 0):
            found.append(Figure("MFU (6N), optimizer included", 600 * parameters * tokens / seconds / _H100_FLOPS, "%"))
    means = first.means["loss"], first.grad_norm
    del trainer
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found, *means


@contextlib.contextmanager
def _host_waits(trainer: Any, device: torch.device) -> Iterator[list[int]]:
    """Counts how often the host waits for the GPU while a micro-batch is being computed."""
    accumulate, count = trainer._accumulate, [0]

    def watched(batch: Any, old_logp_R: Any) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return accumulate(batch, old_logp_R)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                count[0] += sum("synchroniz" in str(one.message) for one in caught)

    if device.type == "cuda":
        trainer._accumulate = watched
    try:
        yield count
    finally:
        trainer._accumulate = accumulate


def check_checkpoint(sizes: Sizes) -> list[Figure]:
    """A run that is saved and resumed goes on as one that is not interrupted, and its export loads."""
    from transformers import AutoModelForCausalLM

    from learner.checkpoint import Checkpoints
    from learner.export import export
    from learner.train.trainer import Trainer

    config, batch = make_config(make_model(sizes, layers=2), sizes), make_groups(sizes, 1)
    with one_rank():
        trainer = Trainer(config)
        trainer.step(batch, 0)
        checkpoints = Checkpoints(sizes.scratch / "checkpoints", kept=1)
        checkpoints.save(trainer.policy, trainer.optimizer, 1, {"step": 1})
        checkpoints.wait()
        unbroken = trainer.step(batch, 1)
        resumed = Trainer(config)
        latest = checkpoints.latest()
        assert latest is not None
        checkpoints.load(latest.path, resumed.policy, resumed.optimizer)
        again = resumed.step(batch, 1)
        export(resumed.policy, None, sizes.scratch / "export")
        weights = dict(resumed.policy.lm.state_dict())
        loaded = AutoModelForCausalLM.from_pretrained(sizes.scratch / "export", dtype=torch.float32)
        same = all(torch.equal(weights[n].full_tensor().cpu(), p.detach()) for n, p in loaded.named_parameters())
    apart = abs(again.means["loss"] - unbroken.means["loss"]) / max(abs(unbroken.means["loss"]), 1e-6)
    step = json.loads((latest.path / "run.json").read_text())["step"]
    return [
        Figure("difference of the loss after resuming", apart, "relative", apart < 1e-3, "< 0.001"),
        Figure("step of the checkpoint", step, "", step == 1, "1"),
        Figure("weights of the export", "equal" if same else "differ", "", same, "equal"),
    ]
