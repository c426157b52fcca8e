"""What training taught, and what of it carried over to languages in which nothing was trained."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scripts.study.experiments.knowledge import SETS, Knowledge

# Set of questions ("train", "heldout") -> row, as text -> language -> greedy reward, None where it was not scored.
Rewards = Mapping[str, Mapping[str, Mapping[str, float | None]]]

FEWEST_PAIRS = 30  # of a question and a language; a mean over fewer is of a few facts that chance has picked


def read_rewards(run: Path, when: str) -> Rewards:
    """The greedy rewards of an evaluation, from ``evaluations/WHEN-SET.jsonl``; empty where the run did not make it."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in SETS:
        path = run / "evaluations" / f"{when}-{name}.jsonl"
        if not path.exists():
            return {}
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[name] = {str(line["row"]): line["rewards"] for line in lines}
    return found


@dataclass
class Answers:
    """The languages of the training answers, by the row of the question.

    Args:
        asked: of all answers.
        trained: of those that were trained. A group whose answers all earned the same taught nothing.
    """

    asked: dict[int, set[str]] = field(default_factory=dict)
    trained: dict[int, set[str]] = field(default_factory=dict)

    def add(self, row: int, languages: Collection[str], *, trained: bool) -> None:
        """Adds the answers of a group to the question of a row."""
        for rows in [self.asked, *([self.trained] if trained else [])]:
            rows.setdefault(row, set()).update(languages)


def measure_transfer(
    before: Rewards, after: Rewards, answers: Answers, knowledge: Knowledge | None
) -> dict[str, float | None]:
    """Gains in languages that did not know a question, less what held-out questions gained in the same languages.

    Training teaches facts, and it teaches a language to answer at all. The second shows in questions that were never
    trained, so their gain is taken off, language by language: ``taught`` and ``transfer`` are the mean, over trained
    questions and languages that did not know them, of the gain less the mean gain of the held-out questions that this
    language did not know. For ``taught`` an answer in that very language was trained, to this question or to another
    one that asks for the same fact. For ``transfer`` none was even asked for there: where answers were asked for and
    all earned the same, nothing was trained, but what they earned decided so, and a mean over those would be selected
    on its outcome.

    Args:
        before: the warm start's rewards.
        after: those of the trained policy.
        answers: of the training.
        knowledge: None where it is not known who knows what: then every language counts as one that did not know, and
            every question as a fact of its own.

    Returns:
        ``taught`` and ``transfer``; None with fewer than ``FEWEST_PAIRS`` questions and languages, or no evaluation.
    """
    asked, trained = (_by_fact(rows, knowledge) for rows in (answers.asked, answers.trained))
    held_out: dict[str, list[float]] = {}
    for _, language, gain in _gains(before, after, "heldout", knowledge):
        held_out.setdefault(language, []).append(gain)
    willingness = {language: float(np.mean(gains)) for language, gains in held_out.items()}
    found: dict[str, list[float]] = {"taught": [], "transfer": []}
    for row, language, gain in _gains(before, after, "train", knowledge):
        if language not in willingness:  # it knew all held-out questions
            continue
        fact = _fact(row, knowledge)
        if language in trained.get(fact, ()):
            found["taught"].append(gain - willingness[language])
        elif language not in asked.get(fact, ()):
            found["transfer"].append(gain - willingness[language])
    return {name: float(np.mean(gains)) if len(gains) >= FEWEST_PAIRS else None for name, gains in found.items()}


def _by_fact(rows: Mapping[int, set[str]], knowledge: Knowledge | None) -> dict[int | str, set[str]]:
    found: dict[int | str, set[str]] = {}
    for row, languages in rows.items():
        found.setdefault(_fact(row, knowledge), set()).update(languages)
    return found


def _fact(row: int, knowledge: Knowledge | None) -> int | str:
    return row if knowledge is None else knowledge.facts[row]


def _gains(before: Rewards, after: Rewards, name: str, knowledge: Knowledge | None) -> Iterator[tuple[int, str, float]]:
    """Row, language, and gain in reward of every question of a set in each language that did not know it.

    In order, so that the last bits of a mean over them are the same in every process.
    """
    first, last = before.get(name, {}), after.get(name, {})
    for row in sorted(first.keys() & last.keys(), key=int):
        knows = set[str]() if knowledge is None else knowledge.languages[name][int(row)]
        for language in sorted((first[row].keys() & last[row].keys()) - knows):
            earlier, later = first[row][language], last[row][language]
            if earlier is not None and later is not None:
                yield int(row), language, later - earlier
