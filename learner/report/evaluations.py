"""The rewards of an evaluation, question by question, for whoever wants to know what was answered and what was not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from learner.groups import Group

DIRECTORY = "evaluations"  # below run.dir; one file NAME-SET.jsonl for each evaluation and set of questions


def undo(directory: Path, step: int) -> None:
    """Removes what is there of evaluations after later steps than ``step``, which a resume undoes.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in directory.glob("step-*.jsonl"):
        found = re.match(r"step-(\d+)-", path.name)
        if found and int(found[1]) > step:
            path.unlink()


def rewards_as_lines(groups: Sequence[Group]) -> str:
    """A line of JSON for each question, in the order of their rows.

    ``row`` is the number of the question's row in its file, ``language`` its own language, and ``rewards`` maps each
    language in which it was answered to the reward of the greedy answer, null where that could not be scored.
    """
    lines = []
    for group in sorted(groups, key=lambda one: one.work.question.index):
        rewards = {
            language: rollout.score.reward if rollout.score.scored else None
            for language, rollout in zip(group.work.languages, group.rollouts, strict=True)
        }
        question = group.work.question
        lines.append(json.dumps({"row": question.index, "language": question.language, "rewards": rewards}) + "\n")
    return "".join(lines)
