"""Diagnostics of rollouts, from what the reward process found out about each answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from common.diagnostics import Sample, is_right
from common.wire import Rollout

# Figure of ``summarise`` -> the chart and the line in it; the name of the detector comes before a line that it tells.
_PLACES = {
    "accuracy": ("consistency/", "accuracy"),
    "lc": ("consistency/", "both"),
    "lc_thought": ("consistency/", "thought"),
    "lc_answer": ("consistency/", "answer"),
    "lc_accuracy": ("consistency/", "both_right"),
    "switching_thought": ("switching/", "thought"),
    "switching_answer": ("switching/", "answer"),
    "tokens": ("", "tokens"),
}
_UNDETECTED = ("accuracy", "tokens")


def samples(rollouts: Iterable[Rollout]) -> list[Sample]:
    """The rollouts that could be scored, with what is known of them."""
    return [
        Sample(
            thought=rollout.score.thought_languages,
            answer=rollout.score.final_languages,
            right=is_right(rollout.score.quality, rollout.score.terms),
            tokens=len(rollout.response_ids),
        )
        for rollout in rollouts
        if rollout.score.scored
    ]


def tagged(figures: Mapping[str, float], detector: str, setting: str = "") -> dict[str, float]:
    """Figures of :func:`common.diagnostics.summarise` by their tags, as docs/metrics.md has them.

    Args:
        detector: ``reward.diagnostics``.
        setting: of an evaluation whose languages are chosen; stands before the measure.
    """
    found = {}
    for name, value in figures.items():
        chart, line = _PLACES.get(name, ("confusion/", name))
        told_by = "" if name in _UNDETECTED else detector
        found[chart + "_".join(filter(None, (told_by, setting, line)))] = value
    return found
