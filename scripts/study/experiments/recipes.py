"""The arms of the study ``recipes``: every published recipe that the reasoning world has what it needs for."""

from __future__ import annotations

from dataclasses import dataclass

from common.process import FatalError
from scripts.ops.recipes import recipe_files

BASE = "naive-grpo"  # what the others are compared with

_NO_HEADERS = (
    "the policy names its language in a header, and the world's warm start teaches to follow tags, not to choose"
)
_NO_PROSE = "its reward is the similarity of prose to a reference in any language, and the world's answers are numbers"
# Recipes that the world lacks something for, with the reason.
LEFT_OUT = {
    "csc": "answers must agree in their \\boxed{} results, and the world's policy writes none, so all would earn 0",
    "explang": _NO_HEADERS,
    "hybrid": _NO_HEADERS,
    "lrpo": _NO_PROSE,
    "lrpo-paper": _NO_PROSE,
}


@dataclass(frozen=True)
class Adaptation:
    """What a recipe needs besides the sizes of the world."""

    flags: tuple[str, ...] = ()
    judged: bool = False  # its judge is that of the world, scripts/world/reasoning/judge.py
    told: str = ""  # for the tables: what differs from the recipe


def _columns(**columns: str) -> tuple[str, ...]:
    return tuple(word for name, column in columns.items() for word in (f"--data.columns.{name}", column))


_ADAPTATIONS = {
    "slc-rl": Adaptation(
        ("--reward.function", "configs/recipes/m_thinker.py:slc_rl_of_any_length"),
        told="rewards answers of any length: none has 1,000 characters",
    ),
    "m-thinker": Adaptation(
        _columns(english_question="english_question", english_thought="english_thought"),
        judged=True,
        told="a program that reads number words is the judge",
    ),
    "sp3f": Adaptation(
        _columns(english_question="english_question", english_solution="english_thought"),
        judged=True,
        told="a program that reads number words is the judge; no answer has a box",
    ),
    "pb-rlsvr": Adaptation(
        _columns(english_answer="english_answer", english_reasoning="english_thought"),
        judged=True,
        told="the grade of an answer, a number, is 100 if it equals the English one and else 0",
    ),
    "mcot": Adaptation(told="no answer has a box"),
}


def runnable() -> list[str]:
    """The recipes that run on the reasoning world: the one that others are compared with, then the others by name."""
    return sorted((name for name in recipe_files() if name not in LEFT_OUT), key=lambda name: (name != BASE, name))


def adaptation(recipe: str) -> Adaptation:
    """What a recipe needs besides the sizes of the world.

    Raises:
        FatalError: the recipe cannot run on the world; the message says why.
        ConfigError: there is no such recipe, or it needs a judge and nobody has said which.
    """
    if reason := LEFT_OUT.get(recipe):
        raise FatalError(f"the recipe {recipe} cannot run on the reasoning world: {reason}; leave it out of --recipes")
    return _ADAPTATIONS.get(recipe, Adaptation())
