"""What the ledger says of answers whose language the policy chose: the language, and how probable the choice was."""

from __future__ import annotations

import math

import numpy as np

from common.languages import POLICY_CHOOSES
from common.wire import Rollout, Work
from learner.groups import Group


def work_as_answered(group: Group) -> Work:
    """The group's work with the languages that the policy chose filled in, for the ledger.

    The propensity of a chosen language is the probability that the policy gave to the header it wrote; NaN where it
    wrote none, which the ledger has as null.
    """
    work, languages = group.work, [rollout.language for rollout in group.rollouts]
    triples = zip(work.languages, work.propensities, group.rollouts, strict=True)
    propensities = [
        float(np.exp(header_logp(rollout))) if asked == POLICY_CHOOSES else propensity
        for asked, propensity, rollout in triples
    ]
    return work.model_copy(update={"languages": languages, "propensities": propensities})


def header_logp(rollout: Rollout) -> float:
    """Behaviour log-probability of the header that a free rollout begins with, in nats; NaN where it has none."""
    if not rollout.header:  # the sum over no tokens would be that of a certain header
        return math.nan
    return float(rollout.logprobs[: rollout.header].sum(dtype=np.float64))
