"""Which option a model finds likeliest, by the log-probability of its letter, as lm-evaluation-harness compares them.

SGLang's ``/generate`` gives the log-probabilities of chosen tokens after a prompt, so each question is one request for
one token, and the engine answers many at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from transformers import PreTrainedTokenizerBase

from common.process import FatalError
from scripts.study.benchmarks.rows import LETTERS, BenchmarkRow

_TIMEOUT_S, _ATTEMPTS = 300.0, 3


class SeveralTokens(ValueError):
    """The tokenizer makes several tokens of a letter, so that its log-probability is not that of one."""


@dataclass(frozen=True)
class LetterQuestion:
    """A question as the engine is asked it.

    Attributes:
        prompt: its tokens.
        letters: the token of each option's letter after the prompt, with the space before it.
    """

    prompt: list[int]
    letters: list[int]


def letter_questions(
    rows: Sequence[BenchmarkRow], tokenizer: PreTrainedTokenizerBase, form: Callable[[BenchmarkRow], str]
) -> list[LetterQuestion]:
    """The questions in tokens.

    Args:
        form: the text of a question up to ``Answer:``.

    Raises:
        SeveralTokens: of a letter.
    """
    found = []
    for row in rows:
        text = form(row)
        prompt = tokenizer.encode(text)
        letters = []
        for letter in LETTERS[: len(row.choices)]:
            rest = tokenizer.encode(f"{text} {letter}")[len(prompt) :]
            if len(rest) != 1:
                raise SeveralTokens(f"the tokenizer makes {len(rest)} tokens of the letter {letter} after a prompt")
            letters += rest
        found.append(LetterQuestion(prompt, letters))
    return found


def likeliest(questions: Sequence[LetterQuestion], endpoint: str, calls: int = 64) -> list[str]:
    """The likeliest letter after each question; the first of several. Blocks until all are told.

    Args:
        endpoint: ``NAME@URL`` of an SGLang engine.
        calls: questions that are asked at a time.

    Raises:
        FatalError: the engine cannot be reached, or is none of SGLang.
    """
    url = endpoint.partition("@")[2].rstrip("/").removesuffix("/v1")
    return asyncio.run(_ask_all(url, questions, calls))


async def _ask_all(url: str, questions: Sequence[LetterQuestion], calls: int) -> list[str]:
    free = asyncio.Semaphore(calls)

    async def one(session: aiohttp.ClientSession, question: LetterQuestion) -> str:
        async with free:
            return await _ask(session, url, question)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT_S)) as session:
        return list(await asyncio.gather(*(one(session, question) for question in questions)))


async def _ask(session: aiohttp.ClientSession, url: str, question: LetterQuestion) -> str:
    body = {
        "input_ids": question.prompt,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
        "return_logprob": True,
        "token_ids_logprob": question.letters,
    }
    reason = ""
    for attempt in range(_ATTEMPTS):
        try:
            async with session.post(f"{url}/generate", json=body) as reply:
                if reply.status == 200:
                    return _read(await reply.json(), question.letters)
                reason = f"status {reply.status}: {(await reply.text())[:200]}"
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = f"{type(error).__name__} {error}"
        except (ValueError, LookupError, TypeError) as error:
            reason = f"its reply has no log-probabilities: {type(error).__name__} {error}"
        await asyncio.sleep(2.0**attempt)
    raise FatalError(f"{url}/generate tells no log-probabilities of letters; is it an engine of SGLang? {reason}")


def _read(reply: dict[str, Any], tokens: list[int]) -> str:
    entries = reply["meta_info"]["output_token_ids_logprobs"][0]
    value = {int(entry[1]): float(entry[0]) for entry in entries}
    scores = [value[token] for token in tokens]
    return LETTERS[scores.index(max(scores))]
