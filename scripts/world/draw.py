"""Draws a world: the facts that are trained on and held out, and the languages that know each fact."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from common.process import FatalError
from scripts.world.facts import REGION_AFFINITY, Fact
from scripts.world.settings import Knowledge
from scripts.world.templates import LANGUAGES

STRONG, WEAK = 0.95, 0.15  # probabilities that a language knows a fact
_EQUAL = 3  # languages that surely know a fact where the knowledge is "equal"
# One round of drawing facts; regions take part in turn, so that every set is balanced over topics and regions.
_ROUND = [(kind, region) for kind in ("capital", "currency", "continent") for region in REGION_AFFINITY] + [
    ("weekday", None),
    ("month", None),
    *[("sum", None)] * 4,
]


@dataclasses.dataclass(frozen=True)
class World:
    """The facts by their use, and the languages that know them."""

    train: list[Fact]
    heldout: list[Fact]
    others: list[Fact]  # taught by the warm start, and neither trained on nor held out
    known: set[tuple[str, str]]  # (fact id, answer language)
    best: str | None  # the language that knows all facts, where there is one


def draw(
    pool: Iterable[Fact], total: int, train: int, heldout: int, seed: int, knowledge: Knowledge = "region"
) -> World:
    """Draws facts, balanced over topics and regions, and the languages that know each.

    Args:
        total: number of facts in all, of which ``train`` are trained on and ``heldout`` are held out.

    Raises:
        FatalError: the sets exceed the total, or the pool is too small.
    """
    if train + heldout > total:
        raise FatalError(f"{train} trained and {heldout} held-out facts are more than {total} facts")
    rng = random.Random(seed)
    cells: dict[tuple[str, str | None], list[Fact]] = {}
    for fact in pool:
        cells.setdefault((fact.kind, fact.region), []).append(fact)
    for cell in cells.values():
        rng.shuffle(cell)
    chosen: list[Fact] = []
    while len(chosen) < total:
        left = [key for key in _ROUND if cells.get(key)]
        if not left:
            raise FatalError(f"only {len(chosen)} of {total} facts can be drawn; ask for fewer")
        rng.shuffle(left)  # so that an incomplete round favours no topic and no region
        chosen += [cells[key].pop() for key in left if cells[key]]
    chosen = chosen[:total]
    known = set()
    of_knowledge = random.Random(f"{knowledge} {seed}")  # another generator, so that all regimes have the same facts
    best = of_knowledge.choice(LANGUAGES) if knowledge == "one-language" else None
    for position, fact in enumerate(chosen):
        sure = fact.strong
        if knowledge != "region":
            sure = {best} if best else set(of_knowledge.sample(LANGUAGES, _EQUAL))
        for lang in LANGUAGES:
            strong = 1.0 if position < train + heldout else STRONG  # some language is to know every question of RL
            probability = strong if lang in sure else WEAK
            if rng.random() < probability:
                known.add((fact.id, lang))
    return World(chosen[:train], chosen[train : train + heldout], chosen[train + heldout :], known, best)
