"""The modes of the router: which rollouts of a question are fixed beforehand, and whether the rest is learned."""

from __future__ import annotations

from collections.abc import Sequence

from common.config import RouterConfig
from common.languages import POLICY_CHOOSES

TRANSLATION = "Translation"  # the topic of questions that say which language the answer has to be in


def draws_are_learned(config: RouterConfig) -> bool:
    """Whether languages are drawn by what the router has learned; in the other modes they are drawn uniformly."""
    return config.mode in ("learned", "hybrid")


def needed_language(config: RouterConfig) -> str | None:
    """The language in which the mode answers whatever the question's is, which has to be among those of the run."""
    return "en" if config.mode in ("input_dominant", "english_dominant") else config.fixed_language


def fixed_languages(config: RouterConfig, own: str, topics: Sequence[str]) -> list[str]:
    """The languages of a question's rollouts that are not drawn.

    Args:
        config: the section ``router``.
        own: the question's language.
        topics: the question's topics.

    Returns:
        At most K languages. ``POLICY_CHOOSES`` stands for a rollout whose language the policy chooses; those come last.
    """
    count = config.rollouts
    quarter = (count + 2) // 4  # rounded to the nearest number, halves upwards
    if TRANSLATION in topics:
        return [own] * count
    match config.mode:
        case "learned":
            return [own] * config.own_language
        case "monolingual":
            return [own] * count
        case "input_dominant":
            return [own] * (count - quarter) + ["en"] * quarter
        case "english_dominant":
            return [own] * quarter + ["en"] * (count - quarter)
        case "fixed":
            language = config.fixed_language or own  # the configuration has seen to it that there is one
            return [own] * config.own_language + [language] * (count - config.own_language)
        case "uniform":
            return [own] * quarter
        case "policy":
            return [POLICY_CHOOSES] * count
        case "hybrid":
            free = config.free_rollouts
            return [own] * min(config.own_language, count - free) + [POLICY_CHOOSES] * free
