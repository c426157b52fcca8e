"""Measures in which language a policy of the reasoning world thinks, and how often it is right.

``python -m scripts.world.reasoning.measure MODEL_DIR ... --world DIR [--samples 4]`` samples answers to the held-out
questions, each asked in its own language, and prints a line for each model:

* LC, Acc and LC&Acc of ``common/diagnostics.py``, by the gate of the reward: a bare number is in any language, so that
  LC is about thoughts, and about answers that have an end;
* the share of thoughts in English, and the accuracy of consistent answers and of those that think in English.

All are over questions in other languages than English. Sampling is at temperature 1, as in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer

from common.answer import Answer, read_answer
from common.config import RewardConfig
from common.diagnostics import Sample, summarise
from common.languages import code_of
from common.prompts import append_tag
from reward.detectors import GateDetector
from reward.gate import ComplianceGate
from reward.terms.text import exact
from scripts.ops.command_line import command

_BATCH = 240  # answers generated at a time
_TOKENS = 64  # most tokens of an answer


@dataclass(frozen=True)
class Question:
    """A question of ``train.parquet`` or ``heldout.parquet``."""

    text: str
    language: str
    accepted: list[str]


@dataclass(frozen=True)
class Written:
    """An answer as the policy writes it."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Judged:
    """An answer to a question, as it is judged."""

    language: str  # of the question
    sample: Sample
    english: bool  # the thought is in English


@dataclass(frozen=True)
class Figures:
    """What was found over a set of answers; shares in [0, 1], NaN of no answers."""

    answers: int
    consistency: float
    accuracy: float
    both: float
    english: float  # share of the thoughts that are in English
    own_accuracy: float  # of the consistent answers
    english_accuracy: float  # of the answers that think in English
    tokens: float  # mean length


def questions(path: Path) -> list[Question]:
    """The questions of a file that ``scripts.world.reasoning.build`` has written."""
    return [
        Question(row["question"], code_of(row["extra_info"]["language"]), row["reward_model"]["accepted"])
        for row in pq.read_table(path).to_pylist()
    ]


def sample(model_dir: Path, asked: Sequence[Question], samples: int, seed: int) -> list[Written]:
    """Answers of a model, ``samples`` to each question in turn, at temperature 1. Blocks for seconds."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    chats = [append_tag([{"role": "user", "content": one.text}], one.language) for one in asked for _ in range(samples)]
    prompts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    answers = []
    for start in range(0, len(prompts), _BATCH):
        given = tokenizer(prompts[start : start + _BATCH], return_tensors="pt", padding=True, add_special_tokens=False)
        ids, mask = given["input_ids"], given["attention_mask"]
        with torch.inference_mode():
            written = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=_TOKENS
            )
        new = written[:, ids.shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        lengths = (new != tokenizer.pad_token_id).sum(1).tolist()
        answers += [Written(text, length) for text, length in zip(texts, lengths, strict=True)]
    return answers


def judge(asked: Sequence[Question], answers: Sequence[Written], gate: ComplianceGate) -> list[Judged]:
    """Judges answers by the gate and the verifier of the reward.

    Args:
        asked: [Q]
        answers: [Q * n], n to each question in turn.
    """
    each = len(answers) // len(asked)
    repeated = [one for one in asked for _ in range(each)]
    languages = [one.language for one in repeated]
    read: list[Answer] = [read_answer(one.text, code) for one, code in zip(answers, languages, strict=True)]
    detector = GateDetector(gate)
    thoughts = detector.parts([one.thought for one in read], languages)
    finals = detector.parts([one.final for one in read], languages)
    english = gate.judge([one.thought for one in read], ["en"] * len(read))
    return [
        Judged(
            language=question.language,
            sample=Sample(
                thought=thought,
                answer=final,
                right=exact(answer.final, question.accepted, question.language) == 1,
                tokens=written.tokens,
            ),
            english=in_english.matches,
        )
        for question, answer, written, thought, final, in_english in zip(
            repeated, read, answers, thoughts, finals, english, strict=True
        )
    ]


def figures(judged: Sequence[Judged]) -> Figures:
    """The figures of a set of answers, which is not empty."""
    found = summarise([one.sample for one in judged])
    return Figures(
        answers=len(judged),
        consistency=found["lc"],
        accuracy=found["accuracy"],
        both=found["lc_accuracy"],
        english=_share(one.english for one in judged),
        own_accuracy=_share(bool(one.sample.right) for one in judged if one.sample.consistent),
        english_accuracy=_share(bool(one.sample.right) for one in judged if one.english),
        tokens=found["tokens"],
    )


def _share(found: Iterator[bool]) -> float:
    values = list(found)
    return sum(values) / len(values) if values else float("nan")


def measure(model_dir: Path, world: Path, samples: int = 4, seed: int = 0) -> list[Judged]:
    """Samples and judges the answers of a model to the held-out questions. Blocks for about half a minute."""
    asked = questions(world / "heldout.parquet")
    return judge(asked, sample(model_dir, asked, samples, seed), ComplianceGate(RewardConfig()))


@command()
def main(
    models: Annotated[list[Path], typer.Argument(help="Directories of models.")],
    *,
    world: Annotated[Path, typer.Option(help="Directory made by scripts.world.reasoning.build.")],
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    by_language: Annotated[bool, typer.Option(help="A further line for each language.")] = False,
) -> None:
    for model in models:
        judged = measure(model, world, samples, seed)
        print(f"{model}: {_line(figures([one for one in judged if one.language != 'en']))}", flush=True)
        for language in sorted({one.language for one in judged}) if by_language else ():
            print(f"  {language}: {_line(figures([one for one in judged if one.language == language]))}")


def _line(found: Figures) -> str:
    return (
        f"LC {found.consistency:.3f}  Acc {found.accuracy:.3f}  LC&Acc {found.both:.3f}  English {found.english:.3f}  "
        f"accuracy of own {found.own_accuracy:.3f}, of English {found.english_accuracy:.3f}  "
        f"({found.answers} answers of {found.tokens:.0f} tokens)"
    )


if __name__ == "__main__":
    main()
