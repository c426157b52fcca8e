"""Builds the reasoning part of the offline world: sums told as stories, and what the policy is taught before RL.

``python -m scripts.world.reasoning.build --out DIR [--seed 0]`` writes

* ``train.parquet``, ``heldout.parquet``: a row per (sum, question language), for ``learner/work/questions.py``; the
  answer is a number in digits; the same question, a right thought and the answer in English are in columns of their
  own, for rewards that compare with English;
* ``warm_start.parquet``: worked examples, a row each: language (of the question), question, thinking (the language of
  the thought), thought, answer, right. None is of a sum that is trained on or held out;
* ``world.json``: counts, seed, languages, and the shares that the examples were drawn with.

What makes English the better language to think in is this corpus alone: it has more English thoughts, they hardly ever
slip, and some questions in other languages are thought through in English. Thoughts in other languages slip often.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from common.languages import english_name
from common.process import FatalError
from scripts.data.tables import write
from scripts.ops.command_line import command
from scripts.world.reasoning.number_words import LARGEST
from scripts.world.reasoning.stories import LANGUAGES, Sum, every_sum

TOPIC = "Reasoning / Logic"
_SLIPS = (-2, -1, 1, 2)  # by how much a wrong step is wrong


@dataclass(frozen=True)
class Corpus:
    """What the worked examples are drawn with."""

    examples: int = 24_000
    english_questions: float = 0.25  # share of the questions; the others are in the other languages alike
    english_thoughts: float = 0.25  # share of the questions in another language that are thought through in English
    english_slip: float = 0.02  # probability that a step of an English thought is wrong
    slip: float = 0.25  # the same of a thought in another language


def question_rows(chosen: Iterable[Sum], split: str) -> list[dict[str, Any]]:
    """A row per (sum, question language) in the schema of ``learner/work/questions.py``."""
    pairs = [(one, language) for one in chosen for language in LANGUAGES]
    return [
        {
            "prompt": [{"role": "user", "content": one.question(language)}],
            "ability": TOPIC,
            "reward_model": {"ground_truth": str(one.result), "accepted": [str(one.result)]},
            "question": one.question(language),
            "answer": str(one.result),
            "english_question": one.question("en"),
            "english_thought": one.thought("en")[0],
            "english_answer": str(one.result),
            "data_source": f"offline-world/{one.story}",
            "extra_info": {
                "index": index,
                "split": split,
                "language": english_name(language),
                "topic": TOPIC,
            },
        }
        for index, (one, language) in enumerate(pairs)
    ]


def worked_examples(pool: list[Sum], corpus: Corpus, rng: random.Random) -> list[dict[str, Any]]:
    """The rows of ``warm_start.parquet``, each drawn by itself."""
    others = [language for language in LANGUAGES if language != "en"]
    rows = []
    for _ in range(corpus.examples):
        one = rng.choice(pool)
        language = "en" if rng.random() < corpus.english_questions else rng.choice(others)
        thinking = "en" if rng.random() < corpus.english_thoughts else language
        slip = corpus.english_slip if thinking == "en" else corpus.slip
        thought, result = one.thought(thinking, *_draw_slips(one, slip, rng))
        rows.append(
            {
                "language": language,
                "question": one.question(language),
                "thinking": thinking,
                "thought": thought,
                "answer": str(result),
                "right": result == one.result,
            }
        )
    return rows


def _draw_slips(one: Sum, probability: float, rng: random.Random) -> tuple[int, int]:
    """By how much each of the two steps is wrong, 0 for a right one. Two slips never end in the right number."""
    while True:
        first, second = (rng.choice(_SLIPS) if rng.random() < probability else 0 for _ in range(2))
        result = one.result + first + second
        possible = 1 <= result <= LARGEST and one.total + first > one.third
        if possible and (first + second or not (first or second)):
            return first, second


def build(out: Path, train: int, heldout: int, seed: int, corpus: Corpus) -> dict[str, Any]:
    """Writes the world into ``out`` and returns its summary.

    Args:
        train: number of sums that RL trains on.
        heldout: number of sums that it is tested on.

    Raises:
        FatalError: there are too few sums.
    """
    rng = random.Random(seed)
    pool = every_sum()
    if train + heldout >= len(pool):
        raise FatalError(f"{train} trained and {heldout} held-out sums leave none of {len(pool)} to teach")
    rng.shuffle(pool)
    trained, held_out = pool[:train], pool[train : train + heldout]
    asked = {_numbers(one) for one in (*trained, *held_out)}
    taught = [one for one in pool if _numbers(one) not in asked]  # nor is one of them told as another story
    tables = {
        "train": question_rows(trained, "train"),
        "heldout": question_rows(held_out, "heldout"),
        "warm_start": worked_examples(taught, corpus, rng),
    }
    for name, rows in tables.items():
        write(rows, out / f"{name}.parquet")
    summary = {
        "seed": seed,
        "languages": list(LANGUAGES),
        "sums": {"train": train, "heldout": heldout, "taught": len(taught)},
        "corpus": asdict(corpus),
    }
    (out / "world.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _numbers(one: Sum) -> tuple[int, int, int]:
    return one.first, one.second, one.third


_DEFAULT = Corpus()


@command()
def main(
    *,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world.")] = 0,
    train_sums: Annotated[int, typer.Option(min=1, help="Sums that RL trains on.")] = 32,
    heldout_sums: Annotated[int, typer.Option(min=0, help="Sums that RL is tested on.")] = 16,
    examples: Annotated[int, typer.Option(min=1, help="Worked examples of the warm start.")] = _DEFAULT.examples,
    english_questions: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the examples' questions that are English.")
    ] = _DEFAULT.english_questions,
    english_thoughts: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the other questions that are thought through in English.")
    ] = _DEFAULT.english_thoughts,
    english_slip: Annotated[
        float, typer.Option(min=0, max=1, help="Probability that a step of an English thought is wrong.")
    ] = _DEFAULT.english_slip,
    slip: Annotated[
        float, typer.Option(min=0, max=1, help="The same of a thought in another language.")
    ] = _DEFAULT.slip,
) -> None:
    corpus = Corpus(examples, english_questions, english_thoughts, english_slip, slip)
    world = build(out, train_sums, heldout_sums, seed, corpus)
    print(f"{out}: {world['sums']} sums x {len(LANGUAGES)} languages, {examples} worked examples")


if __name__ == "__main__":
    main()
