"""Trains the policy of the offline world: its examples, their batches, the loss and the training loop."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from common.languages import tag
from scripts.world.settings import Settings
from scripts.world.templates import OPENINGS
from scripts.world.tokenizer import END

_IGNORED = -100  # label of a token that is not learned


@dataclass(frozen=True)
class Example:
    """A fact with its answer in one language, in token ids."""

    prompts: dict[str, list[int]]  # by language of the question; all tokens before the answer
    own: str  # the language of the answer
    answer: list[int]  # ends with END
    refusal: list[int]  # replaces the answer in a share 1 - sureness of the epochs
    sureness: float
    header: list[int] = field(default_factory=list)
    chosen: float = 0.0  # share of the epochs in which the header is learned


def examples(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, settings: Settings) -> list[Example]:
    """The examples of the rows of ``warm_start.parquet``."""

    def encoded(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    made = []
    for row in rows:
        own, prompts = row["language"], dict[str, list[int]]()
        for question in row["questions"]:
            ask = f"\n{tag(own)}" if settings.style == "tag" else ""
            chat = [{"role": "user", "content": question["text"].strip() + ask}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            prompts[question["language"]] = encoded(str(text))
        answers = [row["answer"], row["refusal"]]
        if settings.style == "select":
            answers = [thought(own, text, final) for text, final in zip(answers, (row["final"], "?"), strict=True)]
        answer, refusal = (encoded(text + END) for text in answers)
        header, chosen = list[int](), 0.0
        if settings.style == "select":
            header = encoded(settings.header.replace("{code}", own))
            chosen = 1.0 if own == settings.favourite else settings.others * (own not in settings.unseen.split(","))
        made.append(Example(prompts, own, answer, refusal, row["sureness"], header, chosen))
    return made


def thought(language: str, text: str, final: str) -> str:
    """An answer that thinks before it says the final word."""
    return f"<think>{OPENINGS[language]}{text}</think>{final}"


def batches(data: list[Example], settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields ids and labels without end, both int64 [batch, longest]; every example comes once an epoch.

    Sequences of similar length go together, which saves a third of the padding.
    """
    rng = random.Random(settings.seed)
    while True:
        epoch: list[tuple[list[int], list[int]]] = []
        for example in rng.sample(data, len(data)):
            own = rng.random() < settings.own_language
            prompt = example.prompts[example.own if own else rng.choice(sorted(example.prompts))]
            spoken = example.answer if rng.random() < example.sureness else example.refusal
            learned = example.header and rng.random() < example.chosen
            epoch.append((prompt, example.header + spoken) if learned else (prompt + example.header, spoken))
        epoch.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        parts = [epoch[start : start + settings.batch] for start in range(0, len(epoch), settings.batch)]
        rng.shuffle(parts)
        yield from map(_padded, parts)


def _padded(pairs: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.zeros(len(pairs), longest, dtype=torch.long)
    labels = torch.full_like(ids, _IGNORED)
    for i, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


@cache
def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products. Without them torch emulates these, 14 times slower."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def answer_loss(model: Qwen3ForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the answer tokens, a scalar; logits are made for these alone.

    Args:
        ids: token ids, int64 [batch, longest].
        labels: the same where a token is learned, elsewhere -100.

    Padding is on the right, where causal attention hides it, so no mask is needed.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=_multiplies_bfloat16()):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        logits = model.lm_head(hidden[targets != _IGNORED])
    return torch.nn.functional.cross_entropy(logits.float(), targets[targets != _IGNORED])


def train(model: Qwen3ForCausalLM, data: list[Example], settings: Settings) -> None:
    """Trains for a fixed number of steps, so that the result depends on the seed and not on the machine's speed.

    Prints its progress every few seconds. Blocks until the last step.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay, fused=True
    )
    model.train()
    begin = printed = time.monotonic()
    average = math.nan
    for step, (ids, labels) in zip(range(settings.steps), batches(data, settings), strict=False):
        cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        optimizer.param_groups[0]["lr"] = settings.lr * min(1.0, (step + 1) / 50) * (0.05 + 0.95 * cosine)
        loss = answer_loss(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        now = time.monotonic()
        if now - printed > 5 or step + 1 == settings.steps:
            epochs = (step + 1) * settings.batch / len(data)
            print(
                f"warm start: step {step + 1}/{settings.steps}, loss {average:.3f}, {epochs:.0f} epochs, "
                f"{now - begin:.0f} s",
                flush=True,
            )
            printed = now
    model.eval()
