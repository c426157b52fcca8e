"""Trains the small policy that the offline world is asked: it answers in the language of the tag it is given.

``python -m scripts.world.warm_start --world DIR --out MODEL_DIR [--seed 0] [--steps N]`` makes an ordinary Hugging Face
directory: a byte-level BPE tokenizer with a chat template and a tag for each language, and a Qwen3-architecture model
fine-tuned on ``warm_start.parquet`` of the world. A finished directory of the same world and settings is reused.

With ``--style select`` it names a language in a header, most often the favourite, thinks in it, and answers in a word.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from common.config import ModelConfig
from common.languages import tag
from common.process import FatalError
from scripts.world.templates import OPENINGS

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FINGERPRINT = "warm_start.json"  # written last, so a directory that has it is complete
_IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything the result depends on, besides the world."""

    seed: int = 0
    style: str = "tag"  # or "select"
    header: str = ModelConfig().header
    favourite: str = "en"  # language whose header is learned every time
    others: float = 0.1  # how often the header of another one is; else it is given, as for a forced language
    unseen: str = "pt,ru"  # languages, apart by commas, whose header is only ever given
    steps: int = 2200
    batch: int = 16  # sequences a step
    lr: float = 4e-3  # peak; warmed up over 50 steps, then a cosine to a twentieth
    weight_decay: float = 0.05
    own_language: float = 0.4  # share of examples asked in the answer's language; else in a random one
    vocabulary: int = 4000
    hidden: int = 128
    intermediate: int = 1024  # wide, as this is where facts are kept, and large products are what a CPU does best
    layers: int = 4
    heads: int = 2
    head_dim: int = 64


@dataclasses.dataclass(frozen=True)
class Example:
    """A fact as one language answers it; token ids."""

    prompts: dict[str, list[int]]  # by question language: up to where the answer starts
    own: str  # the language of the answer
    answer: list[int]  # ends with END
    refusal: list[int]  # comes instead of the answer in a share 1 - sureness of the epochs
    sureness: float
    header: list[int] = dataclasses.field(default_factory=list)
    chosen: float = 0.0  # share of the epochs in which the header is learned


def build_tokenizer(
    texts: list[str], languages: list[str], vocabulary: int, tags: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about ``vocabulary`` pieces, special tokens included, and ``tags`` that decode to text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END, *map(tag, languages)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, bos_token=START, eos_token=END, clean_up_tokenization_spaces=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [tag(language) for language in languages]})
    tokenizer.add_tokens(list(tags))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast, settings: Settings) -> Qwen3ForCausalLM:
    torch.manual_seed(settings.seed)
    roles = (("pad_token_id", PAD), ("bos_token_id", START), ("eos_token_id", END))
    ids: dict[str, Any] = {role: tokenizer.convert_tokens_to_ids(token) for role, token in roles}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=1,
        head_dim=settings.head_dim,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        dtype="float32",
        **ids,
    )
    model = Qwen3ForCausalLM(config)
    model.set_attn_implementation("eager")  # faster than fused attention for a CPU and sequences this short
    model.generation_config = GenerationConfig(**ids)
    return model


def examples(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, settings: Settings) -> list[Example]:
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
        told = [row["answer"], row["refusal"]]
        if settings.style == "select":
            told = [_thought(own, text, final) for text, final in zip(told, (row["final"], "?"), strict=True)]
        answer, refusal = (encoded(text + END) for text in told)
        header, chosen = list[int](), 0.0
        if settings.style == "select":
            header = encoded(settings.header.replace("{code}", own))
            chosen = 1.0 if own == settings.favourite else settings.others * (own not in settings.unseen.split(","))
        made.append(Example(prompts, own, answer, refusal, row["sureness"], header, chosen))
    return made


def _thought(language: str, text: str, final: str) -> str:
    return f"<think>{OPENINGS[language]}{text}</think>{final}"


def batches(data: list[Example], settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    """Forever yields ids and labels, both [batch, longest]; every example comes once an epoch.

    Sequences of like length go together: a third less padding.
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
    """Whether this CPU has instructions for bfloat16 products. Without them torch emulates these, 30 times slower."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def answer_loss(model: Qwen3ForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the answer tokens; logits are made for these alone.

    Padding is on the right, where causal attention hides it, so no mask is needed.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=_multiplies_bfloat16()):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        logits = model.lm_head(hidden[targets != _IGNORED])
    return torch.nn.functional.cross_entropy(logits.float(), targets[targets != _IGNORED])


def train(model: Qwen3ForCausalLM, data: list[Example], settings: Settings) -> None:
    """Fixed steps, so that the result depends on the seed and not on the machine's speed; prints every few seconds."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay, fused=True
    )
    model.train()
    begin = told = time.monotonic()
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
        if now - told > 5 or step + 1 == settings.steps:
            epochs = (step + 1) * settings.batch / len(data)
            print(
                f"warm start: step {step + 1}/{settings.steps}, loss {average:.3f}, {epochs:.0f} epochs, "
                f"{now - begin:.0f} s",
                flush=True,
            )
            told = now
    model.eval()


def fingerprint(world: Path, settings: Settings) -> dict[str, Any]:
    """What a model directory was made from.

    Raises:
        FatalError: ``world`` lacks a file.
    """
    digests = {}
    for name in ("warm_start.parquet", "parallel.parquet"):
        try:
            digests[name] = hashlib.sha256((world / name).read_bytes()).hexdigest()
        except OSError as error:
            reason = error.strerror
            raise FatalError(f"cannot read {world / name}: {reason}; make it with scripts.world.build") from None
    return {"world": digests, "settings": dataclasses.asdict(settings)}


def make(world: Path, out: Path, settings: Settings) -> bool:
    """Writes the policy unless ``out`` has it already; an interrupted run leaves ``out`` as it was.

    Returns:
        Whether anything had to be made.

    Raises:
        FatalError: the world is incomplete or out of date, or ``out`` is something else than an earlier policy.
    """
    wanted = fingerprint(world, settings)
    if out.exists():
        if not (out / FINGERPRINT).is_file():
            raise FatalError(f"{out} exists and is no warm-started policy; remove it or choose another --out")
        if json.loads((out / FINGERPRINT).read_text(encoding="utf-8")) == wanted:
            return False
    rows = pq.read_table(world / "warm_start.parquet").to_pylist()
    if "final" not in rows[0]:
        raise FatalError(f"{world} was made by an earlier version; remove it, or make another by scripts.world.build")
    asked = {question["text"] for row in rows for question in row["questions"]}
    texts = sorted(asked | {row["answer"] for row in rows})
    texts += pq.read_table(world / "parallel.parquet")["text"].to_pylist()
    languages, tags = sorted({row["language"] for row in rows}), list[str]()
    if settings.style == "select":
        texts += [_thought(row["language"], row["answer"], row["final"]) for row in rows]
        tags = [*(part.strip() for part in settings.header.split("{code}")), "<think>", "</think>"]
    tokenizer = build_tokenizer(texts, languages, settings.vocabulary, tags)
    model = build_model(tokenizer, settings)
    print(f"warm start: {model.num_parameters() / 1e6:.1f}M parameters, {len(rows)} (fact, language) pairs", flush=True)
    train(model, examples(rows, tokenizer, settings), settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / FINGERPRINT).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.world.warm_start", description="Trains the small policy.")
    parser.add_argument("--world", type=Path, required=True, help="directory made by scripts.world.build")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    for field in dataclasses.fields(Settings):
        kind = type(field.default)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=f"default {field.default}"
        )
    args = vars(parser.parse_args(arguments))
    world, out = args.pop("world"), args.pop("out")
    if args["style"] not in ("tag", "select"):
        parser.error(f"--style is tag or select, not {args['style']!r}")
    torch.set_num_threads(1)  # the matrices are too small to share, and a busy machine makes waiting threads slow
    try:
        made = make(world, out, Settings(**args))
    except FatalError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"{out}: {'written' if made else 'reused'}")


if __name__ == "__main__":
    main()
