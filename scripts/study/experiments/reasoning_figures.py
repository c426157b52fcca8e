"""The figures of a policy of the reasoning world: in which language it thinks, and how often it is right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from common.process import FatalError
from scripts.study.experiments.files import write_whole
from scripts.study.experiments.place import Figures
from scripts.study.experiments.set_up import digest_of_model
from scripts.world.reasoning.measure import Judged, figures, measure

SAMPLES = 4  # answers to each held-out question

_MEASURED = {
    "lc": "share of answers whose thought is in the language of the question",
    "acc": "share of right answers",
    "both": "share of answers that are both",
}
_WHOSE = {"": "held-out questions in other languages than English", "_all": "all held-out questions"}
# Name -> what it means, for the tables.
MEANING = {
    **{f"{name}{whose}": f"{meaning}; {of}" for whose, of in _WHOSE.items() for name, meaning in _MEASURED.items()},
    **{
        f"{name}{whose}_before": f"the same of the warm start; {of}"
        for whose, of in _WHOSE.items()
        for name in _MEASURED
    },
    "english": "share of thoughts in English; held-out questions in other languages than English",
    "english_before": "the same of the warm start",
    "tokens": "mean length of these answers",
    "answers": "answers that were generated in training",
    "training_seconds": "from the start of the learner to its end",
}


def read_figures(run: Path, before: Figures, measured: Figures) -> dict[str, float | None]:
    """The figures of :data:`MEANING`.

    Args:
        run: directory of a finished run.
        before: of the warm start, as :func:`measure_policy` gives them.
        measured: the same of the run's policy.

    Raises:
        FatalError: the run has not finished.
    """
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        seconds = summary["wall_seconds"]
        with (run / "ledger.jsonl").open(encoding="utf-8") as lines:
            answers = sum(len(json.loads(line).get("lengths") or []) for line in lines)
    except (OSError, ValueError, LookupError) as error:
        raise FatalError(f"{run} holds no finished run: {error}") from None
    after = {name: value for name, value in measured.items() if name in MEANING}
    earlier = {f"{name}_before": value for name, value in before.items() if f"{name}_before" in MEANING}
    return {**after, **earlier, "answers": float(answers), "training_seconds": seconds}


def measure_policy(model: Path, world: Path, seed: int, samples: int = SAMPLES) -> dict[str, float | None]:
    """LC, Acc and LC&Acc of a policy, and the share of English thoughts. Blocks for seconds.

    Raises:
        FatalError: there is no such model.
    """
    if not (model / "config.json").exists():
        raise FatalError(f"{model} holds no model to measure, as a run keeps only with --keep")
    judged = measure(model, world, samples, seed)
    return _summary(judged)


def measure_warm_start(policy: Path, world: Path, seed: int, samples: int = SAMPLES) -> dict[str, float | None]:
    """The same of a warm-started policy. It is kept beside the policy, for all runs that begin there."""
    kept = policy.with_name(f"{policy.name}-figures.json")
    made_from = {"policy": digest_of_model(str(policy)), "samples": samples}  # another CPU may train other weights
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["of"] == made_from:
            figures_found: dict[str, float | None] = found["figures"]
            return figures_found
    measured = measure_policy(policy, world, seed, samples)
    write_whole(kept, json.dumps({"of": made_from, "figures": measured}, indent=1) + "\n")
    return measured


def _summary(judged: Sequence[Judged]) -> dict[str, float | None]:
    others = figures([one for one in judged if one.language != "en"])
    found: dict[str, float | None] = {"english": others.english, "tokens": others.tokens}
    for whose, one in (("", others), ("_all", figures(judged))):
        found |= {f"lc{whose}": one.consistency, f"acc{whose}": one.accuracy, f"both{whose}": one.both}
    return found
