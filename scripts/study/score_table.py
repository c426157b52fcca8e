"""Summarises scored answers, and prints them in the order of the paper's table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from scripts.study.grading import Item, question_ids
from scripts.study.statistics import mean_interval

_COLUMNS = ("CARE", "CARE-pro", "mGSM", "G-MMLU-Lite", "Include-Lite")  # in the order of the paper's table


def summary(items: Sequence[Item], seen: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Percentages: the mean score with its interval, the means of seen and unseen languages and of each language, and
    the share of answers that are in the question's language. None where no answer could be scored.
    """
    scored = [item for item in items if item.score is not None]

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return 100 * float(np.mean(known)) if known else None

    values = np.array([100 * (item.score or 0) for item in scored])
    interval: Sequence[float | None] = [None] * 3
    if scored:
        interval = mean_interval(values, np.random.default_rng(seed), question_ids(scored))
    languages = sorted({item.language for item in scored})
    return {
        **dict(zip(("mean", "low", "high"), interval, strict=True)),
        "questions": len(items),
        "unjudged": len(items) - len(scored),
        "seen": mean(item.score for item in scored if item.language in seen),
        "unseen": mean(item.score for item in scored if item.language not in seen),
        "by_language": {one: mean(item.score for item in scored if item.language == one) for one in languages},
        "compliance": mean(item.compliant for item in items),
    }


def table(model: str, sets: dict[str, dict[str, Any]]) -> str:
    """A line for each set of questions; overall and seen are means over the sets that were scored."""
    lines = [model]
    for name, one in sorted(sets.items(), key=lambda pair: (*_COLUMNS, pair[0]).index(pair[0])):
        scored = one["mean"] is not None
        parts = [f"{one['mean']:6.2f} [{one['low']:.2f}, {one['high']:.2f}]" if scored else "not judged"]
        parts += [f"{one['questions']} questions"]
        names = {"seen": "seen", "unseen": "unseen", "compliance": "in the question's language"}
        parts += [f"{words} {one[part]:.2f}" for part, words in names.items() if one[part] is not None]
        parts += [f"{one['unjudged']} not judged"] * bool(scored and one["unjudged"])
        lines.append(f"  {name:<12} " + "  ".join(parts))
    for name, key in (("overall", "mean"), ("seen", "seen")):
        values = [one[key] for one in sets.values() if one[key] is not None]
        lines += [f"  {name:<12} {np.mean(values):6.2f}  mean of {len(values)} sets"] if values else []
    return "\n".join(lines)
