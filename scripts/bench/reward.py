"""How fast answers are scored, against the way the LRPO reference does it: same encoder and texts.

    python -m scripts.bench.reward [--json] [--pairs 2048] [--lengths log-uniform|uniform]

The reference's way embeds answer and reference of every pair each time, in order of arrival, padded in chunks of 128,
and identifies languages one by one. Texts are paragraphs of the Universal Declaration of Human Rights in ten languages,
put together to between 8 and 512 tokens, 8 answers to a reference. On a CPU the encoder is a small one of mmBERT's
architecture with random weights, in float32; with a GPU, in bfloat16, one of the size of mmBERT-small.

PyTorch has one thread in both. The reference's way does everything in it; the scorer embeds in one thread, and in two
others, which may have processors of their own, it identifies languages and tokenises. So CPU seconds are compared, too.
"""

from __future__ import annotations

import math
import random
import re
import time
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Annotated, Any, Literal

import fasttext
import numpy as np
import torch
import typer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

from common.config import RewardConfig
from common.wire import Score, ScoreRequest
from reward.calibration.files import Level, PairStatistics
from reward.gate import Finding, LanguageGate, shipped_model
from reward.scorer import Scorer
from scripts.bench.support.scoring import request
from scripts.bench.table import Json, Row, run, timed
from scripts.ops.command_line import command
from scripts.world.sources import paragraphs

_K, _CHUNK, _MAX_TOKENS = 8, 128, 512
_CPU: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 144}
_SMALL: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 22,
    "num_attention_heads": 6,
    "intermediate_size": 1152,
}
_FENCED = re.compile(r"```.*?```", re.DOTALL)

Pair = tuple[str, str, str, str]  # answer, the language asked of it, reference, its language


def encoder(texts: list[str], path: Path, gpu: bool) -> None:
    """Writes an encoder with random weights, and a tokenizer of these texts, as a Hugging Face directory."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=8000, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=_MAX_TOKENS, **names).save_pretrained(path)
    torch.manual_seed(0)
    vocabulary, shape = (256_000, _SMALL) if gpu else (tokenizer.get_vocab_size(), _CPU)
    config = ModernBertConfig(
        vocab_size=vocabulary, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3, **shape
    )
    ModernBertModel(config).save_pretrained(path)


def make_pairs(count: int, lengths: str, texts: dict[str, list[str]], tokenizer: Any, seed: int) -> list[Pair]:
    """``count`` pairs, 8 answers to a reference, of the wanted numbers of tokens."""
    generator = random.Random(seed)
    per_token = {code: len(" ".join(some)) / len(tokenizer.encode(" ".join(some))) for code, some in texts.items()}

    def text(language: str) -> str:
        log = math.exp(generator.uniform(math.log(8), math.log(_MAX_TOKENS)))
        size = int((log if lengths == "log-uniform" else generator.uniform(8, _MAX_TOKENS)) * per_token[language])
        made = ""
        while len(made) < size:
            made += generator.choice(texts[language]) + " "
        return made[:size].strip()

    pairs: list[Pair] = []
    for _ in range(count // _K):
        own = generator.choice(sorted(texts))
        reference = text(own)
        for _ in range(_K):
            asked = generator.choice(sorted(texts))
            spoken = asked if generator.random() < 0.9 else own
            pairs.append((text(spoken), asked, reference, own))
    return pairs


# -- the reference's way -----------------------------------------------------------------------------------------------


class Plain:
    """The reward computed directly."""

    def __init__(self, path: Path, statistics: PairStatistics, device: str, dtype: torch.dtype) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model: Any = AutoModel.from_pretrained(path).to(device, dtype).eval()
        self._languages = fasttext.load_model(str(shipped_model()))
        self._levels, self._device = statistics.levels, device
        total = sum(level.count for level in self._levels.values())
        self._center = sum(level.count * level.mean for level in self._levels.values()) / total

    def language(self, text: str) -> str:
        line = re.sub(r"\s+", " ", _FENCED.sub(" ", text.strip())).strip()
        if not line or sum(character.isalnum() for character in line) / len(line) < 0.05:
            return ""
        return str(self._languages.predict(line, k=1)[0][0]).removeprefix("__label__")

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> torch.Tensor:
        parts = []
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            batch = self._tokenizer(chunk, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
            batch = batch.to(self._device)
            states = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            parts.append(torch.nn.functional.normalize(((states * mask).sum(1) / mask.sum(1)).float(), dim=1))
        return torch.cat(parts).cpu()

    def rewards(self, pairs: list[Pair]) -> list[float]:
        similarities = (self.embed([pair[0] for pair in pairs]) * self.embed([pair[2] for pair in pairs])).sum(1)
        rewards = []
        for (answer, asked, _, own), similarity in zip(pairs, similarities.tolist(), strict=True):
            spoken = self.language(answer)
            level = self._levels.get((min(own, spoken), max(own, spoken)))
            calibrated = similarity - (level.mean - self._center if level else 0.0)
            rewards.append((max(-1.0, min(1.0, calibrated)) + 1) / 2 if spoken == asked else 0.0)
        return rewards


# -- ours --------------------------------------------------------------------------------------------------------------


def requests(pairs: list[Pair]) -> list[ScoreRequest]:
    groups = [pairs[start : start + _K] for start in range(0, len(pairs), _K)]
    return [
        request([pair[0] for pair in group], [pair[1] for pair in group], group[0][2], group[0][3], number)
        for number, group in enumerate(groups)
    ]


def score(scorer: Scorer, asked: list[ScoreRequest], batch_texts: int) -> list[Score]:
    """In the batches that the service would make of a full queue."""
    size = math.ceil(batch_texts / (_K + 1))
    batches = [asked[start : start + size] for start in range(0, len(asked), size)]
    return [one for batch in batches for scores in scorer.score(batch) for one in scores]


def measure(path: Path, pairs: int, lengths: str, seed: int) -> list[Row]:
    torch.set_num_threads(1)
    gpu = torch.cuda.is_available()
    texts: dict[str, list[str]] = {}
    for row in paragraphs():
        texts.setdefault(row["language"], []).append(row["text"])
    encoder([text for some in texts.values() for text in some], path / "encoder", gpu)
    made = make_pairs(pairs, lengths, texts, AutoTokenizer.from_pretrained(path / "encoder"), seed)
    generator = np.random.default_rng(seed)
    each = combinations_with_replacement(sorted(texts), 2)
    statistics = PairStatistics({pair: Level(30, generator.uniform(0.6, 0.9), 0.1) for pair in each})
    statistics.write(path / "pairs.csv")
    config = RewardConfig(embedder=str(path / "encoder"), calibration=path / "pairs.csv")
    scorer = Scorer(config)
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    plain = Plain(path / "encoder", statistics, device, dtype)
    scorer.warm_up()
    plain.rewards(made[:_K])
    asked, spoken = requests(made), [pair[0] for pair in made]
    cpu_s = [time.process_time()]  # of all threads
    slow, expected = timed(lambda: plain.rewards(made))
    cpu_s.append(time.process_time())
    fast, found = timed(lambda: score(scorer, asked, config.batch_texts))
    cpu_s.append(time.process_time())
    slow_cpu, fast_cpu = np.diff(cpu_s).tolist()
    counts = dict(scorer.counts)
    again, _ = timed(lambda: score(scorer, asked, config.batch_texts))
    embedded_again = scorer.counts["references_embedded"] - counts["references_embedded"]
    gate = LanguageGate()
    slow_gate, labels = timed(lambda: [plain.language(text) for text in spoken], 5)
    languages = [pair[1] for pair in made]

    def judge_anew() -> list[Finding]:
        gate.judge([], [])  # after which it remembers nothing of the last round
        return gate.judge(spoken, languages)

    fast_gate, judged = timed(judge_anew, 5)
    unequal = sum(
        (label == language) != one.matches for label, language, one in zip(labels, languages, judged, strict=True)
    )
    apart = max(
        abs(score.reward - reward)
        for score, reward, label, language in zip(found, expected, labels, languages, strict=True)
        if (label == language) == score.compliant
    )
    base, gate_base = f"reference's way {pairs / slow:.4g}/s", f"one by one {pairs / slow_gate:.4g}/s"
    equal = None if gpu else apart <= 1e-4
    return [
        Row("pairs scored", pairs / fast, "pairs/s", base, slow / fast, ">= 5x", slow / fast >= 5),
        Row("pairs scored by a CPU second", pairs / fast_cpu, "pairs/s", f"reference's way {pairs / slow_cpu:.4g}/s",
            slow_cpu / fast_cpu),
        Row("pairs scored, references known", pairs / again, "pairs/s", base, slow / again),
        Row("language identified", pairs / fast_gate, "texts/s", gate_base, slow_gate / fast_gate, ">= 3x",
            slow_gate / fast_gate >= 3),
        Row("decisions that differ", unequal, f"of {pairs}", "one by one", None, "<= 1%", unequal <= pairs / 100),
        Row("largest difference of a reward", apart, "", "reference's way", None, None if gpu else "<= 1e-4", equal),
        Row("batch fill", counts["tokens"] / counts["tokens_padded"], "of the tokens computed"),
        Row("cache hit rate", 1 - embedded_again / len(asked), "of the references, asked for again"),
    ]  # fmt: skip


@command()
def main(
    *,
    pairs: Annotated[int, typer.Option(min=8, help="Pairs of an answer and a reference.")] = 2048,
    lengths: Annotated[
        Literal["log-uniform", "uniform"], typer.Option(help="How lengths of texts are drawn.")
    ] = "log-uniform",
    seed: Annotated[int, typer.Option(min=0, help="Seed of texts and lengths.")] = 0,
    as_json: Json = False,
) -> None:
    run(measure, as_json, pairs=pairs, lengths=lengths, seed=seed)


if __name__ == "__main__":
    main()
