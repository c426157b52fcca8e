"""The model that is evaluated: its engine, how it is asked, and its answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedTokenizerBase

from actor.engine.errors import EngineError
from actor.engine.server import EngineProcess
from common.config import Config, load
from common.context import context_length
from common.endpoint import Conversation, Failure
from common.instructions import NONE_OWN
from common.languages import tag
from common.process import FatalError
from common.prompts import PROMPT_STYLES, ChatTemplate, PromptError
from common.tokenizer import load_tokenizer
from learner.data.rows import QuestionRow
from scripts.data.endpoint import Endpoint

_REFUSED_SHARE = 0.01  # of the questions; where more are refused, the fault is not theirs
_SPARE_TOKENS = 16  # of the context, for an engine whose template writes the date in other words than ours
# The files that make a model what it is: weights, configuration, tokenizer, chat template.
_PARTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")


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


def cache_file(out: Path, model: str) -> Path:
    """Where a model's answers are kept, beside ``out``: a model that has changed at the same place has another file.

    Of a directory its files count, by name, size and time: an answer depends on the weights, and on tokenizer and chat
    template, because what is kept goes by the messages and not by the prompt. Of a name on the hub the commit counts
    that the local copy is of, so load the tokenizer first, which fetches the newest. What is behind NAME@URL nobody
    can tell.
    """
    directory, state = Path(model), list[Any]()
    if directory.is_dir():
        files = sorted(file for file in directory.iterdir() if file.suffix in _PARTS and file.is_file())
        state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    elif "@" not in model and isinstance(copy := try_to_load_from_cache(model, "config.json"), str):
        state = [Path(copy).parent.name]
    mark = hashlib.sha256(json.dumps([model, state]).encode()).hexdigest()[:8]
    return out.with_suffix(f".{mark}.sqlite")


class Asking:
    """How the questions are put to the model.

    ``template_arguments`` are those of its chat template; an endpoint of somebody else's gets none.

    Args:
        style: "tag", "system" or "plain"; "auto" is the style of the run, or tag where the model is no run's; then a
            language for which the tokenizer has no tag is asked for by nothing, and so is any of NAME@URL.
        model: a directory or hub name, or NAME@URL.
        run: the run whose settings count, where the model is its ``model`` directory.

    Raises:
        FatalError: the model's tokenizer cannot be loaded or has no chat template.
    """

    def __init__(self, style: str, model: str, run: Path) -> None:
        self._model, self._tokenizer = model, None if "@" in model else load_tokenizer(model)
        settings = None if self._tokenizer is None else _settings(model, run)
        self._instructions = NONE_OWN if settings is None else settings.model.instructions
        self._is_free = style == "auto"
        self._style = style
        if self._is_free:
            self._style = "plain" if settings is None else settings.model.prompt_style
        self._context: int | None = None
        if settings is not None:
            with suppress(FatalError):  # an engine may know models that transformers does not
                self._context = context_length(settings)
        self._template = (
            None if self._tokenizer is None or settings is None else ChatTemplate(self._tokenizer, settings.model)
        )
        self.template_arguments = {} if self._template is None else self._template.arguments
        # Whether the template ends a prompt with <think>; of somebody else's endpoint nobody knows.
        self.opens_thought = self._template is not None and self._template.opens_thought

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """None for an endpoint of somebody else's."""
        return self._tokenizer

    def style_of(self, language: str) -> str:
        """How an answer in a language is asked for: a name of ``PROMPT_STYLES``."""
        if self._style == "tag" and self._is_free and self._tokenizer is not None:
            return "tag" if len(self._tokenizer.encode(tag(language), add_special_tokens=False)) == 1 else "plain"
        return self._style

    def styles(self, rows: Iterable[QuestionRow]) -> dict[str, str]:
        """Language -> the style in which its questions are asked."""
        return {language: self.style_of(language) for language in sorted({row.language for row in rows})}

    def __call__(self, row: QuestionRow) -> Conversation:
        """The chat messages of a question."""
        style = PROMPT_STYLES[self.style_of(row.language)]
        messages = style.style_messages(row.messages, row.language, self._instructions)
        return messages if self._template is None else self._template.arranged(messages)

    def limits(self, rows: Sequence[QuestionRow], wanted: int) -> list[int]:
        """The longest answer to each question, in tokens: as long as is wanted, or as the model's context leaves.

        An engine refuses a question whose prompt and longest answer are more than its context. Where that leaves less
        than is wanted, stderr says so. Of somebody else's endpoint nobody knows the context.
        """
        if self._context is None:
            return [wanted] * len(rows)
        found = [max(1, min(wanted, self._context - self._prompt_tokens(row) - _SPARE_TOKENS)) for row in rows]
        if found and min(found) < wanted:
            bounds = " to ".join(map(str, sorted({min(found), max(found)})))
            print(
                f"answers have at most {bounds} tokens instead of {wanted}: {self._model} holds {self._context}, "
                "prompt and answer together",
                file=sys.stderr,
            )
        return found

    def _prompt_tokens(self, row: QuestionRow) -> int:
        assert self._tokenizer is not None and self._template is not None
        try:
            return len(self._tokenizer.encode(self._template(self(row)), add_special_tokens=False))
        except PromptError:  # which the engine says of this question, too
            return 0


def told_styles(styles: Mapping[str, str]) -> str:
    """The styles of the languages in words."""
    by_style = defaultdict[str, list[str]](list)
    for language, style in styles.items():
        by_style[style].append(language)
    if len(by_style) == 1:
        return f"prompt style {next(iter(by_style))}"
    return "prompt styles " + ", ".join(f"{style} ({' '.join(codes)})" for style, codes in by_style.items())


def answers(
    rows: Sequence[QuestionRow],
    endpoint: str,
    ask: Asking,
    limits: Sequence[int],
    cache: Path,
    *,
    calls: int = 16,
    timeout_s: float = 300,
    **sampling: Any,
) -> list[str | Failure]:
    """An answer to each question, or why the endpoint refused the question; blocks until all are given.

    Args:
        limits: the longest answer to each question, in tokens.
        cache: keeps the answers, so that what was interrupted goes on.
        calls: questions that are asked at a time, which the engine answers as a batch.
        timeout_s: for one answer.
        sampling: fields of a request; an answer is greedy unless there is a temperature.

    Raises:
        FatalError: the endpoint does not answer, or refuses more than 1% of the questions, and more than one, or all.
            Then it ends at once, and not when the others are answered.
    """
    refused: list[str] = []

    def take_refusal(number: int, failure: Failure) -> None:
        refused.append(f"{len(refused) + 1} of {len(rows)} questions were refused, as {rows[number].place}: {failure}")
        if len(refused) == len(rows) or len(refused) > max(1, _REFUSED_SHARE * len(rows)):
            raise FatalError(
                f"{refused[-1]}. They would count as wrong. Where prompt and answer are more than the engine holds, "
                "give a smaller --max-tokens; else leave out such questions"
            )

    arguments: dict[str, Any] = {"chat_template_kwargs": ask.template_arguments} if ask.template_arguments else {}
    model = Endpoint[str](endpoint, cache, calls=calls, timeout_s=timeout_s, thoughts=True, **arguments, **sampling)
    said = model.ask([ask(row) for row in rows], lambda _, answer: answer, limits=limits, refused=take_refusal)
    if refused:
        print(f"{refused[-1]}. They count as not answered", file=sys.stderr)
    return said


def text_of(said: str | Failure) -> str:
    """An answer; empty where the question was refused."""
    return "" if isinstance(said, Failure) else said
