"""A reward of the user's own: a function that sees a question with all its answers and returns named parts for each.

``reward.function = "FILE.py:NAME"`` names it, ``reward.parts`` its parts with their weights in the reward.
docs/rewards.md shows how to write one.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

from common.answer import Answer
from common.sparse_log import is_logged
from common.wire import Chat, ScoreRequest
from reward.gate import Decision
from reward.terms.missing import NEVER, Never, begin_group
from reward.terms.tools import Tools
from reward.terms.user_call import RewardFunctionError, UserFunction

logger = logging.getLogger("reward")

_SHOWN = 80  # characters of a question in a message
_VALUES_SHOWN = 200  # characters of what a function returned


@dataclass(frozen=True)
class GroupAnswer:
    """One answer to a question, as a reward function sees it.

    Attributes:
        text: as it was generated.
        thinking: the thought, ``""`` where there is none.
        final: what follows the thought, ``""`` where the thought never ended.
        asked: the code of the language asked for, or chosen by the policy; ``""`` where it chose and named none.
        detected: the code of the language that the final answer is in, ``""`` where it has none.
        compliant: whether the gate takes the answer as being in the language asked for.
        truncated: whether generation stopped at the token limit.
        tokens: how many tokens it has; 0 where nobody counted them.
    """

    text: str
    thinking: str
    final: str
    asked: str
    detected: str
    compliant: bool
    truncated: bool
    tokens: int


@dataclass(frozen=True)
class Group:
    """A question with its K answers, as a reward function sees them.

    Attributes:
        row: number of the question in its file, -1 where it has none.
        messages: the question as it was asked, each with ``role`` and ``content``.
        language: the code of the question's language, which is that of its reference.
        reference: the reference answer.
        accepted: the answers that count as right; at least one.
        extra: further columns of the question's row, by their names.
        answers: the K answers.
    """

    row: int
    messages: list[Chat]
    language: str
    reference: str
    accepted: list[str]
    extra: Mapping[str, str]
    answers: list[GroupAnswer]


# For each of the K answers its parts by name, or None where it cannot be scored (which is not 0). One of whose parts is
# None cannot be scored either. NEVER in place of None says that another time will not change it.
Part: TypeAlias = float | Never | None
Parts: TypeAlias = Sequence[Mapping[str, Part] | Never | None]
GroupReward: TypeAlias = Callable[[Group, Tools], Awaitable[Parts] | Parts]


class Found(NamedTuple):
    """What a function has found of one answer.

    Attributes:
        parts: None where the answer cannot be scored.
        quality: what the parts are worth together; None where the answer cannot be scored.
        never: whether it cannot be scored another time either.
    """

    parts: dict[str, float] | None
    quality: float | None = None
    never: bool = False


class CustomReward:
    """The quality of answers by the user's function.

    ``counts`` is that of :class:`UserFunction`.

    Args:
        where: ``FILE.py:NAME``. A class is called without arguments, and its object is then called for each group.
        parts: the names that every result must have, with their weights.
        bounded: whether what they add up to is cut to [0, 1].

    Raises:
        ConfigError: the function cannot be loaded, or takes other arguments.
    """

    def __init__(self, where: str, parts: Mapping[str, float], bounded: bool = False) -> None:
        self._function, self._parts, self._bounded = UserFunction(where), dict(parts), bounded
        self._where, self._path, self.counts = where, self._function.path, self._function.counts
        self._unexplained = 0

    async def __call__(
        self,
        request: ScoreRequest,
        answers: Sequence[Answer],
        decisions: Sequence[Decision],
        tools: Tools,
        within_s: float = math.inf,
    ) -> list[Found]:
        """The parts of each answer.

        What is missing will never be there where the function says so, and where nothing failed while it worked but
        what the tools will never give.

        Args:
            within_s: how long the function may take.

        Raises:
            RewardFunctionError: the function raised an error, returned something else, or has not ended in time.
            UnscoredError: it has not ended in time, for which it is not to blame.
            FatalError: raised by a tool, when the process cannot go on.
        """
        group, failures = _as_group(request, answers, decisions), begin_group()
        question = _question(request)
        result = await self._function(group, tools, failures, question, within_s, request.deadline_s)
        if problem := self._problem(result, len(answers)):
            raise RewardFunctionError(f"{self._path} {problem} ({question})")
        found = [self._found(one, failures.never_alone) for one in result]
        for number, one in enumerate(found, 1):
            if one.quality is not None and not math.isfinite(one.quality):
                raise RewardFunctionError(
                    f"{self._where} returned {_shown(one.parts)} for answer {number}, which add up to {one.quality} "
                    f"with the weights of reward.parts ({question})"
                )
        if not failures.any and any(one.parts is None and not one.never for one in found):
            self._tell_unexplained(request)
        return found

    def stalled_s(self) -> float:
        """For how many seconds more than a few calls have hung, which take their time and memory from all others."""
        return self._function.stalled_s()

    def _tell_unexplained(self, request: ScoreRequest) -> None:
        self._unexplained += 1
        if is_logged(self._unexplained):
            logger.warning(
                "%s gives None, although no tool has failed (%s; %d so far). A group with many such answers is scored "
                "again, until the run gives up: return tools.never where another time would not change it",
                self._path, _question(request), self._unexplained,
            )  # fmt: skip

    def value(self, parts: Mapping[str, float]) -> float:
        """sum of w_j part_j over the parts j, cut to [0, 1] where it is bounded, unless it is not finite."""
        total = sum(weight * parts[name] for name, weight in self._parts.items())
        return min(1.0, max(0.0, total)) if self._bounded and math.isfinite(total) else total

    def _problem(self, result: Any, answers: int) -> str:
        if not isinstance(result, Sequence) or len(result) != answers:
            found = f"{len(result)} results" if isinstance(result, Sequence) else f"a {type(result).__name__}"
            return f"returned {found} for {answers} answers; a list with one for each is needed"
        for number, one in enumerate(result, 1):
            if one is None or one is NEVER:
                continue
            if any(map(inspect.isawaitable, _values(one))):
                shown = _shown(one)
                for coroutine in filter(inspect.iscoroutine, chain.from_iterable(map(_values, result))):
                    coroutine.close()  # or Python would complain of each by itself
                return (
                    f"returned {shown} for answer {number}, which nobody has awaited: write `await` before the call of "
                    "a tool that is awaited, in an `async def`"
                )
            if not isinstance(one, Mapping) or set(one) != set(self._parts):
                names = sorted(map(str, one)) if isinstance(one, Mapping) else _shown(one)
                return f"returned {names} for answer {number}; reward.parts names {sorted(self._parts)}"
            if not all(value is None or value is NEVER or _is_finite(value) for value in one.values()):
                return f"returned {_shown(one)} for answer {number}; values must be finite numbers, None or tools.never"
        return ""

    def _found(self, given: Mapping[str, Part] | Never | None, tools_never: bool) -> Found:
        if given is None or given is NEVER:
            return Found(None, never=given is NEVER or tools_never)
        known = {name: float(value) for name, value in given.items() if value is not None and value is not NEVER}
        if len(known) == len(given):
            return Found(known, self.value(known))
        return Found(None, never=tools_never or any(value is NEVER for value in given.values()))


def _values(one: Any) -> Iterable[Any]:
    """The values of the parts of an answer, or what was returned in their place."""
    return one.values() if isinstance(one, Mapping) else [one]


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except Exception:  # no number, one too large for a float, or whatever an object of somebody else's class raises
        return False


def _shown(given: Any) -> str:
    """What a function returned for an answer, as a message shows it."""
    try:
        text = str(dict(given)) if isinstance(given, Mapping) else repr(given)
    except Exception:  # an object of somebody else's class, or an integer of more digits than Python writes
        return f"a {type(given).__name__} that cannot be written out"
    return text if len(text) <= _VALUES_SHOWN else f"{text[:_VALUES_SHOWN]}…"


def _as_group(request: ScoreRequest, answers: Sequence[Answer], decisions: Sequence[Decision]) -> Group:
    tokens = request.tokens or [0] * len(answers)
    return Group(
        row=request.row,
        messages=request.messages,
        language=request.reference_language,
        reference=request.reference,
        accepted=request.accepted or [request.reference],
        extra=request.extra,
        answers=[
            GroupAnswer(
                text=text,
                thinking=answer.thought,
                final=answer.final,
                asked=answer.asked,
                detected=decision.detected,
                compliant=decision.compliant,
                truncated=answer.truncated,
                tokens=count,
            )
            for text, answer, decision, count in zip(request.answers, answers, decisions, tokens, strict=True)
        ],
    )


def _question(request: ScoreRequest) -> str:
    """How messages name a question: its row, and how it begins."""
    text = request.messages[-1].content if request.messages else request.reference
    shown = " ".join(text.split())
    return f"question {request.row}: {shown[:_SHOWN]!r}" if request.row >= 0 else f"question {shown[:_SHOWN]!r}"
