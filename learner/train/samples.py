"""From prompt groups to training samples: which rollouts a step trains on, and the weight of each of their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.config import LearnerConfig
from learner.groups import Group
from learner.train.aggregation import token_weights
from learner.train.outcomes import carries_gradient, group_outcome, step_advantages
from learner.train.packing import Sample
from learner.train.statistics import actor_names


def group_samples(batch: Sequence[Group], config: LearnerConfig) -> tuple[list[Sample], list[str]]:
    """The rollouts of a batch that carry gradient, as samples, and the languages that ``Sample.language`` indexes.

    The groups that are trained are divided into ``learner.minibatches`` mini-batches, in the order of the batch and as
    evenly as can be; the weights of the tokens are those of their mini-batch. A rollout in no language counts under the
    name ``none``.
    """
    trained = [number for number, group in enumerate(batch) if group_outcome(group, config) == "trained"]
    parts = np.array_split(np.array(trained, np.int64), min(config.minibatches, max(len(trained), 1)))
    advantage_of = dict(zip(trained, step_advantages([batch[number] for number in trained], config), strict=True))
    actors = {name: number for number, name in enumerate(actor_names(batch))}
    used = [
        rollout.language or "none"
        for number in trained
        for rollout in batch[number].rollouts
        if carries_gradient(rollout, config)
    ]
    languages = sorted(set(used))
    samples = []
    for minibatch, members in enumerate(parts):
        chosen = [
            (number, k, rollout)
            for number in members.tolist()
            for k, rollout in enumerate(batch[number].rollouts)
            if carries_gradient(rollout, config)
        ]
        lengths = [len(rollout.response_ids) for _, _, rollout in chosen]
        spoken = [rollout.language or "none" for _, _, rollout in chosen]
        weights = token_weights(lengths, spoken, config.aggregation, config.aggregation_length)
        samples += [
            Sample(
                rollout,
                float(advantage_of[number][k]),
                float(weight),
                language=languages.index(language),
                actor=actors[batch[number].actor],
                group=number,
                minibatch=minibatch,
                name=f"{batch[number].work.id}, answer {k + 1} ({rollout.language or 'none'})",
            )
            for (number, k, rollout), language, weight in zip(chosen, spoken, weights, strict=True)
        ]
    return samples, languages
