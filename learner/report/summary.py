"""What ``summary.json`` holds: a pure function of the run's state, the audit of its ledger and what was measured."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from common import wire
from common.config import Config
from learner.groups import Outcome
from learner.report.timing import TimeByState, shares
from learner.state import RunState
from learner.work.ledger import Audit
from router import Router, mutual_information


@dataclass(frozen=True)
class Measured:
    """What clocks and counters say at the end of a run.

    Args:
        bottleneck: the stage that all others waited for, over the whole run.
        seconds: process -> state -> seconds since it started.
        step_seconds: process -> state -> mean seconds in a step of this process's part of the run.
        wall_seconds: since the run began.
    """

    bottleneck: str
    seconds: TimeByState
    step_seconds: TimeByState
    wall_seconds: float


def summarise(
    config: Config,
    state: RunState,
    audit: Audit,
    pairs: Sequence[tuple[str, str]],
    evaluation_before: Mapping[str, Any],
    evaluation_after: Mapping[str, Any],
    staleness_bound: int,
    measured: Measured,
) -> dict[str, Any]:
    """The summary of a run that has ended.

    Args:
        audit: of its ledger.
        pairs: region and language of every routed answer, as :func:`routed_pairs` gives them.
        evaluation_before: set of questions -> its figures, where the same questions were asked before the first step as
            after the last; a set that it does not have is None in the summary.
        evaluation_after: as ``evaluation_before``.
        staleness_bound: largest lag that the present settings allow, in policy updates. The summary has the largest of
            all steps, which may have had other settings.
    """
    totals, before = state.totals, evaluation_before
    bits, bits_by_chance = mutual_information(list(pairs))
    return {
        "steps": state.step,
        **{f"groups_{outcome}": audit.outcomes.get(outcome, 0) for outcome in get_args(Outcome)},
        "groups_retried": state.queue.retried,
        "questions_lost": audit.lost,
        "questions_duplicated": audit.duplicated,
        "staleness_max": totals.lag_max,
        "staleness_mean": totals.lag_sum / max(totals.response_tokens, 1),
        "staleness_bound": max(totals.staleness_bound, staleness_bound),
        "reward_before": _figure(before, "train", "own"),
        "reward_after": _figure(evaluation_after, "train", "own"),
        "heldout_before": _figure(before, "heldout", "own"),
        "heldout_after": _figure(evaluation_after, "heldout", "own"),
        "compliance_before": _figure(before, "train", "compliance"),
        "compliance_after": _figure(evaluation_after, "train", "compliance"),
        "reward_by_language": _figure(evaluation_after, "train", "own_by_language"),
        "router_top_by_topic": _likeliest_by_topic(state.router),
        "routed_by_region": _count_by_region(pairs),
        "region_language_bits": bits,
        "region_language_bits_shuffled": bits_by_chance,
        "tokens_per_second": totals.response_tokens / max(totals.loop_s, 1e-9),  # of the groups, trained or not
        "bottleneck": measured.bottleneck,
        "time_shares": {process: shares(states) for process, states in measured.seconds.items()},
        "evaluation_before": before,
        "evaluation_after": evaluation_after,
        "wall_seconds": measured.wall_seconds,
        "config": config.model_dump(mode="json"),
        "step_seconds": {
            **measured.step_seconds,
            "run": {"loop": totals.loop_s / max(state.step, 1), "pause": totals.pause_s / max(state.step, 1)},
        },
    }


def routed_pairs(
    routed: Iterable[tuple[int, list[str]]], questions: Iterable[wire.Question], router: Router
) -> list[tuple[str, str]]:
    """Region and language of every answer whose language was drawn or chosen, once for each region of its question.

    Args:
        routed: row and languages [K] of groups, as the ledger has them.
        questions: among them those of these rows.
        router: knows how many of a question's answers are drawn or chosen; they are the last ones.
    """
    by_row = {question.index: question for question in questions}
    pairs: list[tuple[str, str]] = []
    same: dict[tuple[str, str], tuple[str, str]] = {}  # so that equal pairs, of which there are many, are one object
    for row, languages in routed:
        question = by_row[row]
        drawn = languages[len(languages) - router.drawn(question.topics) :]
        found = [(region, language) for region in question.regions for language in drawn if language]
        pairs += [same.setdefault(pair, pair) for pair in found]
    return pairs


def _figure(evaluation: Mapping[str, Any], question_set: str, key: str) -> Any:
    return evaluation.get(question_set, {}).get(key)


def _likeliest_by_topic(router: Router) -> dict[str, str]:
    probabilities = router.log()["probs"]
    return {
        row.removeprefix("topic:"): max(chances["softmax"].items(), key=lambda item: item[1])[0]
        for row, chances in probabilities.items()
        if row.startswith("topic:")
    }


def _count_by_region(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for region, language in pairs:
        counts[region][language] += 1
    return {region: dict(of_region.most_common()) for region, of_region in sorted(counts.items())}
