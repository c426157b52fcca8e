"""What an answer is worth once its quality is known, and when a group is scored again. These rules are here alone:

* An answer that says nothing has the quality 0, whatever the terms are, and 0 of every term that a final answer
  earns by: it counts as wrong, and is not left out where right answers are counted. That holds for terms: a function of
  the user's own (``reward.function``) sees such an answer as any other, and what it returns is what counts.
* An answer in another language than the one asked for earns 0, where the rewards are gated.
* An answer of whose quality a part is missing is not scored, which is not the same as 0: it takes no part in the mean
  of its group.
* A group of which too many answers are not scored is handed back, to be scored again. Answers that would be missing
  every time, as where an embedding is no number or a judge refuses to grade, are not counted for this, so that no
  group is scored for ever; a reward function says so by ``tools.never`` (:mod:`reward.terms.missing`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from common.answer import Answer
from common.config import RewardConfig
from common.wire import Score
from reward.gate import Decision
from reward.scored import ScoredAnswer, UnscoredError


class Worth:
    """Turns qualities into scores.

    Args:
        config: the section ``reward``, of which ``gated`` and ``missing_max`` matter here.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._gated, self._missing_max = config.is_gated, config.missing_max

    def score(
        self,
        answer: Answer,
        decision: Decision,
        values: Mapping[str, float],
        quality: float | None,
        similarity: float = 0.0,
        drift: float = 0.0,
    ) -> Score:
        """The score of an answer.

        Args:
            values: the terms or parts that could be had, by name.
            quality: None where one could not be had.
            similarity: to the reference, as it was measured; 0 where it was not.
            drift: of the pair of languages from its calibration.
        """
        earns = quality is not None and (decision.compliant or not self._gated)
        return Score(
            reward=quality if quality is not None and earns else 0.0,
            quality=quality if quality is not None else 0.0,
            similarity=similarity,
            compliant=decision.compliant,
            detected=decision.detected,
            language=answer.asked,
            terms={**values, **answer.selection},
            drift=drift,
            scored=quality is not None,
            thought_languages=decision.thought_languages,
            final_languages=decision.final_languages,
        )

    def nothing(self, answer: Answer, decision: Decision, earning: Iterable[str]) -> Score:
        """The score of an answer that says nothing: 0 by every term that it could earn by, so that it is not right.

        Args:
            earning: the names of the terms that a final answer earns by.
        """
        return self.score(answer, decision, dict.fromkeys(earning, 0.0), 0.0)

    def check_group(self, scored: Sequence[ScoredAnswer]) -> None:
        """Checks that enough answers of a group are scored; those that never can be do not count.

        Raises:
            UnscoredError: more than the share ``reward.missing_max`` of the answers are not scored, and may be later.
        """
        missing = sum(not one.score.scored and not one.never for one in scored)
        if missing > self._missing_max * len(scored):
            raise UnscoredError(
                f"{missing} of {len(scored)} answers could not be scored, more than reward.missing_max = "
                f"{self._missing_max:g} allows; the log of the reward process says why"
            )


def says_nothing(answer: Answer) -> bool:
    """Whether there is no final answer, as where a thought never ended."""
    return not answer.final
