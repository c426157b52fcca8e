"""What training taught, and what of it carried over to languages in which nothing was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np

from scripts.study.experiments.knowledge import SETS, Knowledge

# Set of questions ("train", "heldout") -> row, as text -> language -> greedy reward, None where it was not scored.
Rewards = Mapping[str, Mapping[str, Mapping[str, float | None]]]

FEWEST_PAIRS = 10  # of a fact and a language; a mean over fewer is of a few that chance has picked


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
    before: Rewards, after: Rewards, asked: Mapping[int, AbstractSet[str]], knowledge: Knowledge | None
) -> dict[str, float | None]:
    """Gains of trained facts in languages that did not know them, less what held-out facts gained in these languages.

    Training teaches facts, and it teaches a language to answer at all. The second shows in facts that were never
    trained, so their gain is taken off, language by language: ``taught`` and ``transfer`` are means, over pairs of a
    trained fact and a language that did not know it, of the gain less the mean gain of the held-out questions that
    this language did not know. For ``taught`` an answer to the fact was asked for in that very language, for
    ``transfer`` none was. Pairs that were asked for and not trained, because all answers of their groups earned the
    same, stay in ``taught``: what they earned decided it, so a mean without them would be selected on its outcome. Only
    where the languages are fixed is it settled beforehand which pairs are asked for.

    Several questions may ask for one fact, as in the worlds, once in each language. The gain of a pair is the mean
    over them.

    Args:
        before: the warm start's rewards.
        after: those of the trained policy.
        asked: row of a trained question -> the languages in which the training asked for answers to it.
        knowledge: None where it is not known who knows what: then every language counts as one that did not know, and
            every question as a fact of its own.

    Returns:
        ``taught`` and ``transfer``; None with fewer than ``FEWEST_PAIRS`` facts and languages, or no evaluation.
    """
    asked_by_fact: dict[int | str, set[str]] = {}
    for row, languages in asked.items():
        asked_by_fact.setdefault(_fact(row, knowledge), set()).update(languages)
    held_out: dict[str, list[float]] = {}
    for _, language, gain in _gains(before, after, "heldout", knowledge):
        held_out.setdefault(language, []).append(gain)
    willingness = {language: float(np.mean(gains)) for language, gains in held_out.items()}
    of_pair: dict[tuple[int | str, str], list[float]] = {}
    for row, language, gain in _gains(before, after, "train", knowledge):
        if language in willingness:  # else it knew all held-out questions
            of_pair.setdefault((_fact(row, knowledge), language), []).append(gain - willingness[language])
    found: dict[str, list[float]] = {"taught": [], "transfer": []}
    for (fact, language), gains in of_pair.items():
        found["taught" if language in asked_by_fact.get(fact, ()) else "transfer"].append(float(np.mean(gains)))
    return {name: float(np.mean(gains)) if len(gains) >= FEWEST_PAIRS else None for name, gains in found.items()}


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
