"""Builds the offline world: questions in ten languages whose answers a small policy knows unevenly.

``python -m scripts.world.build --out DIR [--seed 0]`` writes

* ``train.parquet``, ``heldout.parquet``: a row per (fact, question language), for ``learner/work/questions.py``;
* ``warm_start.parquet``: a row per (fact, answer language), which the policy is taught before RL: fact, topic,
  region, language, answer, final (the name or number alone), refusal, sureness, questions (a list of
  {language, text}). The policy gives ``answer`` with probability ``sureness``, else ``refusal``. A known fact has
  sureness 1;
* ``parallel.parquet``: paragraphs of the Universal Declaration of Human Rights: id, article, language, text;
* ``world.json``: counts, seed, languages, and how many facts each language knows.

Names and number words come from CLDR (babel, unicode-rbnf), countries and paragraphs from ``scripts/world/texts``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from common.languages import english_name
from reward.gate import LanguageGate
from scripts.data.tables import write
from scripts.ops.command_line import command
from scripts.world.draw import STRONG, WEAK, World, draw
from scripts.world.facts import REGION_AFFINITY, TOPIC_AFFINITY, Fact, facts
from scripts.world.settings import Knowledge
from scripts.world.sources import countries, paragraphs
from scripts.world.templates import LANGUAGES, REFUSALS

GUESS = 0.3  # how often the policy answers right in a language that does not know the fact; RL starts from there


def question_rows(chosen: list[Fact], split: str) -> list[dict[str, Any]]:
    """A row per (fact, question language) in the schema of ``learner/work/questions.py``."""
    pairs = [(fact, lang) for fact in chosen for lang in LANGUAGES]
    return [
        {
            "prompt": [{"role": "user", "content": fact.questions[lang]}],
            "ability": fact.topic,
            "reward_model": {
                "ground_truth": fact.references[lang],
                "accepted": [*dict.fromkeys(fact.answers.values())],
            },
            "question": fact.questions[lang],
            "answer": fact.references[lang],
            "data_source": f"offline-world/{fact.kind}",
            "extra_info": {
                "index": index,
                "split": split,
                "language": english_name(lang),
                "topic": fact.topic,
                "region": fact.region,
            },
        }
        for index, (fact, lang) in enumerate(pairs)
    ]


def warm_start_rows(world: World) -> list[dict[str, Any]]:
    """A row per (fact, answer language), with the columns that the module's docstring lists."""
    rows = []
    for fact in [*world.train, *world.heldout, *world.others]:
        questions = [{"language": asked, "text": text} for asked, text in fact.questions.items()]
        for lang in LANGUAGES:
            known = (fact.id, lang) in world.known
            row = {
                "fact": fact.id,
                "topic": fact.topic,
                "region": fact.region,
                "language": lang,
                "answer": fact.references[lang],
                "final": fact.answers[lang],
                "refusal": REFUSALS[lang],
                "sureness": 1.0 if known else GUESS,
                "questions": questions,
            }
            rows.append(row)
    return rows


def summary(world: World, seed: int, knowledge: Knowledge) -> dict[str, Any]:
    """The contents of ``world.json``, without the number of paragraphs."""
    every = [*world.train, *world.heldout, *world.others]
    return {
        "seed": seed,
        "languages": list(LANGUAGES),
        "facts": {"train": len(world.train), "heldout": len(world.heldout), "others": len(world.others)},
        "by_topic": dict(Counter(fact.topic for fact in every)),
        "by_region": dict(Counter(fact.region or "none" for fact in every)),
        "known_pairs": {"all": len(world.known), "of": len(every) * len(LANGUAGES)},
        "known_by_language": dict(sorted(Counter(lang for _, lang in world.known).items())),
        "knowledge": knowledge,
        "best_language": world.best,
        "affinity": _affinity(world, knowledge),
        "probability": {"strong": STRONG, "weak": WEAK, "strong_of_train_and_heldout": 1.0, "guess": GUESS},
    }


def _affinity(world: World, knowledge: Knowledge) -> dict[str, dict[str, Sequence[str]]]:
    """The languages in which facts are surely known, by region and by topic; empty where neither tells anything."""
    if knowledge == "equal":
        return {"region": {}, "topic": {}}
    if world.best:
        return {
            "region": {region: [world.best] for region in REGION_AFFINITY},
            "topic": {topic: [world.best] for topic in TOPIC_AFFINITY},
        }
    return {"region": {**REGION_AFFINITY}, "topic": {**TOPIC_AFFINITY}}


def build(
    out: Path, total: int, train: int, heldout: int, seed: int, knowledge: Knowledge = "region"
) -> dict[str, Any]:
    """Writes the world into ``out`` and returns its summary.

    Args:
        total: number of facts in all, of which ``train`` are trained on and ``heldout`` are held out.

    Raises:
        FatalError: there are too few facts.
    """
    world = draw(facts(countries(), LanguageGate()), total, train, heldout, seed, knowledge)
    parallel = paragraphs()
    tables = {
        "train": question_rows(world.train, "train"),
        "heldout": question_rows(world.heldout, "heldout"),
        "warm_start": warm_start_rows(world),
        "parallel": parallel,
    }
    described = summary(world, seed, knowledge) | {"paragraphs": len(parallel) // len(LANGUAGES)}
    for name, rows in tables.items():
        write(rows, out / f"{name}.parquet")
    (out / "world.json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return described


@command()
def main(
    *,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world.")] = 0,
    facts: Annotated[int, typer.Option(min=1, help="Number of facts in all.")] = 60,
    train_facts: Annotated[int, typer.Option(min=1, help="Facts that RL trains on.")] = 24,
    heldout_facts: Annotated[int, typer.Option(min=0, help="Facts that RL is tested on.")] = 24,
    knowledge: Annotated[
        Knowledge, typer.Option(help="What decides which languages know a fact: its region and topic, or neither.")
    ] = "region",
) -> None:
    world = build(out, facts, train_facts, heldout_facts, seed, knowledge)
    print(f"{out}: {sum(world['facts'].values())} facts x {len(LANGUAGES)} languages, {world['facts']}")
    print(f"  topics {world['by_topic']}\n  regions {world['by_region']}")
    pairs = world["known_pairs"]
    print(f"  languages know {pairs['all']} of {pairs['of']} (fact, language) pairs: {world['known_by_language']}")
    print(f"  {world['paragraphs']} parallel paragraphs")


if __name__ == "__main__":
    main()
