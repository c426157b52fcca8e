"""The figures of one finished run, read from what every run leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.process import FatalError
from scripts.study.experiments.knowledge import Knowledge
from scripts.study.experiments.transfer import measure_transfer, read_rewards

_GRADIENT_NOISE, _REWARD_STD = "learning/gradient_noise", "learning/reward_std"

# Name -> what it means, for the tables. All are of the policy at the end, unless they say otherwise.
MEANING = {
    "own_heldout": "greedy reward of held-out questions, answered in their own language",
    "own_train": "the same for trained questions",
    "routed_heldout": "greedy reward of held-out questions in the languages of the rollouts not reserved for their own",
    "routed_train": "the same for trained questions",
    "uniform_heldout": "greedy reward of held-out questions, mean over all languages",
    "oracle_heldout": "greedy reward of held-out questions, each in its best language",
    "accuracy_heldout": "share of held-out questions answered rightly, in any language, when asked for their own",
    "both_heldout": "share of them answered rightly, with thought and answer in their own language",
    "gain_heldout": "own_heldout, less that of the warm start",
    "gain_train": "own_train, less that of the warm start",
    "regret_heldout": "oracle_heldout, less routed_heldout",
    "known": "share of the training answers in a language that knows the question",
    "diversity": "mean number of languages in a prompt group of the training",
    "compliance": "share of the trained questions' answers that are in their own language",
    "forgetting": "loss of own held-out rewards, mean over all languages; a language without a loss counts as 0",
    "zero_variance": "share of the prompt groups whose answers had equal rewards",
    "reward_std": "standard deviation of the rewards of a prompt group, mean over the groups of the training",
    "taught": "gain of trained facts in languages that were asked and did not know them, less that of held-out ones",
    "transfer": "the same in languages that were not asked for them",
    "gradient_noise": "share of the squared gradient norm that is noise, mean over the steps where it was measured",
    "tokens": "tokens of all training answers",
}

# What an arm with another reward has on a scale of its own: what is paid, and what counts as compliant for it. The
# others are about right answers, languages and counts.
REWARDS = frozenset(MEANING) - {
    "accuracy_heldout", "both_heldout", "known", "diversity", "zero_variance", "gradient_noise", "tokens",
}  # fmt: skip


def read_evaluation_before(run: Path) -> dict[str, Any]:
    """What the evaluation of the warm start found, by set of questions, and all its ``rewards``; empty without one."""
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))["evaluation_before"]
    return {**found, "rewards": read_rewards(run, "before")} if found else {}


def read_figures(
    run: Path, knowledge: Knowledge | None, before: Mapping[str, Any] | None = None
) -> dict[str, float | None]:
    """The figures of :data:`MEANING`; None where a run does not have one.

    Args:
        run: directory of the run.
        knowledge: who knows what before the training; None: not known.
        before: the evaluation of the warm start, for a run that has not made it.

    Raises:
        FatalError: the run has not finished, or was not evaluated.
    """
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        before, after = before or read_evaluation_before(run), summary["evaluation_after"]
        trained, heldout = after["train"], after["heldout"]
        languages = heldout["own_by_language"]
        earlier = before["heldout"]["own_by_language"]
        losses = [max(0.0, earlier[one] - languages[one]) for one in languages if one in earlier]
        gains = {part: after[part]["own"] - before[part]["own"] for part in ("train", "heldout")}
        routing, asked = _read_routing(run / "ledger.jsonl", knowledge)
    except (OSError, ValueError, LookupError) as error:
        raise FatalError(f"{run} holds no finished and evaluated run: {type(error).__name__}: {error}") from None
    groups = summary["groups_trained"] + summary["groups_zero_variance"]
    transfer = measure_transfer(before.get("rewards", {}), read_rewards(run, "after"), asked, knowledge)
    return {
        "own_heldout": heldout["own"],
        "own_train": trained["own"],
        "routed_heldout": heldout["routed"],
        "routed_train": trained["routed"],
        "uniform_heldout": heldout["uniform"],
        "oracle_heldout": heldout["oracle"],
        "accuracy_heldout": _diagnostic(heldout, "consistency/accuracy"),
        "both_heldout": _diagnostic(heldout, "both_right"),
        "gain_heldout": gains["heldout"],
        "gain_train": gains["train"],
        "regret_heldout": None if heldout["routed"] is None else heldout["oracle"] - heldout["routed"],
        "known": routing["known"],
        "diversity": routing["diversity"],
        "compliance": trained["compliance"],
        "forgetting": sum(losses) / len(losses) if losses else None,
        "zero_variance": summary["groups_zero_variance"] / groups if groups else None,
        "reward_std": _mean_of_metric(run, _REWARD_STD),
        "taught": transfer["taught"],
        "transfer": transfer["transfer"],
        "gradient_noise": _mean_of_metric(run, _GRADIENT_NOISE),
        "tokens": routing["tokens"],
    }


def _diagnostic(evaluation: Mapping[str, Any], end: str) -> float | None:
    """The diagnostic of answers in the questions' own languages whose tag ends so, whatever the detector."""
    found = [value for tag, value in evaluation.get("diagnostics", {}).items() if tag.endswith(end)]
    return float(found[0]) if found else None


def _mean_of_metric(run: Path, tag: str) -> float | None:
    """The mean of a metric over the steps where it is a finite number; None where there is none."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    if (run / "tensorboard").is_dir():
        events.Reload()
    if tag not in events.Tags()["scalars"]:
        return None
    values = [point.value for point in events.Scalars(tag) if math.isfinite(point.value)]
    return float(np.mean(values)) if values else None


def _read_routing(path: Path, knowledge: Knowledge | None) -> tuple[dict[str, float | None], dict[int, set[str]]]:
    """The figures ``tokens``, ``known`` and ``diversity`` of the answered groups in a ledger, and by the row of a
    question the languages of the answers to it.
    """
    groups, tokens, answers, known, different = 0, 0, 0, 0, 0
    asked: dict[int, set[str]] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            languages = entry.get("languages") or []
            tokens += sum(entry.get("lengths") or [])
            groups, answers = groups + bool(languages), answers + len(languages)
            different += len({*languages})
            if languages:
                asked.setdefault(entry["row"], set()).update(languages)
            if knowledge is not None:
                known += sum(language in knowledge.languages["train"][entry["row"]] for language in languages)
    figures = {
        "tokens": float(tokens),
        "known": known / answers if answers and knowledge is not None else None,
        "diversity": different / groups if groups else None,
    }
    return figures, asked
