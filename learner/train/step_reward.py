"""A step term of the user's own: rewards or advantages computed from all answers of a step at once.

``learner.step_reward = "FILE.py:NAME"`` names it. Rewards that compare the answers of different questions, or change in
the course of the run, belong here: the reward service scores one question at a time, and does not know the step that
will train its answers. docs/rewards.md shows how to write one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import ConfigError, LearnerConfig
from common.process import FatalError
from common.user_code import describe_failure, load_user_object, user_file
from learner.groups import Group

Floats = NDArray[np.float64]
_GIVES = ("rewards", "advantages")


@dataclass(frozen=True)
class Step:
    """The N answers of a step, group after group, as a step term sees them. All arrays are [N].

    Attributes:
        parts: float64 by name, the terms or parts that the reward process gave; NaN where an answer has no such part.
        rewards: float64, what the reward process made of them.
        scored: bool, False where an answer could not be scored; it takes no part, whatever the term says of it.
        compliant: bool, whether the answer is in the language asked for.
        group: int64, number of the answer's group in the step.
        asked: str, language asked for, or chosen by the policy; "" where it named none.
        detected: str, language that the answer is in; "" where it has none.
        question_language: str.
        tokens: int64, length of the answer.
        truncated: bool, whether it hit the length limit.
        number: of the step, from 0.
        progress: number / learner.steps, in [0, 1).
    """

    parts: Mapping[str, Floats]
    rewards: Floats
    scored: NDArray[np.bool_]
    compliant: NDArray[np.bool_]
    group: NDArray[np.int64]
    asked: NDArray[np.str_]
    detected: NDArray[np.str_]
    question_language: NDArray[np.str_]
    tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    number: int
    progress: float


class StepReward:
    """Calls the user's step term.

    Args:
        where: ``FILE.py:NAME`` of a callable ``(step, state) -> (values [N], state)``. A class is called without
            arguments first. Its attribute ``gives`` says whether the values are "rewards" (the default), from which
            ``learner.advantage`` makes advantages, or "advantages".
        steps: of the run.

    Raises:
        ConfigError: it cannot be loaded.
    """

    def __init__(self, where: str, steps: int) -> None:
        self._path, self._steps = user_file(where), steps
        self._term: Any = load_user_object(where, "learner.step_reward")
        self._gives = getattr(self._term, "gives", "rewards")
        if not callable(self._term) or self._gives not in _GIVES:
            raise ConfigError(f'learner.step_reward = "{where}" must be callable, and its `gives` one of {_GIVES}')

    @classmethod
    def of(cls, config: LearnerConfig) -> StepReward | None:
        """The step term of a configuration; None where it has none.

        Raises:
            ConfigError: it cannot be loaded; or what it gives would not be used, or leave another setting unused.
        """
        if not config.step_reward:
            return None
        term = cls(config.step_reward, config.steps)
        if term._gives == "rewards" and config.advantage == "decoupled" and "reward" not in config.decoupled_parts:
            raise ConfigError(
                f'learner.step_reward = "{config.step_reward}" gives rewards, which learner.advantage = "decoupled" '
                "uses only as the part 'reward': name it in learner.decoupled_parts with its weight, or choose another "
                "learner.advantage"
            )
        if term._gives == "advantages" and config.overlong_limit:
            raise ConfigError(
                f'learner.step_reward = "{config.step_reward}" gives advantages, from which no penalty for long '
                f"answers is taken: leave learner.overlong_limit = {config.overlong_limit} out, or have the term give "
                "rewards"
            )
        return term

    def __call__(
        self, batch: Sequence[Group], number: int, state: Mapping[str, Any]
    ) -> tuple[list[Group], dict[str, Any]]:
        """The batch with the term's rewards or advantages, and the term's new state, as a checkpoint keeps it.

        A reward of NaN says that the answer cannot be scored.

        Args:
            number: of the step, from 0.
            state: what the term returned in the step before; empty at first.

        Raises:
            FatalError: the term raised an error, or returned something else. A step without its term would silently
                train on other rewards, so the run ends; mended, it resumes from its checkpoint.
        """
        step = make_step(batch, number, self._steps)
        try:
            values, after = self._term(step, dict(state))
        except (Exception, SystemExit) as error:  # whatever somebody else's code raises is told with its place
            reason = describe_failure(error, self._path)
            raise FatalError(f"learner.step_reward failed in step {number}: {reason}") from error
        try:
            found = np.array(values, np.float64)
        except (TypeError, ValueError) as error:  # texts, or lists of different lengths
            raise FatalError(
                f"{self._path} returned {self._gives} in step {number} that are no array of numbers: {error}"
            ) from None
        if found.shape != step.scored.shape:
            raise FatalError(f"{self._path} returned values of shape {found.shape}; {step.scored.shape} is needed")
        scored = step.scored & ~np.isnan(found) if self._gives == "rewards" else step.scored
        if not np.isfinite(found[scored]).all():
            raise FatalError(f"{self._path} returned {self._gives} that are not finite in step {number}")
        return self._with_values(batch, np.where(scored, found, 0.0), scored), self._checked(after, number)

    def _with_values(self, batch: Sequence[Group], values: Floats, scored: NDArray[np.bool_]) -> list[Group]:
        groups, end = [], 0
        for group in batch:
            start, end = end, end + len(group.rollouts)
            if self._gives == "advantages":
                groups.append(group.model_copy(update={"advantages": values[start:end].tolist()}))
                continue
            rows = zip(group.rollouts, values[start:end].tolist(), scored[start:end].tolist(), strict=True)
            rollouts = [
                one.model_copy(update={"score": one.score.model_copy(update={"reward": value, "scored": known})})
                for one, value, known in rows
            ]
            groups.append(group.model_copy(update={"rollouts": rollouts}))
        return groups

    def _checked(self, state: Any, number: int) -> dict[str, Any]:
        """The state after a way through JSON, so that a resumed run sees what one that was never interrupted sees.

        It is the JSON of checkpoints, in which infinity and NaN stay what they are.
        """
        try:
            if isinstance(state, dict):
                found: dict[str, Any] = json.loads(json.dumps(state, default=_plain))
                return found
            raise TypeError(f"it is a {type(state).__name__}, not a dict")
        except (TypeError, ValueError) as error:
            raise FatalError(
                f"{self._path} returned a state in step {number} that a checkpoint cannot keep: {error}. It may hold "
                "numbers, texts, lists, dicts and numpy arrays, which come back as lists"
            ) from None


def make_step(batch: Sequence[Group], number: int, steps: int) -> Step:
    """The answers of a step as arrays; see :class:`Step`."""
    rollouts = [rollout for group in batch for rollout in group.rollouts]
    scores = [rollout.score for rollout in rollouts]
    sizes = [len(group.rollouts) for group in batch]
    names = dict.fromkeys(name for score in scores for name in score.terms)
    return Step(
        parts={name: np.array([score.terms.get(name, np.nan) for score in scores], np.float64) for name in names},
        rewards=np.array([score.reward for score in scores], np.float64),
        scored=np.array([score.scored for score in scores], np.bool_),
        compliant=np.array([score.compliant for score in scores], np.bool_),
        group=np.repeat(np.arange(len(batch)), sizes),
        asked=np.array([rollout.language for rollout in rollouts], np.str_),
        detected=np.array([score.detected for score in scores], np.str_),
        question_language=np.repeat(np.array([group.work.question.language for group in batch], np.str_), sizes),
        tokens=np.array([len(rollout.response_ids) for rollout in rollouts], np.int64),
        truncated=np.array([rollout.truncated for rollout in rollouts], np.bool_),
        number=number,
        progress=number / steps,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"it holds a {type(value).__name__}")
