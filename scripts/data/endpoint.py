"""Answers of an OpenAI-compatible endpoint: many at a time, kept on disk, asked again where they cannot be used.

The ``openai`` client speaks HTTP, and tries again what fails on the way. Here is what it cannot do: answers are kept in
a file, so that a command that was interrupted goes on where it ended; an answer that cannot be used is sent back with
the reason; and where the endpoint refuses one question for good (as too long), the others are asked all the same.

The key is read from OPENAI_API_KEY and is in no message, file or log.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, cast

import openai
import typer
from openai.types.chat import ChatCompletionMessageParam

from common.languages import count_as_one, english_name
from common.process import FatalError
from reward.gate import LanguageGate

Conversation = list[dict[str, str]]  # chat messages
Value = TypeVar("Value")

_ANSWERS = 3  # answers of a question that cannot be used before it is given up
_RETRIES = 3  # further calls of a question that failed on the way, before the endpoint is given up
_REFUSED = frozenset({400, 413, 422})  # the status of a refusal of this question; others may be answered
FORM = 'MODEL@URL of an OpenAI-compatible endpoint, as "judge-7b@http://127.0.0.1:8000/v1"; key in OPENAI_API_KEY'
EndpointOption = Annotated[str, typer.Option(metavar="MODEL@URL", help=FORM)]


class _Refusal(Exception):
    """The endpoint does not take this one question."""


@dataclass(frozen=True)
class Failure:
    """No usable answer came, for this reason."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class Endpoint(Generic[Value]):
    """One model behind an endpoint.

    Args:
        name: ``MODEL@URL``.
        cache: JSONL file of the usable answers, by a hash of model, messages and sampling; None: nothing is kept.
        calls: the number of calls that are under way at a time.
        timeout_s: how long one call may take.
        sampling: further fields of a request; ``temperature`` is 0 unless given.

    Raises:
        FatalError: the name has no @, or the cache cannot be read or written.
    """

    def __init__(
        self, name: str, cache: Path | None = None, *, calls: int = 16, timeout_s: float = 300, **sampling: Any
    ) -> None:
        self.model, at, url = name.partition("@")
        if not (self.model and at and url):
            raise FatalError(f"{name!r} names no endpoint: it takes the form {FORM}")
        self._url = url.rstrip("/")
        self._calls, self._timeout_s = calls, timeout_s
        self._sampling = {"temperature": 0.0, **sampling}
        self._cache, self._known = cache, dict[str, str]()
        if cache is not None:
            self._restore(cache)

    def _restore(self, cache: Path) -> None:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.touch()
            lines = cache.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise FatalError(f"cannot use {cache} for answers: {error}") from None
        for line in lines:
            with suppress(ValueError, KeyError):  # a line cut off by a kill is asked for again
                entry = json.loads(line)
                self._known[entry["key"]] = entry["answer"]

    def ask(self, conversations: Sequence[Conversation], read: Callable[[int, str], Value]) -> list[Value | Failure]:
        """What ``read(number, answer)`` returns for each answer; it is to raise ValueError for an answer of no use.

        Blocks until every conversation is answered, refused, or given up after three unusable answers.

        Raises:
            FatalError: the endpoint cannot be reached, or refuses everything; what was answered until then is kept.
        """
        return asyncio.run(self._ask(conversations, read))

    async def _ask(
        self, conversations: Sequence[Conversation], read: Callable[[int, str], Value]
    ) -> list[Value | Failure]:
        free = asyncio.Semaphore(self._calls)
        client = openai.AsyncOpenAI(
            base_url=self._url,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            timeout=openai.Timeout(self._timeout_s, connect=min(10, self._timeout_s)),
            max_retries=_RETRIES,
            # Most endpoints are on this machine or network, where the proxies of the environment do not lead.
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
        )

        async def ask_one(number: int, conversation: Conversation) -> Value | Failure:
            async with free:
                return await self._usable_answer(client, conversation, lambda answer: read(number, answer))

        async with client:
            return await asyncio.gather(
                *(ask_one(number, conversation) for number, conversation in enumerate(conversations))
            )

    async def _usable_answer(
        self, client: openai.AsyncOpenAI, conversation: Conversation, read: Callable[[str], Value]
    ) -> Value | Failure:
        request = {"model": self.model, "messages": conversation, **self._sampling}
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        if key in self._known:
            with suppress(ValueError):  # an answer that was usable once may not be today
                return read(self._known[key])
        reason, asked = "", conversation
        for _ in range(_ANSWERS):
            try:
                answer = await self._call(client, asked)
            except _Refusal as error:
                return Failure(str(error))
            try:
                value = read(answer)
            except ValueError as error:
                reason = f"{error}; the answer was {answer[:200]!r}"
                again = f"That cannot be used: {error}. Answer again, in the form asked for and with nothing else."
                asked = [*conversation, {"role": "assistant", "content": answer}, {"role": "user", "content": again}]
                continue
            self._keep(key, answer)
            return value
        return Failure(reason)

    def _keep(self, key: str, answer: str) -> None:
        if self._cache is not None:
            self._known[key] = answer
            with self._cache.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"key": key, "answer": answer}, ensure_ascii=False))

    async def _call(self, client: openai.AsyncOpenAI, conversation: Conversation) -> str:
        """
        Raises:
            _Refusal: the endpoint refuses this question.
            FatalError: the endpoint gives no answer.
        """
        messages = cast(list[ChatCompletionMessageParam], conversation)
        try:
            said = await client.chat.completions.create(model=self.model, messages=messages, extra_body=self._sampling)
            return (said.choices[0].message.content or "").strip()
        except openai.APIStatusError as error:
            problem = f"status {error.status_code}: {error.response.text[:300]}"
            if error.status_code in _REFUSED:
                raise _Refusal(problem) from None
        except openai.APIConnectionError as error:
            problem = f"{type(error).__name__} {error.__cause__ or error}"
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # the client does not check what it reads
            problem = f"its reply is no chat completion: {error}"
        raise FatalError(f"{self._url} (model {self.model!r}) gives no answer: {problem}")


def in_languages(codes: Sequence[str]) -> Callable[[int, str], str]:
    """For ``Endpoint.ask``: takes answer n only if it is in the n-th language."""
    gate = LanguageGate()

    def read(number: int, answer: str) -> str:
        if not count_as_one(gate.detect([answer])[0], codes[number]):
            raise ValueError(f"it is not in {english_name(codes[number]).capitalize()}")
        return answer

    return read


def whole_number(least: int, most: int) -> Callable[[int, str], int]:
    """For ``Endpoint.ask``: reads a grade, one whole number in these bounds, with or without "/ most"."""

    def read(_: int, answer: str) -> int:
        found = re.fullmatch(rf"\D*(\d{{1,4}})(?:\s*/\s*{most})?\D*", answer)
        if found is None or not least <= int(found[1]) <= most:
            raise ValueError(f"it has to be a whole number from {least} to {most}")
        return int(found[1])

    return read


def translate(name: str, cache: Path, texts: Sequence[tuple[str, str]]) -> list[str | Failure]:
    """Each text in the language beside it, translated by the endpoint ``MODEL@URL``; blocks until all are."""
    form = "Translate this text into {}. Reply with the translation and nothing else.\n\n{}"
    asked = [form.format(english_name(language).capitalize(), text) for text, language in texts]
    conversations = [[{"role": "user", "content": one}] for one in asked]
    return Endpoint[str](name, cache).ask(conversations, in_languages([language for _, language in texts]))
