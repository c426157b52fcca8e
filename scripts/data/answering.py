"""Has a policy answer questions outside of a run, as its actors and its reward process would: many at a time, kept as
they come.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import PreTrainedTokenizerBase

from actor.engine.client import Engine
from actor.engine.errors import EngineError, RequestRefused
from actor.engine.generation import Generation
from actor.engine.readiness import make_http_session
from actor.engine.start import open_engine
from common.config import Config
from common.config.reward import ACCURACY_PARTS
from common.diagnostics import RIGHT
from common.process import FatalError
from common.progress import Activity
from common.prompts import PROMPT_STYLES
from common.wire import Question, Score, ScoreRequest
from learner.data.problems import Problems, RowError
from learner.data.rows import QuestionRow
from reward.scored import UnscoredError
from reward.scorer import Scorer
from reward.terms.registry import TERMS
from scripts.data.digests import digest_of_function

RightOption = Annotated[
    float | None,
    typer.Option(help="Accuracy, or quality where the reward has no such part, from which an answer is right: 0.5."),
]
ConsistentOption = Annotated[
    bool,
    typer.Option(
        "--consistent", help="An answer counts as right only in the language asked for, whatever reward.gated."
    ),
]
ByOption = Annotated[
    str,
    typer.Option(
        "--by", metavar="TERM", help="A term that says alone what is right, in place of the rewards: math, exact, "
        "choice or contains. For rewards that need what is yet to be made, or that say nothing of it.",
    ),
]  # fmt: skip
_MOST_FAILURES = 8  # in a row, or of the first questions, after which the engine or the reward is what is wrong
_MOST_BAD_ROWS = 128  # in a row, in random order, after which what the reward function needs is what is gone
_MOST_ATTEMPTS = 2  # of a question, each in another call of the command, because the first may have met an outage
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
            "terms math, exact, choice and contains, let one of these alone say it (--by math), or give --right, the "
            "quality from which an answer is right"
        )
    return RIGHT if given is None else given


def scored_by(config: Config, term: str) -> Config:
    """The configuration in which a term alone says what is right, in place of the rewards; with "" it is as it was.

    Whether a right answer must be in its language is as before.

    Raises:
        FatalError: the term does not say whether an answer is right.
    """
    if not term:
        return config
    known = [name for name in TERMS if name in ACCURACY_PARTS]
    if term not in known:
        raise FatalError(f"--by {term}: the terms that say whether an answer is right are {', '.join(known)}")
    reward = config.reward.model_copy(
        update={
            "function": "", "parts": {}, "terms": {"default": {term: 1.0}}, "judges": (), "bounded": None,
            "gated": config.reward.is_gated,
        }
    )  # fmt: skip
    return config.model_copy(update={"reward": reward})


class Journal:
    """What was found so far, by the key of its task, in a file to which every entry is appended when it is known.

    ``entries`` has what was found, and ``failures`` why nothing was, with how often that was tried.

    Args:
        path: made where it is missing. A last line that was cut off is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        for line in data[:whole].split(b"\n")[:-1]:
            self._keep(json.loads(line))
        self._file.truncate(whole)

    def add(self, task: Task, **found: Any) -> None:
        """Keeps what was found for a task, values that JSON has."""
        self._write(task, found)

    def add_failure(self, task: Task, reason: str, rewarded_by: str, attempts: int = 1) -> None:
        """Keeps why nothing was found for a task with this reward function.

        Args:
            rewarded_by: a digest of the function; attempts with another one do not count.
            attempts: as how many this one counts.
        """
        attempts += self.attempts(task, rewarded_by)
        self._write(task, {"failed": reason, "attempts": attempts, "rewarded_by": rewarded_by})

    def attempts(self, task: Task, rewarded_by: str) -> int:
        """How often a task has failed with this reward function."""
        failure = self.failures.get(task.key)
        return failure["attempts"] if failure is not None and failure["rewarded_by"] == rewarded_by else 0

    def _write(self, task: Task, found: dict[str, Any]) -> None:
        place = task.row.place
        entry = {"key": task.key, "file": place.file, "row": place.row, "language": task.language, **found}
        self._keep(entry)
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def _keep(self, entry: dict[str, Any]) -> None:
        (self.failures if "failed" in entry else self.entries)[entry["key"]] = entry

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

    async def __call__(self, question: Question, language: str, count: int, draws: str) -> list[ScoredAnswer]:
        """``count`` answers in a language.

        Args:
            draws: tells these answers from all others, for engines that sample by seeds.

        Raises:
            EngineError: the engine did not generate them.
            UnscoredError: some could not be scored now.
            ValueError: the reward function failed on them.
        """
        sampling = {
            "temperature": self._config.sampling.temperature,
            "max_new_tokens": self._config.sampling.max_new_tokens,
            "stop_token_ids": self._prompt.stop_ids,
        }
        prompts = [self._prompt(question, language)] * count
        found = await self._generate(prompts, sampling, f"{self._config.run.seed} {draws}")
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
            raise UnscoredError(f"{missing} of {len(scores)} answers could not be scored")
        answers = zip(request.answers, request.truncated, scores, strict=True)
        return [ScoredAnswer(text, truncated, score) for text, truncated, score in answers]

    async def _generate(self, prompts: list[list[int]], sampling: dict[str, Any], draws: str) -> list[Generation]:
        for attempt in range(self._config.actor.attempts):
            try:
                return await self._engine.generate(prompts, sampling, draws)
            except RequestRefused:
                raise
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
    journal: Journal,
    work: Work,
    problems: Problems,
    *,
    name: str,
    what: str,
    languages: Sequence[str],
) -> None:
    """Does ``work`` for every task of which the journal has nothing, with the engine that an actor would use.

    That is one of its own, or what runs at ``actor.engine_url``. Blocks until all are done. A task that fails is added
    to ``problems`` as "not measured", and the others go on: most often it is its row that the reward cannot score. In
    the next call it is tried once more, after all others; where it has failed twice it is not tried again until its
    row, its settings or the file of its reward function change.

    Args:
        journal: what was found before; ``work`` adds to it.
        name: of this work, in the log and in the name of the engine's log.
        what: is done, as the progress says it.
        languages: in which answers are asked for.

    Raises:
        FatalError: there is no engine; or the engine or the reward is what is wrong: no answer could be generated, or
            scored just now, eight times in a row; nothing was ever found and the first eight tasks have failed; or the
            reward function has failed on 128 tasks in a row, which are asked in random order.
    """
    rewarded_by = digest_of_function(config.reward.function)
    left = [task for task in tasks if task.key not in journal.entries]
    if known := len(tasks) - len(left):
        print(f"{known} of {len(tasks)} are known from {journal.path}")
    given_up = [task for task in left if journal.attempts(task, rewarded_by) >= _MOST_ATTEMPTS]
    for task in given_up:
        problems.add(task.row.place, RowError("", journal.failures[task.key]["failed"], "not measured"))
    if given_up:
        print(
            f"{len(given_up)} of {len(tasks)} have failed {_MOST_ATTEMPTS} times and are not tried again. Mend their "
            f"rows or the reward function, or delete their lines in {journal.path}. {problems.of('not measured')[-1]}"
        )
    new = [task for task in left if not journal.attempts(task, rewarded_by)]
    again = [task for task in left if 0 < journal.attempts(task, rewarded_by) < _MOST_ATTEMPTS]
    # Rows that cannot be scored often lie together. At random their share shows, and whether it is all of them.
    random.Random(0).shuffle(new)
    if not (new or again):
        return
    doing = _Doing(new, again, journal, problems, rewarded_by, has_found=bool(known))
    try:
        asyncio.run(_answer_tasks(config, tokenizer, doing, work, name, what, languages))
    except EngineError as error:
        raise FatalError(f"no engine for {config.model.path}: {error}") from None


async def _answer_tasks(
    config: Config, tokenizer: PreTrainedTokenizerBase, doing: _Doing, work: Work, name: str, what: str,
    languages: Sequence[str],
) -> None:  # fmt: skip
    scorer = Scorer(config.reward, languages, header=config.model.header)
    try:
        async with make_http_session() as http, open_engine(config, name, http) as opened:
            answering = Answering(config, tokenizer, opened.engine, scorer)
            try:
                await doing.all_of_them(partial(work, answering), config.actor.groups_in_flight, name, what)
            finally:
                answering.close()
    finally:
        scorer.close()


class _Doing:
    """Does tasks, many at a time, and decides whether one that fails is to blame, or the engine or the reward.

    Args:
        new: tasks that have not failed yet.
        again: tasks that have failed in an earlier call.
        has_found: whether anything was found in an earlier call.
    """

    def __init__(
        self, new: Sequence[Task], again: Sequence[Task], journal: Journal, problems: Problems, rewarded_by: str, *,
        has_found: bool,
    ) -> None:  # fmt: skip
        self._tasks, self._new = [*new, *again], len(new)
        self._journal, self._problems, self._rewarded_by = journal, problems, rewarded_by
        self._has_found = has_found
        self._done = self._failed = 0
        self._first_failed = 0  # of the first tasks, in the order in which they were begun
        self._outages = self._bad_rows = 0  # in a row

    async def all_of_them(self, work: Callable[[Task], Awaitable[None]], at_a_time: int, name: str, what: str) -> None:
        free = asyncio.Semaphore(at_a_time)

        async def one(number: int, task: Task) -> None:
            async with free:
                try:
                    await work(task)
                    self._has_found, self._outages, self._bad_rows = True, 0, 0
                except FatalError:
                    raise
                except Exception as error:  # whatever a question provokes is told beside it, and the others are asked
                    self._note(error, number, task)
                self._done += 1

        try:
            with Activity(name, what, detail=self._progress):
                async with asyncio.TaskGroup() as group:
                    for number, task in enumerate(self._tasks):
                        group.create_task(one(number, task))
        except* FatalError as errors:
            raise FatalError(str(errors.exceptions[0])) from None

    def _progress(self) -> str:
        failed = f", {self._failed} could not be measured" if self._failed else ""
        return f"{self._done} of {len(self._tasks)}{failed}"

    def _note(self, error: Exception, number: int, task: Task) -> None:
        """
        Raises:
            FatalError: not the task is to blame.
        """
        self._failed += 1
        self._first_failed += number < _MOST_FAILURES
        reason = f"not measured in {task.language}: {type(error).__name__}: {error}"
        self._problems.add(task.row.place, RowError("", reason, "not measured"))
        refused = isinstance(error, RequestRefused)
        if engine_failed := isinstance(error, EngineError) and not refused:
            self._outages += 1
        else:
            self._journal.add_failure(task, reason, self._rewarded_by, _MOST_ATTEMPTS if refused else 1)
            is_of_row = refused or isinstance(error, ValueError)  # the latter is how a reward function fails
            is_new = number < self._new
            self._outages += is_new and not is_of_row
            self._bad_rows += is_new and is_of_row
        never = not self._has_found and self._first_failed == _MOST_FAILURES
        if never or self._outages >= _MOST_FAILURES or self._bad_rows >= _MOST_BAD_ROWS:
            count = _MOST_BAD_ROWS if self._bad_rows >= _MOST_BAD_ROWS else _MOST_FAILURES
            which = f"the first {count} questions" if never else f"{count} questions in a row"
            cure = (
                "The log of the engine says why"
                if engine_failed
                else "Check the reward and the columns that it reads, or let a term say what is right (--by math)"
            )
            raise FatalError(
                f"{which} could not be measured, the last one: {task.row.place}: {reason}. {cure}. What was measured "
                "is kept: the same command goes on from there"
            ) from None
