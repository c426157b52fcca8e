"""Has a policy answer questions outside of a run, as its actors and its reward process would: many at a time, kept as
they come.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import PreTrainedTokenizerBase

from actor.engine.client import Engine, Generation
from actor.engine.errors import EngineError
from actor.engine.readiness import make_http_session
from actor.engine.start import open_engine
from common.config import Config
from common.diagnostics import RIGHT
from common.process import FatalError
from common.progress import Activity
from common.prompts import PROMPT_STYLES
from common.wire import Question, Score, ScoreRequest
from learner.data.problems import Problems, RowError
from learner.data.rows import QuestionRow
from reward.scorer import Scorer

RightOption = Annotated[
    float | None,
    typer.Option(help="Accuracy, or quality where the reward has no such part, from which an answer is right: 0.5."),
]
_MOST_FAILURES = 8  # in a row, after which the engine or the reward is what is wrong
_SCORE_S = 3600.0  # for one question; nobody waits behind it


@dataclass(frozen=True)
class Task:
    """A question in a language."""

    row: QuestionRow
    language: str
    key: str  # of what is asked, of whom and how: what was found under it need not be found again


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer as it was generated, and what it earns."""

    text: str
    truncated: bool
    score: Score


def least_of_right(config: Config, given: float | None) -> float:
    """From what on an answer is right, as ``--right`` gives it.

    Raises:
        FatalError: it is not given, and no part of the reward says what is right.
    """
    if given is None and (silent := config.reward.silent_about_right):
        raise FatalError(
            f"of {silent} none says which answers are right: name a part of your reward 'accuracy', add one of the "
            "terms math, exact, choice and contains, or give --right, the quality from which an answer is right"
        )
    return RIGHT if given is None else given


class Journal:
    """What was found so far, by the key of its task, in a file to which every entry is appended when it is known.

    Args:
        path: made where it is missing. A last line that was cut off is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.entries: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        for line in data[:whole].split(b"\n")[:-1]:
            entry = json.loads(line)
            self.entries[entry["key"]] = entry
        self._file.truncate(whole)

    def add(self, task: Task, **found: Any) -> None:
        """Keeps what was found for a task, values that JSON has."""
        place = task.row.place
        entry = {"key": task.key, "file": place.file, "row": place.row, "language": task.language, **found}
        self.entries[task.key] = entry
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Answering:
    """Generates answers to a question, with the prompts and the sampling of a run, and scores them by its rewards."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase, engine: Engine, scorer: Scorer) -> None:
        self._config, self._tokenizer, self._engine, self._scorer = config, tokenizer, engine, scorer
        self._prompt = PROMPT_STYLES[config.model.prompt_style](tokenizer, config)
        self._scoring = ThreadPoolExecutor(1, "scoring")  # a scorer is called by one thread at a time

    @property
    def opens_thought(self) -> bool:
        """Whether a prompt ends with ``<think>``."""
        return self._prompt.opens_thought

    async def __call__(self, question: Question, language: str, count: int) -> list[ScoredAnswer]:
        """``count`` answers in a language.

        Raises:
            EngineError: the engine did not generate them.
            ValueError: some could not be scored.
        """
        sampling = {
            "temperature": self._config.sampling.temperature,
            "max_new_tokens": self._config.sampling.max_new_tokens,
            "stop_token_ids": self._prompt.stop_ids,
        }
        found = await self._generate([self._prompt(question, language)] * count, sampling)
        request = ScoreRequest(
            id=0,
            reference=question.reference,
            reference_language=question.language,
            answers=[str(self._tokenizer.decode(one.ids, skip_special_tokens=True)) for one in found],
            languages=[language] * count,
            truncated=[one.truncated for one in found],
            thinking_opened=self._prompt.opens_thought,
            topics=question.topics,
            accepted=question.accepted,
            row=question.index,
            messages=question.messages,
            extra=question.extra,
            tokens=[len(one.ids) for one in found],
            deadline_s=_SCORE_S,
        )
        loop = asyncio.get_running_loop()
        scores = (await loop.run_in_executor(self._scoring, self._scorer.score, [request]))[0]
        if missing := sum(not score.scored for score in scores):
            raise ValueError(f"{missing} of {len(scores)} answers could not be scored")
        answers = zip(request.answers, request.truncated, scores, strict=True)
        return [ScoredAnswer(text, truncated, score) for text, truncated, score in answers]

    async def _generate(self, prompts: list[list[int]], sampling: dict[str, Any]) -> list[Generation]:
        for attempt in range(self._config.actor.attempts):
            try:
                return await self._engine.generate(prompts, sampling)
            except EngineError:
                if attempt == self._config.actor.attempts - 1:
                    raise
                await asyncio.sleep(2**attempt)
        raise AssertionError("there is at least one attempt")

    def close(self) -> None:
        self._scoring.shutdown(wait=False, cancel_futures=True)


Work = Callable[[Answering, Task], Awaitable[None]]


def answer_tasks(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    work: Work,
    problems: Problems,
    *,
    name: str,
    what: str,
    languages: Sequence[str],
) -> None:
    """Does ``work`` for every task, with the engine that an actor would use: of its own, or at ``actor.engine_url``.

    Blocks until all are done. A task that fails is added to ``problems`` as "not measured", and the others go on.

    Args:
        name: of this work, in the log and in the name of the engine's log.
        what: is done, as the progress says it.
        languages: in which answers are asked for.

    Raises:
        FatalError: there is no engine, or eight tasks in a row have failed.
    """
    try:
        asyncio.run(_answer_tasks(config, tokenizer, tasks, work, problems, name, what, languages))
    except EngineError as error:
        raise FatalError(f"no engine for {config.model.path}: {error}") from None


async def _answer_tasks(
    config: Config, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], work: Work, problems: Problems,
    name: str, what: str, languages: Sequence[str],
) -> None:  # fmt: skip
    scorer = Scorer(config.reward, languages, header=config.model.header)
    try:
        async with make_http_session() as http, open_engine(config, name, http) as opened:
            answering = Answering(config, tokenizer, opened.engine, scorer)
            try:
                await _all_of(tasks, partial(work, answering), problems, config.actor.groups_in_flight, name, what)
            finally:
                answering.close()
    finally:
        scorer.close()


async def _all_of(
    tasks: Sequence[Task], work: Callable[[Task], Awaitable[None]], problems: Problems, at_a_time: int, name: str,
    what: str,
) -> None:  # fmt: skip
    free = asyncio.Semaphore(at_a_time)
    done = failures = 0  # failures in a row

    def progress() -> str:
        return f"{done} of {len(tasks)}"

    async def one(task: Task) -> None:
        nonlocal done, failures
        async with free:
            try:
                await work(task)
                failures = 0
            except Exception as error:  # whatever a question provokes is told beside it, and the others are asked
                failures += 1
                reason = f"not measured in {task.language}: {type(error).__name__}: {error}"
                if failures >= _MOST_FAILURES:
                    raise FatalError(
                        f"{_MOST_FAILURES} questions in a row could not be measured, the last one: {task.row.place}: "
                        f"{reason}. What was measured is kept: the same command goes on from there"
                    ) from None
                problems.add(task.row.place, RowError("", reason, "not measured"))
            done += 1

    try:
        with Activity(name, what, detail=progress):
            async with asyncio.TaskGroup() as group:
                for task in tasks:
                    group.create_task(one(task))
    except* FatalError as errors:
        raise FatalError(str(errors.exceptions[0])) from None
