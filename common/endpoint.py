"""Answers of OpenAI-compatible endpoints: many calls at a time, rate limits, a cache on disk, and what it cost.

The official ``openai`` client speaks HTTP. Here is what it leaves to its user: endpoints share the work, and one that
fails, asks for patience (``Retry-After``) or takes no key or model leaves it to the others; answers are kept on disk by
the content of the question; an answer that cannot be used is sent back with the reason; and every wait has a deadline.
A call that fails gives a :class:`Failure`, never a value.

The key is read from OPENAI_API_KEY, or else from the file ``openai_api_key`` in the directory of LRPO_KEYS, and is in
no message, log or other file. An endpoint on the internet is reached through the proxy of the environment, if there is
one (HTTPS_PROXY, NO_PROXY); one on this machine or network never is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, cast
from urllib.parse import urlsplit

import httpx
import openai
from openai.types.chat import ChatCompletionMessageParam

from common.answer import without_thought
from common.answer_cache import AnswerCache
from common.net.proxies import may_use_proxy
from common.process import FatalError

log = logging.getLogger("endpoint")

Conversation = list[dict[str, str]]  # chat messages
Value = TypeVar("Value")

KEY_FILE = "openai_api_key"  # in the directory of LRPO_KEYS, so that every host of a run finds it
FORM = 'MODEL@URL of an OpenAI-compatible endpoint, as "judge-7b@http://127.0.0.1:8000/v1"; key in OPENAI_API_KEY'
_SHORTEST_KEY = 8  # characters of a key that is kept out of messages, unless it begins as keys do
_ANSWERS = 3  # answers of a question that cannot be used before it is given up
_REFUSED = frozenset({400, 413, 422})  # the status of a refusal of this question; others may be answered
_DENIED = {  # statuses for a key or model that an endpoint does not take, whatever it is asked, and what to do
    401: "set OPENAI_API_KEY to a key that it takes",
    403: "set OPENAI_API_KEY to a key that may use this model",
    404: "check the model's name, and that the URL is right up to its /v1",
}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0  # of an endpoint after failures that name no time; doubles each time
_DOUBLINGS = 6  # after which the pause is the longest one


@dataclass(frozen=True)
class Failure:
    """No usable answer came.

    Attributes:
        reason: why, in one line.
        kind: ``refused``: the endpoint does not take this question; ``unusable``: it answered, but none of its answers
            could be read; ``unreachable``: no endpoint answered in time, which another time may be different.
    """

    reason: str
    kind: Literal["refused", "unusable", "unreachable"]

    @property
    def lasting(self) -> bool:
        """Whether the same question would fail again: the endpoint was there, and the fault lies in the question."""
        return self.kind != "unreachable"

    def __str__(self) -> str:
        return self.reason


@dataclass
class _Server:
    """One endpoint, and how it does at the moment."""

    model: str
    url: str
    client: openai.AsyncOpenAI
    under_way: int = 0
    asked: float = 0.0  # monotonic time of the newest call
    paused: float = 0.0  # monotonic time at which its newest pause began
    resumes: float = 0.0  # monotonic time before which it is not asked
    failures: int = 0  # in a row; those of calls that were under way together count once
    denial: str = ""  # why it took no question, for a wrong key or model; "" once it has answered one
    key: str = ""  # that it is asked with

    @property
    def name(self) -> str:
        return f"{self.model}@{self.url}"

    def without_key(self, text: str) -> str:
        """``text`` as it may be logged: a server, or the client's own error, may repeat what it was sent.

        A short key, as the x or EMPTY that local servers are asked with, is none, and may be a part of any word; one
        that begins with sk- is a key at any length.
        """
        is_key = len(self.key) >= _SHORTEST_KEY or self.key.startswith("sk-")
        return text.replace(self.key, "…") if is_key else text


@dataclass
class _Problem(Exception):
    """A call failed."""

    reason: str
    refused: bool = False  # this question alone
    denied: bool = False  # all questions: another attempt there fails, too
    pause_s: float | None = None  # which the endpoint asked for


@dataclass
class _Newest:
    """Why the newest call of a question was of no use, for the message at its deadline."""

    reason: str = "no endpoint was free"
    answered: bool = False  # by something that could not be used


class Endpoints:
    """Models behind endpoints that share the work. All calls must come from one event loop.

    ``counts`` holds ``calls``, ``cached`` answers, ``failed`` questions, ``tokens_read`` and ``tokens_written``.

    Args:
        names: ``MODEL@URL`` of each endpoint.
        cache: SQLite file of the usable answers, by a hash of model, messages and sampling; None: nothing is kept.
        calls: most calls that are under way at a time, those included that wait because of a rate limit.
        timeout_s: how long one call may take.
        deadline_s: how long one question may take, with all its calls and waits; None: as long as its attempts.
        attempts: most calls of a question that failed on the way; None: any number until the deadline.
        sampling: further fields of a request; ``temperature`` is 0 unless given.
        thoughts: whether answers are read with the thought that they begin with, as those of a teacher. Otherwise what
            follows the last ``</think>`` is the answer.

    Raises:
        FatalError: a name has no @, or the cache, the key file or the proxy cannot be used.
    """

    def __init__(
        self,
        names: Sequence[str],
        cache: Path | None = None,
        *,
        calls: int = 16,
        timeout_s: float = 300,
        deadline_s: float | None = None,
        attempts: int | None = 4,
        sampling: Mapping[str, Any] | None = None,
        thoughts: bool = False,
    ) -> None:
        self._servers = [_connect(name, timeout_s) for name in names]
        self._cache = AnswerCache(cache) if cache is not None else None
        self._free = asyncio.Semaphore(calls)
        self._deadline_s, self._attempts = deadline_s, attempts
        self._sampling = {"temperature": 0.0, **(sampling or {})}
        self._thoughts = thoughts
        self.counts: Counter[str] = Counter()

    async def ask(
        self, conversation: Conversation, read: Callable[[str], Value], sample: str = "", **sampling: Any
    ) -> Value | Failure:
        """What ``read`` returns for the answer.

        Args:
            conversation: chat messages.
            read: raises ValueError for an answer that is of no use; the model is then told why and asked again.
            sample: tells apart several answers to the same conversation, each of which is kept; "" where there is one.
            sampling: fields of this request alone, beside or in place of those of all.
        """
        fields = {**self._sampling, **sampling}
        for model in dict.fromkeys(server.model for server in self._servers):
            known = self._cache.get(self._key(model, conversation, sample, fields)) if self._cache is not None else None
            if known is not None:
                with suppress(ValueError):  # an answer that was usable once may not be today
                    value = read(self._what_counts(known))
                    self.counts["cached"] += 1
                    return value
        newest = _Newest()
        try:
            async with asyncio.timeout(self._deadline_s), self._free:
                found = await self._usable_answer(conversation, read, newest, sample, fields)
        except TimeoutError:
            # A slow endpoint that answers uselessly has no time for as many answers as a quick one.
            kind: Literal["unusable", "unreachable"] = "unusable" if newest.answered else "unreachable"
            found = Failure(f"no usable answer within {self._deadline_s:g} s: {newest.reason}", kind)
        if isinstance(found, Failure):
            self.counts["failed"] += 1
            return replace(found, reason=self._servers[0].without_key(found.reason))  # all have the same one
        return found

    async def close(self) -> None:
        """Closes the connections and the cache."""
        for server in self._servers:
            await server.client.close()
        if self._cache is not None:
            self._cache.close()

    def _what_counts(self, answer: str) -> str:
        """What of an answer is read: what follows its thought, unless thoughts are asked for.

        Raises:
            ValueError: the answer is a thought without an end.
        """
        return answer if self._thoughts else without_thought(answer)

    def _key(self, model: str, conversation: Conversation, sample: str, fields: Mapping[str, Any]) -> str:
        request = {"model": model, "messages": conversation, **fields}
        if sample:
            request["sample"] = sample
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

    async def _usable_answer(
        self,
        conversation: Conversation,
        read: Callable[[str], Value],
        newest: _Newest,
        sample: str,
        fields: Mapping[str, Any],
    ) -> Value | Failure:
        asked, reason = conversation, ""
        for _ in range(_ANSWERS):
            try:
                answer, model = await self._answer(asked, newest, fields)
            except _Problem as problem:
                return Failure(problem.reason, "refused" if problem.refused else "unreachable")
            counted = answer
            try:
                counted = self._what_counts(answer)
                value = read(counted)
            except ValueError as error:
                reason = newest.reason = f"{error}; the answer was {counted[:200]!r}"
                newest.answered = True
                again = f"That cannot be used: {error}. Answer again, in the form asked for and with nothing else."
                asked = [*conversation, {"role": "assistant", "content": counted}, {"role": "user", "content": again}]
                continue
            if self._cache is not None:
                self._cache.put(self._key(model, conversation, sample, fields), answer)
            return value
        return Failure(reason, "unusable")

    async def _answer(self, conversation: Conversation, newest: _Newest, fields: Mapping[str, Any]) -> tuple[str, str]:
        """An answer and the model that gave it, from the endpoint that is free first.

        Raises:
            _Problem: the question was refused, every endpoint has denied it, or the attempts are used up.
        """
        made = 0
        denials: dict[str, str] = {}  # endpoint -> why it denies this question
        while True:
            server = self._choose(denials)
            pause_s = 0.0 if server.denial else server.resumes - time.monotonic()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
                continue  # another one may be the better choice by now
            began = server.asked = time.monotonic()
            server.under_way += 1
            try:
                answer = await self._call(server, conversation, fields)
                if server.denial:
                    server.resumes = 0.0
                server.failures, server.denial = 0, ""
                return answer, server.model
            except _Problem as problem:
                problem.reason = newest.reason = server.without_key(problem.reason)
                if problem.refused:
                    raise
                if problem.denied:
                    denials[server.name] = problem.reason
                    _leave_to_others(server, problem.reason)
                    continue
                made += 1
                if self._attempts is not None and made >= self._attempts:
                    raise
                _pause(server, problem.pause_s, began)
            finally:
                server.under_way -= 1

    def _choose(self, denials: Mapping[str, str]) -> _Server:
        """The endpoint that may be asked first: of several the one with the fewest calls, asked the longest ago.

        One that was set aside for its denials is asked where there is no other: the key may be right by now.

        Raises:
            _Problem: every endpoint has denied the question.
        """
        left = [one for one in self._servers if one.name not in denials]
        if not left:
            raise _Problem("; ".join(denials.values()))
        now = time.monotonic()  # one time for all, or the first of those that may be asked now would always be chosen
        able = [one for one in left if not one.denial or one.resumes <= now]
        return min(able or left, key=lambda one: (max(one.resumes, now) if able else 0.0, one.under_way, one.asked))

    async def _call(self, server: _Server, conversation: Conversation, fields: Mapping[str, Any]) -> str:
        """
        Raises:
            _Problem: there is no answer.
        """
        messages = cast(list[ChatCompletionMessageParam], conversation)
        self.counts["calls"] += 1
        where = f"{server.url} (model {server.model!r}) gives no answer: "
        try:
            said = await server.client.chat.completions.create(model=server.model, messages=messages, extra_body=fields)
            if said.usage is not None:
                self.counts["tokens_read"] += said.usage.prompt_tokens
                self.counts["tokens_written"] += said.usage.completion_tokens
            return (said.choices[0].message.content or "").strip()
        except openai.APIStatusError as error:
            problem = f"status {error.status_code}: {server.without_key(error.response.text)[:300]}"
            if error.status_code in _REFUSED:
                raise _Problem(problem, refused=True) from None
            if error.status_code in _DENIED:
                raise _Problem(f"{where}{problem} ({_DENIED[error.status_code]})", denied=True) from None
            raise _Problem(where + problem, pause_s=_retry_after(error.response.headers)) from None
        except openai.APIConnectionError as error:
            raise _Problem(f"{where}{type(error).__name__} {error.__cause__ or error}") from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # the client does not check what it reads
            raise _Problem(f"{where}its reply is no chat completion: {error}") from None


# A minus stands right before its number, and after no word, number or other dash: "Grade - 3" and "Grade-3" are 3.
_MINUS = r"(?<![^\W_])(?<![-\u2010-\u2015\u2212])([-\u2013\u2212\ufe63\uff0d]?)"


def read_grade(answer: str, least: int, most: int) -> int:
    """A grade: the one whole number in an answer, with its sign, with or without "/ most".

    Raises:
        ValueError: there is no such number, or it is out of bounds.
    """
    found = re.fullmatch(rf"\D*?(?:{_MINUS})?(\d{{1,4}})(?:\s*/\s*{most})?\D*", answer)
    grade = int(found[2]) * (-1 if found[1] else 1) if found is not None else None
    if grade is None or not least <= grade <= most:
        raise ValueError(f"it has to be a whole number from {least} to {most}")
    return grade


def _connect(name: str, timeout_s: float) -> _Server:
    model, at, url = name.partition("@")
    if not (model and at and url):
        raise FatalError(f"{name!r} names no endpoint: it takes the form {FORM}")
    key = read_api_key()
    client = openai.AsyncOpenAI(
        base_url=url.rstrip("/"),
        api_key=key or "none",
        timeout=openai.Timeout(timeout_s, connect=min(10, timeout_s)),
        max_retries=0,  # the next attempt may go to another endpoint
        http_client=_http_client(name, urlsplit(url).hostname or ""),
    )
    return _Server(model, url.rstrip("/"), client, key=key)


def _http_client(name: str, host: str) -> httpx.AsyncClient:
    if not may_use_proxy(host):
        return openai.DefaultAsyncHttpxClient(trust_env=False)
    try:
        return openai.DefaultAsyncHttpxClient(trust_env=True)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        # The message of an unknown scheme holds the address, which httpx shows without its password.
        raise FatalError(
            f"cannot use the proxy of the environment for {name}: {error}; mend HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, "
            f"or name {host} in NO_PROXY"
        ) from None


def read_api_key() -> str:
    """The key of endpoints: OPENAI_API_KEY, or else the file in the directory of LRPO_KEYS; empty where there is none.

    Raises:
        FatalError: there is such a file and it cannot be read; or the key is not one word of ASCII, white space around
            it apart, as a request's header has to be.
    """
    if key := os.environ.get("OPENAI_API_KEY", ""):
        return _only_word(key, "OPENAI_API_KEY")
    if not os.environ.get("LRPO_KEYS"):
        return ""
    path = Path(os.environ["LRPO_KEYS"]) / KEY_FILE
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise FatalError(f"cannot read the key of endpoints from {path}: {reason}") from None
    return _only_word(content, str(path))


def _only_word(content: str, where: str) -> str:
    words = content.split()
    if len(words) != 1:
        raise FatalError(f"cannot read the key of endpoints from {where}: it holds {len(words)} words instead of one")
    if not (words[0].isascii() and words[0].isprintable()):
        raise FatalError(f"cannot read the key of endpoints from {where}: it has characters that no key has")
    return words[0]


def _pause(server: _Server, wanted_s: float | None, began: float) -> None:
    """Leaves an endpoint alone for a while after a call failed.

    Args:
        wanted_s: the seconds that it asked for; None where it named none.
        began: monotonic time at which the call began. Where the endpoint has been paused since, the failure tells of
            the same trouble: a hiccup with many calls under way is one failure and not as many.
    """
    now = time.monotonic()
    if began >= server.paused:
        own_s = min(_FIRST_PAUSE_S * 2 ** min(server.failures, _DOUBLINGS), _LONGEST_PAUSE_S)
        server.failures += 1
        server.paused, wanted_s = now, own_s if wanted_s is None else wanted_s
    if wanted_s is not None:
        server.resumes = max(server.resumes, now + wanted_s)


def _leave_to_others(server: _Server, reason: str) -> None:
    """Leaves the work to the other endpoints after one has denied a question for its key or model."""
    if not server.denial:
        log.warning("%s. It is asked again after %.0f s, until then where no other can be", reason, _LONGEST_PAUSE_S)
    server.denial, server.resumes = reason, time.monotonic() + _LONGEST_PAUSE_S


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that an endpoint asks to wait, from the header Retry-After: seconds or a date; None without one.

    A date counts from that of the reply: the clock of this machine may be another.
    """
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError, LookupError):
        return max(0.0, (parsedate_to_datetime(value) - parsedate_to_datetime(headers["date"])).total_seconds())
    return None
