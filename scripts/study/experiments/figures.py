"""The figures of one finished run, read from what every run leaves behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.config import load
from common.process import FatalError

# Settings that say where things lie, how fast they go, or what is measured, and not what is trained.
_NOT_TRAINED = (
    "run.dir", "data.train", "data.heldout", "model.path", "reward.calibration", "reward.addresses",
    "learner.gradient_noise_every",
)  # fmt: skip
_GRADIENT_NOISE = "learning/gradient_noise"

# Name -> what it means, for the tables. All are of the policy at the end, unless they say otherwise.
MEANING = {
    "own_heldout": "greedy reward of held-out questions, answered in their own language",
    "own_train": "the same for trained questions",
    "routed_heldout": "greedy reward of held-out questions in the languages that the arm draws besides their own",
    "routed_train": "the same for trained questions",
    "uniform_heldout": "greedy reward of held-out questions, mean over all languages",
    "oracle_heldout": "greedy reward of held-out questions, each in its best language",
    "accuracy_heldout": "share of held-out questions answered rightly when asked for in their own language, in any",
    "both_heldout": "share of them answered rightly, with thought and answer in their own language",
    "gain_heldout": "own_heldout, less that of the warm start",
    "gain_train": "own_train, less that of the warm start",
    "regret_heldout": "oracle_heldout, less routed_heldout",
    "known": "share of the training answers in a language that knows the question",
    "diversity": "mean number of languages in a prompt group of the training",
    "compliance": "share of the trained questions' answers that are in their own language",
    "forgetting": "mean loss over languages of own held-out rewards, where they fell",
    "zero_variance": "share of the prompt groups whose answers had equal rewards",
    "gradient_noise": "share of the squared gradient norm that is noise, mean over the steps where it was measured",
    "tokens": "tokens of all training answers",
}

# What an arm with another reward has on a scale of its own. The others are about right answers, languages and counts.
REWARDS = frozenset(MEANING) - {
    "accuracy_heldout", "both_heldout", "known", "diversity", "compliance", "zero_variance", "gradient_noise", "tokens",
}  # fmt: skip


def read_evaluation_before(run: Path) -> dict[str, Any]:
    """What the evaluation of the warm start found, by set of questions; empty if the run had none."""
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))["evaluation_before"]
    return found


def read_figures(
    run: Path, knowledge: Mapping[int, set[str]] | None, before: Mapping[str, Any] | None = None
) -> dict[str, float | None]:
    """The figures of :data:`MEANING`; None where a run does not have one.

    Args:
        run: directory of the run.
        knowledge: row of a trained question -> languages that know its answer; None: not known.
        before: the evaluation of the warm start, for a run that has not made it.

    Raises:
        FatalError: the run has not finished, or was not evaluated.
    """
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        before, after = before or summary["evaluation_before"], summary["evaluation_after"]
        trained, heldout = after["train"], after["heldout"]
        languages = heldout["own_by_language"]
        earlier = before["heldout"]["own_by_language"]
        losses = [max(0.0, earlier[one] - languages[one]) for one in languages if one in earlier]
        gains = {part: after[part]["own"] - before[part]["own"] for part in ("train", "heldout")}
    except (OSError, ValueError, LookupError) as error:
        raise FatalError(
            f"{run} holds no finished and evaluated run: {error!r}; remove it, so that it is trained again"
        ) from None
    groups = summary["groups_trained"] + summary["groups_zero_variance"]
    routing = _read_routing(run / "ledger.jsonl", knowledge)
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
        "gradient_noise": _mean_of_metric(run, _GRADIENT_NOISE),
        "tokens": routing["tokens"],
    }


def _diagnostic(evaluation: Mapping[str, Any], end: str) -> float | None:
    """The diagnostic of answers in the questions' own languages whose tag ends so, whatever the detector."""
    found = [value for tag, value in evaluation.get("diagnostics", {}).items() if tag.endswith(end)]
    return float(found[0]) if found else None


def _mean_of_metric(run: Path, tag: str) -> float | None:
    """The mean of a metric over the steps that have it; None where none has."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    if (run / "tensorboard").is_dir():
        events.Reload()
    if tag not in events.Tags()["scalars"]:
        return None
    points = events.Scalars(tag)
    return float(np.mean([point.value for point in points]))


def _read_routing(path: Path, knowledge: Mapping[int, set[str]] | None) -> dict[str, float | None]:
    """The figures ``tokens``, ``known`` and ``diversity`` of the answered groups in a ledger."""
    groups, tokens, answers, known, different = 0, 0, 0, 0, 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            languages = entry.get("languages") or []
            tokens += sum(entry.get("lengths") or [])
            groups, answers = groups + bool(languages), answers + len(languages)
            different += len({*languages})
            if knowledge is not None:
                known += sum(language in knowledge[entry["row"]] for language in languages)
    return {
        "tokens": float(tokens),
        "known": known / answers if answers and knowledge is not None else None,
        "diversity": different / groups if groups else None,
    }


def read_knowledge(world: Path) -> dict[int, set[str]]:
    """Row of ``train.parquet`` -> languages that know its answer, of an offline world."""
    by_reference: dict[str, set[str]] = {}
    for row in pq.read_table(world / "warm_start.parquet").to_pylist():
        for question in row["questions"]:
            by_reference.setdefault(question["text"], set()).update([row["language"]] if row["sureness"] == 1.0 else [])
    questions = pq.read_table(world / "train.parquet")["question"].to_pylist()
    return {number: by_reference[text] for number, text in enumerate(questions)}


def best_language(knowledge: Mapping[int, set[str]]) -> str:
    """The language that knows most questions, which only hindsight tells; of equals the first by name."""
    counts: dict[str, int] = {}
    for languages in knowledge.values():
        for language in languages:
            counts[language] = counts.get(language, 0) + 1
    return min(counts, key=lambda language: (-counts[language], language))


def settings_hash(settings: Sequence[str], flags: Sequence[str]) -> str:
    """Twelve digits that tell the settings of an arm from others, wherever its files lie.

    Settings with their default values do not enter, so that a study goes on with a version that has more of them.

    Args:
        settings: files and flags that all arms share.
        flags: those of the arm, and of what it starts from.

    Raises:
        ConfigError: the settings are wrong.
    """
    config = load(settings).model_dump(mode="json", exclude_defaults=True)
    kept = {
        f"{section}.{name}": value
        for section, values in config.items()
        for name, value in values.items()
        if f"{section}.{name}" not in _NOT_TRAINED
    }
    return hashlib.sha256(json.dumps([kept, *flags], sort_keys=True).encode()).hexdigest()[:12]
