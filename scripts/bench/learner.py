"""``python -m scripts.bench.learner [--json]``: a learner step against a padded Hugging Face step, on this machine.

Both train the same groups on the same random model with as many threads. Lengths are such that the mean answer is a
quarter of the longest. The padded step is TRL's: prompts padded left and answers right to the longest of the step,
then cut into equal numbers of sequences; logits of every answer position (``full head``, TRL until 1.x), or the head
in chunks on real tokens alone (``chunked head``, as newer TRL does).

The last rows are what the processor does for a step of long answers before a GPU has something to compute, and for each
micro-batch while the GPU computes the one before. Nothing is computed there, so they hold for any model.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.distributed as dist
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from common.config import Config, load
from learner.groups import Group
from learner.train.logprob import chunked_logp
from learner.train.packing import MicroBatch, Sample, assign_micro_batches, pack
from learner.train.samples import group_samples
from learner.train.statistics import make_axes
from learner.train.trainer import Trainer
from scripts.bench.queue import make_rollout
from scripts.bench.support.groups import work
from scripts.bench.table import Json, Row, run, timed
from scripts.ops.command_line import command

_LONGEST, _K, _GROUPS, _VOCABULARY, _SEQUENCES = 256, 8, 4, 4096, 8
_LONG_GROUPS, _LONG, _LONG_PROMPT, _LONG_RANKS, _LONG_BUDGET = 16, (2048, 4096), 256, 4, 16_384  # tokens
_HEAD_ROWS, _HEAD_WIDTH, _HEAD_VOCABULARY, _HEAD_CHUNK = 1024, 128, 151_936, 128


def make_model(path: Path) -> None:
    """Layers and head in the proportion of Qwen2.5-1.5B, about 5 to 1."""
    shape = Qwen3Config(
        hidden_size=192, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=3, num_key_value_heads=1,
        head_dim=64, vocab_size=_VOCABULARY, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(shape).save_pretrained(path)


def make_groups(seed: int) -> list[Group]:
    """Groups whose answers have a long tail of lengths: mean a quarter of the longest, which occurs."""
    rng = np.random.default_rng(seed)
    lengths = rng.gamma(1.5, size=(_GROUPS, _K))
    lengths = (lengths / lengths.max() * _LONGEST).clip(1)
    while abs(lengths.mean() - _LONGEST / 4) > 0.5:
        short = lengths < _LONGEST
        lengths[short] = (lengths[short] * (_LONGEST / 4 / lengths.mean()) ** 0.5).clip(1, _LONGEST)
    return [_group(rng, number, row.round().astype(int).tolist()) for number, row in enumerate(lengths)]


def _group(rng: np.random.Generator, number: int, lengths: list[int]) -> Group:
    prompt = rng.integers(0, _VOCABULARY, rng.integers(16, 64)).astype(np.int32)
    rollouts = [make_rollout(rng, prompt, length, _VOCABULARY) for length in lengths]
    return Group(work=work(number, ["en"] * _K), actor="bench", rollouts=rollouts)


class Padded:
    """The step without packing: transformers' model and sdpa, AdamW, the same loss."""

    def __init__(self, config: Config, *, chunked: bool) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=config.learner.lr, fused=True)
        self._config, self._chunked = config.learner, chunked

    def step(self, batch: list[Group]) -> float:
        samples, _ = group_samples(batch, self._config)
        total = 0.0
        prompt = max(len(sample.rollout.prompt_ids) for sample in samples)
        answer = max(len(sample.rollout.response_ids) for sample in samples)
        for begin in range(0, len(samples), _SEQUENCES):
            some = samples[begin : begin + _SEQUENCES]
            ids, mask = torch.zeros(2, len(some), prompt + answer, dtype=torch.int64)
            values = torch.zeros(3, len(some), answer)
            for n, sample in enumerate(some):
                r, length = sample.rollout, len(sample.rollout.response_ids)
                span = slice(prompt - len(r.prompt_ids), prompt + length)
                ids[n, span] = torch.from_numpy(np.concatenate([r.prompt_ids, r.response_ids]))
                mask[n, span] = 1
                values[:2, n, :length] = torch.tensor([[sample.weight], [sample.advantage]])
                values[2, n, :length] = torch.from_numpy(r.logprobs)
            kept = mask[:, prompt:].bool()
            logp = self._logp(ids, mask, answer, kept)
            weight, advantage, behaviour = values[:, kept]
            importance = torch.exp(logp.detach() - behaviour).clamp(max=self._config.importance_cap)
            loss = (-weight * importance * advantage * torch.exp(logp - logp.detach())).sum()
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def _logp(self, ids: Tensor, mask: Tensor, answer: int, kept: Tensor) -> Tensor:
        if not self._chunked:
            logits = self._model(ids, attention_mask=mask, use_cache=False, logits_to_keep=answer + 1).logits[:, :-1]
            return full_head(logits, ids[:, -answer:])[kept]
        hidden = self._model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        hidden, head = hidden[:, -answer - 1 : -1][kept], self._model.get_output_embeddings().weight
        return chunked_logp(hidden, head, ids[:, -answer:][kept], 1.0, 1024)[0]


def full_head(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities from whole logits [B, T, V], normalised a sequence at a time; their entropy is computed too."""
    chosen = logits.gather(-1, targets[..., None])[..., 0]
    normalizer = torch.stack([row.logsumexp(-1) for row in logits])
    with torch.no_grad():
        for row in logits:
            logp = row.log_softmax(-1)
            -(logp.exp() * logp).sum(-1)
    return chosen - normalizer


def head_peak(chunked: bool) -> float:
    """The MB by which the memory of this fresh process rises while a head runs forward and backward."""
    torch.set_num_threads(1)
    hidden = torch.randn(_HEAD_ROWS, _HEAD_WIDTH, requires_grad=True)
    weight = (torch.randn(_HEAD_VOCABULARY, _HEAD_WIDTH) * 0.02).requires_grad_()
    targets = torch.randint(0, _HEAD_VOCABULARY, (_HEAD_ROWS,))
    before = _status("VmRSS")
    if chunked:
        logp = chunked_logp(hidden, weight, targets, 1.0, _HEAD_CHUNK)[0]
    else:
        logp = full_head((hidden @ weight.T).view(8, -1, _HEAD_VOCABULARY), targets.view(8, -1))
    logp.sum().backward()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


class Timed(Trainer):
    """Knows the seconds spent in forward and backward passes."""

    compute_s = 0.0

    def _accumulate(self, batch: MicroBatch, old_logp_R: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        begin = time.perf_counter()
        result = super()._accumulate(batch, old_logp_R)
        self.compute_s += time.perf_counter() - begin
        return result


def measure(directory: Path, repeat: int) -> list[Row]:
    disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    make_model(directory)
    flags = ["--model.path", str(directory), "--learner.kl", "0", "--learner.param_dtype", "float32"]
    rows = compare(load([*flags, "--learner.microbatch_tokens", "2048"]), repeat)
    dist.destroy_process_group()
    return rows


def compare(config: Config, repeat: int) -> list[Row]:
    batch = make_groups(0)
    samples: list[Sample] = group_samples(batch, config.learner)[0]
    tokens = sum(map(len, samples))
    trainer, padded = Timed(config), {name: Padded(config, chunked=name == "chunked") for name in ("full", "chunked")}
    steps: dict[str, Callable[[], float]] = {"packed": lambda: trainer.step(batch, 0).means["loss"]}
    steps |= {name: partial(model.step, batch) for name, model in padded.items()}
    losses = [step() for step in steps.values()]
    assert np.ptp(losses) < 1e-4, f"not the same step: {losses}"  # and all are warm
    trainer.compute_s = 0.0
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeat):
        for name, step in steps.items():  # in turn, so that other work on the machine is shared
            seconds[name].append(timed(step)[0])
    total = sum(seconds["packed"])
    speed = {name: tokens / min(times) for name, times in seconds.items()}
    # One fresh process each, whose memory has not been larger before.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
        chunked, whole = fresh.map(head_peak, (True, False), chunksize=1)
    overhead = 100 * (total - trainer.compute_s) / total
    rows = []
    for name in padded:
        against, ratio = f"padded Hugging Face step, {name} head: {speed[name]:.0f}", speed["packed"] / speed[name]
        metric = f"step of {tokens} tokens, {len(samples)} sequences"
        rows.append(Row(metric, speed["packed"], "tokens/s", against, ratio, ">= 2x", ratio >= 2))
    metric, ratio = f"head, peak memory at V = {_HEAD_VOCABULARY}, {_HEAD_ROWS} tokens", whole / chunked
    rows.append(Row(metric, chunked, "MB", f"whole logits: {whole:.0f}", ratio, ">= 2x less", ratio >= 2))
    rows.append(Row("besides forward and backward", overhead, "% of a step", goal="<= 5", ok=overhead <= 5))
    return rows + preparation(trainer, config, 5 * repeat)


def preparation(trainer: Trainer, config: Config, repeat: int) -> list[Row]:
    """The processor's time for a step of long answers, by itself: it does not count what else the machine does."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, _VOCABULARY, _LONG_PROMPT).astype(np.int32) for _ in range(_LONG_GROUPS)]
    batch = [
        Group(
            work=work(number, ["en"] * _K),
            actor="bench",
            rollouts=[make_rollout(rng, prompt, int(length), _VOCABULARY) for length in rng.integers(*_LONG, _K)],
        )
        for number, prompt in enumerate(prompts)
    ]

    def prepare() -> list[list[Sample]]:
        samples, languages = group_samples(batch, config.learner)
        make_axes(samples, batch, languages, 0)
        costs = [trainer.policy.cost(len(s.rollout.prompt_ids), len(s.rollout.response_ids)) for s in samples]
        assigned = assign_micro_batches([len(sample) for sample in samples], costs, _LONG_BUDGET, _LONG_RANKS)
        return [[samples[n] for n in members] for members in assigned[0]]

    first, each = list[float](), list[float]()
    for _ in range(repeat):
        begin = time.process_time()
        micro_batches = prepare()
        pack(micro_batches[0])
        first.append(time.process_time() - begin)
        begin = time.process_time()
        for members in micro_batches:
            pack(members)
        each.append((time.process_time() - begin) / len(micro_batches))
    tokens = sum(len(r.prompt_ids) + len(r.response_ids) for group in batch for r in group.rollouts)
    what = f"{_LONG_GROUPS * _K} answers, {tokens:,} tokens, {_LONG_RANKS} ranks"
    return [
        Row(f"before the first micro-batch, {what}", 1e3 * min(first), "ms"),
        Row(f"to pack one of {len(micro_batches)} micro-batches of {_LONG_BUDGET:,} tokens", 1e3 * min(each), "ms"),
    ]


@command()
def main(
    *,
    repeat: Annotated[int, typer.Option(min=1, help="Steps of each kind; the fastest counts.")] = 2,
    as_json: Json = False,
) -> None:
    run(measure, as_json, repeat=repeat)


if __name__ == "__main__":
    main()
