"""The model that is evaluated: its engine, how it is asked, and its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import aiohttp

from actor.engine.client import EngineError
from actor.engine.server import EngineProcess
from common.config import load
from common.languages import tag
from common.process import FatalError
from common.prompts import add_instruction, append_tag
from common.tokenizer import load_tokenizer
from learner.data.rows import QuestionRow
from scripts.data.endpoint import Conversation, Endpoint, Failure


@contextmanager
def served(model: str, run: Path, log: Path) -> Iterator[str]:
    """Yields the model as ``NAME@URL``. A directory or hub name is served by an engine of its own meanwhile.

    Blocks until the engine is ready, and at the end until it has ended.

    Args:
        run: the run whose settings the engine gets, where the model is its ``model`` directory.
        log: file of the engine's output.

    Raises:
        FatalError: the engine does not start.
    """
    if "@" in model:
        yield model
        return
    try:
        settings = json.loads((run / "config.json").read_text()) if model == str(run / "model") else None
        config = load(["--model.path", model, "--actor.engine_args.skip_tokenizer_init", "false"], settings)
        engine = EngineProcess(config, "evaluation", log)

        async def ready() -> None:
            async with aiohttp.ClientSession() as session:
                await engine.wait_until_ready(session, config.actor.start_timeout_s)

        try:
            asyncio.run(ready())
            yield f"{model.replace('@', '-')}@{engine.url}/v1"
        finally:
            engine.stop()
    except EngineError as error:
        raise FatalError(f"no engine for {model}: {error}") from None


def styler(style: str, model: str) -> Callable[[QuestionRow], Conversation]:
    """A function that makes the chat messages of a question.

    Args:
        style: "tag", "system" or "plain"; "auto" is tag where the tokenizer has the language's tag, else plain.
    """
    encode = load_tokenizer(model).encode if style == "auto" and "@" not in model else None

    def ask(row: QuestionRow) -> Conversation:
        known = encode is not None and len(encode(tag(row.language), add_special_tokens=False)) == 1
        if style == "tag" or known:
            return append_tag(row.messages, row.language)
        return add_instruction(row.messages, row.language) if style == "system" else row.messages

    return ask


def answers(
    rows: Sequence[QuestionRow], endpoint: str, ask: Callable[[QuestionRow], Conversation], max_tokens: int
) -> list[str]:
    """A greedy answer to each question, empty where the endpoint refused it; blocks until all are given.

    Raises:
        FatalError: the endpoint does not answer.
    """
    said = Endpoint[str](endpoint, max_tokens=max_tokens).ask([ask(row) for row in rows], lambda _, answer: answer)
    if refused := [one.reason for one in said if isinstance(one, Failure)]:
        print(f"{len(refused)} of {len(rows)} questions were refused, and count as not answered: {refused[0]}")
    return ["" if isinstance(one, Failure) else one for one in said]
