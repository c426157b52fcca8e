"""What training taught, and what of it carried over to languages in which nothing was trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from scripts.study.experiments.knowledge import SETS, Knowledge

# Set of questions ("train", "heldout") -> row, as text -> language -> greedy reward, None where it was not scored.
Rewards = Mapping[str, Mapping[str, Mapping[str, float | None]]]


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


def measure_transfer(
    before: Rewards, after: Rewards, answers: Mapping[int, set[str]], knowledge: Knowledge | None
) -> dict[str, float | None]:
    """Gains in languages that did not know a question, less what any question gained there.

    Training teaches facts, and it teaches to answer at all. The second shows in questions that were never trained, so
    their gain is taken off: ``taught`` and ``transfer`` are the mean gain of a trained question in a language that did
    not know it, less the mean gain of held-out questions in languages that did not know them. For ``taught`` an answer
    in that very language was trained, to this question or to another one that asks for the same fact; for ``transfer``
    only answers in other languages were.

    Args:
        before: the warm start's rewards.
        after: those of the trained policy.
        answers: row of a trained question -> the languages of the answers to it that were trained.
        knowledge: None where it is not known who knows what: then every language counts as one that did not know, and
            every question as a fact of its own.

    Returns:
        ``taught`` and ``transfer``; None where there is no such question and language, or no evaluation.
    """
    trained: dict[int | str, set[str]] = {}  # fact -> the languages in which an answer was trained
    for row, languages in answers.items():
        trained.setdefault(_fact(row, knowledge), set()).update(languages)
    taught, untaught = list[float](), list[float]()
    for row, language, gain in _gains(before, after, "train", knowledge):
        (taught if language in trained.get(_fact(row, knowledge), ()) else untaught).append(gain)
    control = [gain for _, _, gain in _gains(before, after, "heldout", knowledge)]
    return {name: _excess(gains, control) for name, gains in (("taught", taught), ("transfer", untaught))}


def _fact(row: int, knowledge: Knowledge | None) -> int | str:
    return row if knowledge is None else knowledge.facts[row]


def _excess(gains: list[float], control: list[float]) -> float | None:
    return float(np.mean(gains) - np.mean(control)) if gains and control else None


def _gains(before: Rewards, after: Rewards, name: str, knowledge: Knowledge | None) -> Iterator[tuple[int, str, float]]:
    """Row, language, and gain in reward of every question of a set in each language that did not know it."""
    first, last = before.get(name, {}), after.get(name, {})
    for row in first.keys() & last.keys():
        knows = set[str]() if knowledge is None else knowledge.languages[name][int(row)]
        for language in (first[row].keys() & last[row].keys()) - knows:
            earlier, later = first[row][language], last[row][language]
            if earlier is not None and later is not None:
                yield int(row), language, later - earlier
