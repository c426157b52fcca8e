"""Asks an OpenAI-compatible endpoint many questions from a command, and blocks until all are answered.

``common/endpoint.py`` does the work. A command that was interrupted goes on where it ended, because its answers are
kept in a file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import typer

from common.endpoint import FORM, Conversation, Endpoints, Failure, read_grade
from common.languages import display_name
from common.process import FatalError
from reward.gate import LanguageGate

Value = TypeVar("Value")

EndpointOption = Annotated[str, typer.Option(metavar="MODEL@URL", help=FORM)]


class Endpoint(Generic[Value]):
    """One model behind an endpoint.

    Args:
        name: ``MODEL@URL``.
        cache: SQLite file of the usable answers, by a hash of model, messages and sampling; None: nothing is kept.
        calls: the number of calls that are under way at a time.
        timeout_s: how long one call may take.
        thoughts: whether answers are read with the thought that they begin with; as of ``Endpoints``.
        sampling: further fields of a request; ``temperature`` is 0 unless given.

    Raises:
        FatalError: the name has no @.
    """

    def __init__(
        self,
        name: str,
        cache: Path | None = None,
        *,
        calls: int = 16,
        timeout_s: float = 300,
        thoughts: bool = False,
        **sampling: Any,
    ) -> None:
        self.model, at, url = name.partition("@")
        if not (self.model and at and url):
            raise FatalError(f"{name!r} names no endpoint: it takes the form {FORM}")
        self._name, self._cache, self._calls, self._timeout_s = name, cache, calls, timeout_s
        self._sampling, self._thoughts = sampling, thoughts

    def ask(
        self,
        conversations: Sequence[Conversation],
        read: Callable[[int, str], Value],
        samples: Sequence[str] | None = None,
        limits: Sequence[int] | None = None,
        refused: Callable[[int, Failure], None] = lambda number, failure: None,
    ) -> list[Value | Failure]:
        """What ``read(number, answer)`` returns for each answer; it is to raise ValueError for an answer of no use.

        Blocks until every conversation is answered, refused, or given up after three unusable answers.

        Args:
            samples: for each conversation what tells this answer apart from others to the same one, in the cache.
            limits: for each conversation the longest answer, in tokens; None: that of ``sampling``, for all.
            refused: is told at once of each conversation that the endpoint does not take; may raise FatalError, which
                ends the asking.

        Raises:
            FatalError: the cache cannot be used; or the endpoint cannot be reached, or denies access. What was answered
                until then is kept.
        """
        fields: list[dict[str, int]] = (
            [{}] * len(conversations) if limits is None else [{"max_tokens": limit} for limit in limits]
        )
        return asyncio.run(self._ask(conversations, read, samples or [""] * len(conversations), fields, refused))

    async def _ask(
        self,
        conversations: Sequence[Conversation],
        read: Callable[[int, str], Value],
        samples: Sequence[str],
        fields: Sequence[dict[str, int]],
        refused: Callable[[int, Failure], None],
    ) -> list[Value | Failure]:
        endpoints = Endpoints(
            [self._name],
            self._cache,
            calls=self._calls,
            timeout_s=self._timeout_s,
            sampling=self._sampling,
            thoughts=self._thoughts,
        )

        async def ask_one(number: int, conversation: Conversation) -> Value | Failure:
            found = await endpoints.ask(conversation, partial(read, number), samples[number], **fields[number])
            if isinstance(found, Failure) and found.kind == "unreachable":
                raise FatalError(found.reason)
            if isinstance(found, Failure) and found.kind == "refused":
                refused(number, found)
            return found

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask_one(n, one)) for n, one in enumerate(conversations)]
        except* FatalError as errors:
            raise FatalError(str(errors.exceptions[0])) from None
        finally:
            await endpoints.close()
        return [task.result() for task in tasks]


def in_languages(codes: Sequence[str]) -> Callable[[int, str], str]:
    """For ``Endpoint.ask``: takes answer n only if the gate counts it as being in the n-th language."""
    gate = LanguageGate()

    def read(number: int, answer: str) -> str:
        if not gate.judge([answer], [codes[number]])[0].matches:
            raise ValueError(f"it is not in {display_name(codes[number])}")
        return answer

    return read


def whole_number(least: int, most: int) -> Callable[[int, str], int]:
    """For ``Endpoint.ask``: reads a grade, one whole number in these bounds, with or without "/ most"."""
    return lambda _, answer: read_grade(answer, least, most)


def translate(name: str, cache: Path, texts: Sequence[tuple[str, str]]) -> list[str | Failure]:
    """Each text in the language beside it, translated by the endpoint ``MODEL@URL``; blocks until all are."""
    form = "Translate this text into {}. Reply with the translation and nothing else.\n\n{}"
    asked = [form.format(display_name(language), text) for text, language in texts]
    conversations = [[{"role": "user", "content": one}] for one in asked]
    return Endpoint[str](name, cache).ask(conversations, in_languages([language for _, language in texts]))
