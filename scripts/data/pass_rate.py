"""Measures how often a model answers each training question rightly, and writes the data with that column.

    python -m scripts.data.pass_rate CONFIG.toml ... --out data/rated.parquet [--samples 8] [--section.key value]

Every question of data.train is asked in every language of run.languages, ``--samples`` times, with the prompts, the
sampling and the rewards of a run of this configuration. An answer is right if its reward is at least
``--right``. The engine is the one that an actor would use: of its own, or what runs at actor.engine_url.

``--out`` has the rows of data.train with a column ``pass_rate``, the share of right answers by language. A run with
data.train = "data/rated.parquet" and data.pass_rate = [0.1, 0.9] then trains on what it can neither always do nor
never. What was measured is kept in ``*.answers.jsonl`` beside ``--out`` as it comes, and the same command goes on from
there. Rows that cannot be asked, and questions that could not be answered or scored, are listed in
``*.problems.jsonl``; the former are not written, the latter have no rate.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from transformers import PreTrainedTokenizerBase

from actor.engine.client import Engine, Generation
from actor.engine.errors import EngineError
from actor.engine.readiness import make_http_session
from actor.engine.start import open_engine
from common.config import Config, load
from common.process import FatalError
from common.progress import Activity
from common.prompts import PROMPT_STYLES
from common.tokenizer import load_tokenizer
from common.wire import Question, Score, ScoreRequest, encode
from learner.data.problems import Place, Problems, RowError
from learner.data.records import Unreadable, read_records
from learner.data.rows import QuestionRow
from learner.work.questions import as_question, usable_rows
from reward.scorer import Scorer
from scripts.data.tables import write
from scripts.ops.command_line import command

_MOST_FAILURES = 8  # in a row, after which the engine or the reward is what is wrong
_SCORE_S = 3600.0  # for one question; nobody waits behind it
_BINS = ((0.0, 0.0), (0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0), (1.0, 1.0))  # of the table that is printed


@dataclass(frozen=True)
class Task:
    """A question in a language."""

    row: QuestionRow
    language: str
    key: str  # of what is asked, of whom and how: what was measured under it need not be measured again


class Measured:
    """The rates so far, in a file to which every one is appended when it is known.

    Args:
        path: made where it is missing. A last line that was cut off is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.rates: dict[str, float] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        for line in data[:whole].split(b"\n")[:-1]:
            entry = json.loads(line)
            self.rates[entry["key"]] = entry["right"] / entry["of"]
        self._file.truncate(whole)

    def add(self, task: Task, right: int, of: int) -> None:
        self.rates[task.key] = right / of
        entry = {"key": task.key, "file": task.row.place.file, "row": task.row.place.row, "language": task.language,
                 "right": right, "of": of}  # fmt: skip
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Measuring:
    """Asks the questions and scores the answers, many at a time.

    Args:
        samples: answers to each question in each language.
        least: the reward of a right answer.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: PreTrainedTokenizerBase,
        engine: Engine,
        scorer: Scorer,
        samples: int,
        least: float,
    ) -> None:
        self._config, self._tokenizer, self._engine, self._scorer = config, tokenizer, engine, scorer
        self._samples, self._least = samples, least
        self._prompt = PROMPT_STYLES[config.model.prompt_style](tokenizer, config)
        self._free = asyncio.Semaphore(config.actor.groups_in_flight)
        self._scoring = ThreadPoolExecutor(1, "scoring")  # a scorer is called by one thread at a time
        self._failures = 0  # in a row

    async def run(self, tasks: Sequence[Task], measured: Measured, problems: Problems) -> None:
        """Returns when every task is measured, or stands in ``problems``.

        Raises:
            FatalError: eight tasks in a row have failed.
        """
        done = 0

        def progress() -> str:
            return f"{done} of {len(tasks)}"

        async def one(task: Task) -> None:
            nonlocal done
            async with self._free:
                await self._measure(task, measured, problems)
                done += 1

        try:
            with Activity("pass-rate", "answering the questions", detail=progress):
                async with asyncio.TaskGroup() as group:
                    for task in tasks:
                        group.create_task(one(task))
        except* FatalError as errors:
            raise FatalError(str(errors.exceptions[0])) from None
        finally:
            self._scoring.shutdown(wait=False, cancel_futures=True)

    async def _measure(self, task: Task, measured: Measured, problems: Problems) -> None:
        question = as_question(task.row.place.row, task.row)
        try:
            scores = await self._answers(question, task.language)
        except Exception as error:  # whatever a question provokes is told beside it, and the others are asked
            self._failures += 1
            reason = f"not measured in {task.language}: {type(error).__name__}: {error}"
            if self._failures >= _MOST_FAILURES:
                raise FatalError(
                    f"{_MOST_FAILURES} questions in a row could not be measured, the last one: {task.row.place}: "
                    f"{reason}. What was measured is kept: the same command goes on from there"
                ) from None
            problems.add(task.row.place, RowError("", reason, "not measured"))
            return
        self._failures = 0
        measured.add(task, sum(score.reward >= self._least for score in scores), len(scores))

    async def _answers(self, question: Question, language: str) -> list[Score]:
        sampling = {
            "temperature": self._config.sampling.temperature,
            "max_new_tokens": self._config.sampling.max_new_tokens,
            "stop_token_ids": self._prompt.stop_ids,
        }
        found = await self._generate([self._prompt(question, language)] * self._samples, sampling)
        request = ScoreRequest(
            id=0,
            reference=question.reference,
            reference_language=question.language,
            answers=[str(self._tokenizer.decode(one.ids, skip_special_tokens=True)) for one in found],
            languages=[language] * self._samples,
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
        return scores

    async def _generate(self, prompts: list[list[int]], sampling: dict[str, Any]) -> list[Generation]:
        for attempt in range(self._config.actor.attempts):
            try:
                return await self._engine.generate(prompts, sampling)
            except EngineError:
                if attempt == self._config.actor.attempts - 1:
                    raise
                await asyncio.sleep(2**attempt)
        raise AssertionError("there is at least one attempt")


def make_tasks(config: Config, rows: Sequence[QuestionRow], samples: int, least: float) -> list[Task]:
    """Every row in every language of the run."""
    how = json.dumps(
        {
            "model": config.model.model_dump(mode="json"), "sampling": config.sampling.model_dump(mode="json"),
            "reward": config.reward.model_dump(mode="json", exclude={"addresses", "device"}),
            "samples": samples, "least": least,
        },
        sort_keys=True,
    )  # fmt: skip
    tasks = []
    for row in rows:
        asked = encode(as_question(0, row))
        for language in config.run.languages:
            key = hashlib.sha256(b"\n".join([asked, language.encode(), how.encode()])).hexdigest()
            tasks.append(Task(row, language, key))
    return tasks


def rated_records(source: str, rows: Sequence[QuestionRow], rates: Mapping[Place, Mapping[str, float]]) -> list[Any]:
    """The records of the rows as the source has them, each with its rates."""
    wanted = {row.place for row in rows}
    return [
        {**record, "pass_rate": dict(rates.get(place, {})) or None}
        for place, record in read_records(source)
        if place in wanted and not isinstance(record, Unreadable)
    ]


async def _measure_all(
    config: Config, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[Task], measured: Measured, problems: Problems,
    samples: int, least: float,
) -> None:  # fmt: skip
    scorer = Scorer(config.reward, config.run.languages, header=config.model.header)
    try:
        async with make_http_session() as http, open_engine(config, "pass-rate", http) as opened:
            await Measuring(config, tokenizer, opened.engine, scorer, samples, least).run(tasks, measured, problems)
    finally:
        scorer.close()


def table(rates: Mapping[str, Sequence[float]]) -> str:
    """A line for each language: the mean rate, and how many questions are in each range of rates."""
    heads = ["0"] + [f"to {high:g}" for _, high in _BINS[1:-1]] + ["1"]
    lines = [f"{'language':<10}{'questions':>10}{'mean':>7}" + "".join(f"{head:>9}" for head in heads)]
    for language, values in rates.items():
        counts = [
            sum(value == low if low == high else low < value <= high and value < 1 for value in values)
            for low, high in _BINS
        ]
        average = mean(values) if values else 0.0
        lines.append(f"{language:<10}{len(values):>10}{average:>7.2f}" + "".join(f"{count:>9}" for count in counts))
    return "\n".join(lines)


@command(passes_flags_on=True)
def main(
    context: typer.Context,
    *,
    out: Annotated[Path, typer.Option(help="Parquet file to write. Answers and problems are written beside it.")],
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question in each language.")] = 8,
    right: Annotated[float, typer.Option(help="Reward from which an answer is right.")] = 0.5,
) -> None:
    config = load(context.args)
    tokenizer, problems = load_tokenizer(config.model.path), Problems()
    rows = usable_rows(config, tokenizer, config.data.train, problems)
    tasks = make_tasks(config, rows, samples, right)
    measured = Measured(out.with_suffix(".answers.jsonl"))
    try:
        missing = [task for task in tasks if task.key not in measured.rates]
        if known := len(tasks) - len(missing):
            print(f"{known} of {len(tasks)} questions and languages are known from {out.with_suffix('.answers.jsonl')}")
        if missing:
            asyncio.run(_measure_all(config, tokenizer, missing, measured, problems, samples, right))
    except EngineError as error:
        raise FatalError(f"no engine for {config.model.path}: {error}") from None
    finally:
        measured.close()
        problems.write(out.with_suffix(".problems.jsonl"))
    by_place: defaultdict[Place, dict[str, float]] = defaultdict(dict)
    by_language: dict[str, list[float]] = {language: [] for language in config.run.languages}
    for task in tasks:
        if task.key in measured.rates:
            by_place[task.row.place][task.language] = measured.rates[task.key]
            by_language[task.language].append(measured.rates[task.key])
    write(rated_records(config.data.train, rows, by_place), out)
    for kind in ("broken", "not measured"):
        for line in problems.lines(kind):
            print(f"{kind}: {line}")
    print(table(by_language))
    if config.data.pass_rate is not None:
        low, high = config.data.pass_rate
        kept = sum(low <= mean(rates.values()) <= high for rates in by_place.values())
        print(f"data.pass_rate = [{low:g}, {high:g}] keeps {kept} of {len(rows)} questions")
    print(f"{out}: {len(rows)} questions, {len(by_place)} with a pass rate")


if __name__ == "__main__":
    main()
