"""The score of an answer with what it is made of, and the error where a group cannot be scored now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.wire import Score

if TYPE_CHECKING:  # these import for seconds, and a service that cannot bind its address should say so at once
    from reward.calibration.files import Pair
    from reward.gate import Decision


class UnscoredError(RuntimeError):
    """Too many answers of a group could not be scored now. That is no fault of theirs, and may be different later."""


@dataclass(frozen=True)
class ScoredAnswer:
    """The score of an answer, and how it came about.

    Attributes:
        decision: what the gate says.
        pair: the two languages whose calibration was used; None where no similarity was needed.
        calibrated: the similarity after calibration, in [0, 1]; None where none was needed, or it is no number.
        never: whether the answer would not be scored another time either, as where its embedding is no number.
    """

    score: Score
    decision: Decision
    pair: Pair | None
    calibrated: float | None
    never: bool = False
