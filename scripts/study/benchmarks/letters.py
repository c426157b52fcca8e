"""Which option a model finds likeliest, by the log-probability of its letter, as lm-evaluation-harness compares them.

SGLang's ``/generate`` gives the log-probabilities of chosen tokens after a prompt, so each question is one request for
one token, and the engine answers many at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
from transformers import PreTrainedTokenizerBase

from common.process import FatalError
from scripts.study.benchmarks.prompts import harness_prompt
from scripts.study.benchmarks.rows import LETTERS, BenchmarkRow

_TIMEOUT_S, _ATTEMPTS = 300.0, 3


def likeliest(
    rows: Sequence[BenchmarkRow], endpoint: str, tokenizer: PreTrainedTokenizerBase, calls: int = 64
) -> list[str]:
    """The likeliest letter after ``Answer:``, for each question; the first of several. Blocks until all are told.

    Args:
        endpoint: ``NAME@URL`` of an SGLang engine.

    Raises:
        FatalError: the engine cannot be reached, is none of SGLang, or the tokenizer makes several tokens of a letter.
    """
    prompts = [tokenizer.encode(harness_prompt(row)) for row in rows]
    letters = [_letter_tokens(prompt, row, tokenizer) for prompt, row in zip(prompts, rows, strict=True)]
    url = endpoint.partition("@")[2].rstrip("/").removesuffix("/v1")
    return asyncio.run(_ask_all(url, prompts, letters, calls))


def _letter_tokens(prompt: list[int], row: BenchmarkRow, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that stands for each letter after the prompt, with the space before it."""
    text = harness_prompt(row)
    found = []
    for letter in LETTERS[: len(row.choices)]:
        rest = tokenizer.encode(f"{text} {letter}")[len(prompt) :]
        if len(rest) != 1:
            raise FatalError(
                f"the tokenizer makes {len(rest)} tokens of the letter {letter} after a prompt, where one is needed; "
                "lrpo evaluate --lm-eval scores such a model on its weights"
            )
        found += rest
    return found


async def _ask_all(url: str, prompts: list[list[int]], letters: list[list[int]], calls: int) -> list[str]:
    free = asyncio.Semaphore(calls)

    async def one(session: aiohttp.ClientSession, prompt: list[int], tokens: list[int]) -> str:
        async with free:
            return await _ask(session, url, prompt, tokens)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT_S)) as session:
        asked = [one(session, prompt, tokens) for prompt, tokens in zip(prompts, letters, strict=True)]
        return list(await asyncio.gather(*asked))


async def _ask(session: aiohttp.ClientSession, url: str, prompt: list[int], tokens: list[int]) -> str:
    body = {
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
        "return_logprob": True,
        "token_ids_logprob": tokens,
    }
    reason = ""
    for attempt in range(_ATTEMPTS):
        try:
            async with session.post(f"{url}/generate", json=body) as reply:
                if reply.status == 200:
                    return _read(await reply.json(), tokens)
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
