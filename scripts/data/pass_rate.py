"""Measures how often a model answers each training question rightly, and writes the data with that column.

    python -m scripts.data.pass_rate CONFIG.toml ... --out data/rated.jsonl [--samples 8] [--section.key value]

Every question of data.train is asked in every language in which a run of this configuration may ask it, ``--samples``
times, with the run's prompts, sampling and rewards: in its own with router.mode = "monolingual"; where languages are
drawn, in all of run.languages, and in its own if answers are reserved for that. An answer is right if the part of its
reward that is its accuracy (docs/metrics.md) is at least ``--right``, or 0.5; where no part is, ``--right`` must be
given, and its quality counts; with ``--by`` a term says it alone, as math. With reward.gated, or ``--consistent``, it
must be in the language asked for, too. The
engine is the one that an actor would use: of its own, or what runs at actor.engine_url.

``--out`` has the rows of data.train with a column ``pass_rate``, the share of right answers by language. A run with
data.train = "data/rated.jsonl" and data.pass_rate = [0.1, 0.9] then trains on what it can neither always do nor
never. What was measured is kept in ``*.answers.jsonl`` beside ``--out`` as it comes, and the same command goes on from
there. Rows that cannot be asked, and questions that could not be answered or scored, are listed in
``*.problems.jsonl``; the former are not written, the latter have no rate. The same command tries these once more.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from common.config import Config, load
from common.diagnostics import solves
from common.languages import POLICY_CHOOSES
from common.tokenizer import load_tokenizer
from common.wire import encode
from learner.data.problems import PROBLEMS_SUFFIX, Place, Problems, RowError
from learner.data.records import Unreadable, read_records
from learner.data.rows import QuestionRow, normal_form
from learner.work.questions import as_question, usable_rows
from router.modes import fixed_languages
from scripts.data.answering import (
    Answering,
    ByOption,
    ConsistentOption,
    Journal,
    RightOption,
    Task,
    answer_tasks,
    least_of_right,
    scored_by,
)
from scripts.data.digests import how_answered
from scripts.data.tables import OutOption, check_holds, write
from scripts.ops.command_line import command

_BINS = ((0.0, 0.0), (0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0), (1.0, 1.0))  # of the table that is printed


@dataclass(frozen=True)
class Measured:
    """The pass rates of the rows of a source."""

    rows: list[QuestionRow]  # those that can be asked
    rates: dict[Place, dict[str, float]]  # of the rows that could be measured, by language
    problems: Problems  # the rows that cannot be asked, and what could not be measured

    def by_language(self) -> dict[str, list[float]]:
        """The rates of all rows, by the language of the answers, sorted by its code."""
        found: defaultdict[str, list[float]] = defaultdict(list)
        for rates in self.rates.values():
            for language, rate in rates.items():
                found[language].append(rate)
        return dict(sorted(found.items()))


def question_key(row: QuestionRow) -> str:
    """What two rows have in common that ask the same, in whatever file."""
    return hashlib.sha256(normal_form(row.messages).encode("utf-8", "backslashreplace")).hexdigest()


def languages_asked(config: Config, row: QuestionRow) -> list[str]:
    """The languages in which a run of this configuration may ask a question.

    Those that its mode fixes; and where it leaves a choice to the router or to the policy, all of ``run.languages``.
    The question's own language may be none of these.
    """
    fixed = fixed_languages(config.router, row.language, row.topics)
    leaves_a_choice = len(fixed) < config.router.rollouts or POLICY_CHOOSES in fixed
    languages = dict.fromkeys([*(config.run.languages if leaves_a_choice else ()), *fixed])
    return [language for language in languages if language != POLICY_CHOOSES]


def measure(
    config: Config,
    out: Path,
    samples: int,
    right: float,
    *,
    consistent: bool = False,
    without: frozenset[str] = frozenset(),
) -> Measured:
    """Measures the pass rates of the rows of ``data.train``. Blocks until all are measured, and says how far it is.

    Args:
        out: what is measured is kept beside it as it comes, in ``*.answers.jsonl``, from which the same call goes on;
            rows that are not measured are listed in ``*.problems.jsonl``.
        samples: answers to each question in each language.
        right: from what on an answer is right, see :func:`common.diagnostics.solves`.
        consistent: whether a right answer must be in the language asked for, also where the reward does not care.
        without: the ``question_key`` of questions that are not asked; they are listed, too, as "used before".

    Raises:
        FatalError: the data cannot be read, there is no engine, or as of ``answer_tasks``.
    """
    tokenizer, problems = load_tokenizer(config.model.path), Problems()
    rows = []
    for row in usable_rows(config, tokenizer, config.data.train, problems):
        if question_key(row) in without:
            problems.add(row.place, RowError("", "an earlier iteration was trained on it", "used before"))
        else:
            rows.append(row)
    gated = config.reward.is_gated or consistent
    tasks = make_tasks(config, rows, samples, right, gated=gated)
    journal = Journal(out.with_suffix(".answers.jsonl"))

    async def ask(answering: Answering, task: Task) -> None:
        question = as_question(task.row.place.row, task.row)
        found = await answering(question, task.language, samples, task.key)
        journal.add(task, right=sum(bool(solves(one.score, least=right, gated=gated)) for one in found), of=len(found))

    languages = list(dict.fromkeys([*config.run.languages, *(task.language for task in tasks)]))
    what = "answering the questions"
    try:
        answer_tasks(config, tokenizer, tasks, journal, ask, problems, name="pass-rate", what=what, languages=languages)
    finally:
        journal.close()
        problems.write(out.with_suffix(PROBLEMS_SUFFIX))
    rates: defaultdict[Place, dict[str, float]] = defaultdict(dict)
    for task in tasks:
        if entry := journal.entries.get(task.key):
            rates[task.row.place][task.language] = entry["right"] / entry["of"]
    return Measured(rows, dict(rates), problems)


def make_tasks(config: Config, rows: Sequence[QuestionRow], samples: int, least: float, *, gated: bool) -> list[Task]:
    """Every row in every language in which it may be asked."""
    stricter = {"consistent": True} if gated and not config.reward.is_gated else {}
    how = json.dumps({**how_answered(config), "samples": samples, "least": least, **stricter}, sort_keys=True)
    tasks = []
    for row in rows:
        asked = encode(as_question(0, row))
        for language in languages_asked(config, row):
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
    out: OutOption,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question in each language.")] = 8,
    right: RightOption = None,
    consistent: ConsistentOption = False,
    by: ByOption = "",
) -> None:
    config = scored_by(load(context.args), by)
    check_holds(out, config.data.train)
    found = measure(config, out, samples, least_of_right(config, right), consistent=consistent)
    write(rated_records(config.data.train, found.rows, found.rates), out)
    for kind in ("broken", "not measured"):
        for line in found.problems.lines(kind):
            print(f"{kind}: {line}")
    print(table(found.by_language()))
    if config.data.pass_rate is not None:
        low, high = config.data.pass_rate
        kept = sum(low <= mean(rates.values()) <= high for rates in found.rates.values())
        print(f"data.pass_rate = [{low:g}, {high:g}] keeps {kept} of {len(found.rows)} questions")
    print(f"{out}: {len(found.rows)} questions, {len(found.rates)} with a pass rate")


if __name__ == "__main__":
    main()
