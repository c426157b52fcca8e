"""The model that is evaluated: its engine, how it is asked, and its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from transformers import PreTrainedTokenizerBase

from actor.engine.errors import EngineError
from actor.engine.server import EngineProcess
from common.config import Config, load
from common.endpoint import Conversation, Failure
from common.languages import tag
from common.process import FatalError
from common.prompts import ChatTemplate, add_instruction, append_tag
from common.tokenizer import load_tokenizer
from learner.data.rows import QuestionRow
from scripts.data.endpoint import Endpoint


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
        # The exported model has its adapters merged.
        config = _settings(model, run, "--actor.engine_args.skip_tokenizer_init", "false", "--lora.rank", "0")
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


def _settings(model: str, run: Path, *flags: str) -> Config:
    """The configuration of the run where the model is the run's own, else the default."""
    settings = json.loads((run / "config.json").read_text()) if model == str(run / "model") else None
    return load(["--model.path", model, *flags], settings)


class Asking:
    """How the questions are put to the model.

    ``template_arguments`` are those of its chat template; an endpoint of somebody else's gets none.

    Args:
        style: "tag", "system" or "plain"; "auto" is tag where the tokenizer has the language's tag, else plain.
        model: a directory or hub name, or NAME@URL.
        run: the run whose settings count, where the model is its ``model`` directory.

    Raises:
        FatalError: the model's tokenizer cannot be loaded or has no chat template.
    """

    def __init__(self, style: str, model: str, run: Path) -> None:
        self._style = style
        self._tokenizer = None if "@" in model else load_tokenizer(model)
        self._template = None if self._tokenizer is None else ChatTemplate(self._tokenizer, _settings(model, run).model)
        self.template_arguments = {} if self._template is None else self._template.arguments
        # Whether the template ends a prompt with <think>; of somebody else's endpoint nobody knows.
        self.opens_thought = self._template is not None and self._template.opens_thought

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """None for an endpoint of somebody else's."""
        return self._tokenizer

    def __call__(self, row: QuestionRow) -> Conversation:
        """The chat messages of a question."""
        tagged = self._style == "tag"
        if self._style == "auto" and self._tokenizer is not None:
            tagged = len(self._tokenizer.encode(tag(row.language), add_special_tokens=False)) == 1
        messages = row.messages
        if tagged:
            messages = append_tag(messages, row.language)
        elif self._style == "system":
            messages = add_instruction(messages, row.language)
        return messages if self._template is None else self._template.arranged(messages)


def answers(
    rows: Sequence[QuestionRow],
    endpoint: str,
    ask: Asking,
    max_tokens: int,
    cache: Path | None = None,
    *,
    calls: int = 16,
    timeout_s: float = 300,
    **sampling: Any,
) -> list[str]:
    """An answer to each question, empty where the endpoint refused it; blocks until all are given.

    Args:
        cache: keeps the answers, so that what was interrupted goes on; None: nowhere.
        calls: questions that are asked at a time, which the engine answers as a batch.
        timeout_s: for one answer.
        sampling: fields of a request; an answer is greedy unless there is a temperature.

    Raises:
        FatalError: the endpoint does not answer.
    """
    arguments: dict[str, Any] = {"chat_template_kwargs": ask.template_arguments} if ask.template_arguments else {}
    model = Endpoint[str](
        endpoint, cache, calls=calls, timeout_s=timeout_s, max_tokens=max_tokens, **arguments, **sampling
    )
    said = model.ask([ask(row) for row in rows], lambda _, answer: answer)
    if refused := [one.reason for one in said if isinstance(one, Failure)]:
        print(f"{len(refused)} of {len(rows)} questions were refused, and count as not answered: {refused[0]}")
    return ["" if isinstance(one, Failure) else one for one in said]
