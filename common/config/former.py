"""Settings of earlier versions that are gone, and what has taken their place: whoever gives one is told so."""

from __future__ import annotations

from collections.abc import Mapping

FORMER: Mapping[str, str] = {  # by its dotted name
    "learner.batch_timeout_s": (
        "it is now learner.group_timeout_s, counted anew from each group that comes and no longer for a whole step: it "
        "must be above actor.request_timeout_s, as in learner.group_timeout_s = 1800"
    ),
    "reward.gate_piece": (
        "the language gate has no pieces of a fixed length any more: it judges all of a text, and reward.gate_share is "
        "the largest share of its letters that may be in other languages, as in reward.gate_share = 0.12"
    ),
    "router.indifference": (
        "it is now router.diversity: the expected reward that each drawn answer may give up so that languages are "
        "drawn more evenly, as in router.diversity = 0.002"
    ),
}
