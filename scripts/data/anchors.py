"""Has a model answer each training question in a strong language, and writes the data with a right answer as anchor.

    python -m scripts.data.anchors CONFIG.toml ... --out data/anchored.jsonl --write english_thought=thought
        [--language en] [--question english_question] [--rounds 1,8,16,32] [--consistent] [--by TERM]
        [--section.key value]

An anchor is what a reward compares answers in other languages with: M-Thinker takes the policy's own English thought to
the English question. The question is asked in ``--language`` with the prompts and the sampling of a run of this
configuration, in rounds of so many answers, until one is right: the part of its reward that is its accuracy
(docs/metrics.md) is at least ``--right``, or 0.5; where no part is, ``--right`` must be given, and its quality counts.
With ``--by`` a term says it alone, as math: for rewards that need the columns that are being made. With reward.gated,
or ``--consistent``, it must be in that language, too. That answer is the anchor: its ``thought`` (the final answer,
where it has none), its final ``answer``, or the ``whole`` text are written to the columns that ``--write`` names, which
a run reads by data.columns.

``--question`` names the column of data.columns that holds the question in that language; without it each question is
asked as it is. Questions without a right answer get no anchor and are kept. What was found is kept in
``*.answers.jsonl`` beside ``--out`` as it comes, and the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import msgspec
import typer

from common.answer import read_answer
from common.config import Config, load
from common.diagnostics import RIGHT, solves
from common.languages import code_of
from common.process import FatalError
from common.tokenizer import load_tokenizer
from common.wire import Chat, Question, encode
from learner.data.problems import PROBLEMS_SUFFIX, Place, Problems, RowError
from learner.data.records import Unreadable, read_records
from learner.data.rows import QuestionRow
from learner.work.questions import as_question, usable_rows
from scripts.data.answering import (
    Answering,
    ByOption,
    ConsistentOption,
    Journal,
    RightOption,
    ScoredAnswer,
    Task,
    answer_tasks,
    least_of_right,
    scored_by,
)
from scripts.data.digests import how_answered
from scripts.data.tables import OutOption, check_holds, write
from scripts.ops.command_line import command

Part = Literal["thought", "answer", "whole"]


@dataclass(frozen=True)
class Plan:
    """Which anchors are made, and how."""

    columns: Mapping[str, Part]  # of data.columns -> the part of the right answer that is written there
    language: str = "en"  # in which the question is asked
    question: str = ""  # the column of data.columns that holds the question in that language; empty: as it is
    rounds: tuple[int, ...] = (1, 8, 16, 32)  # answers that are generated one after the other until one is right
    right: float = RIGHT  # from what on an answer is right, see common.diagnostics.solves
    consistent: bool = False  # whether it must be in that language, also without reward.gated
    by: str = ""  # the term that says alone what is right, see scripts.data.answering.scored_by; "": the rewards


@dataclass(frozen=True)
class Anchored:
    """What was found."""

    rows: list[QuestionRow]  # those that can be asked
    anchors: dict[Place, dict[str, str]]  # the texts of the rows that have one, by column
    asked: dict[str, int]  # round -> the questions whose first right answer was in it
    without: Counter[str] = field(default_factory=Counter)  # why rows have none -> how many
    problems: Problems = field(default_factory=Problems)


def parse_columns(texts: Sequence[str]) -> dict[str, Part]:
    """The columns of ``COLUMN=PART`` words.

    Raises:
        FatalError: a word has another form.
    """
    found: dict[str, Part] = {}
    for text in texts:
        column, _, part = text.partition("=")
        if not column or part not in get_args(Part):
            raise FatalError(f"an anchor's column is COLUMN=PART with PART thought, answer or whole, not {text!r}")
        found[column] = cast(Part, part)
    return found


def parse_rounds(text: str) -> tuple[int, ...]:
    """The sizes of the rounds.

    Raises:
        FatalError: they are no positive whole numbers with commas between them.
    """
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise FatalError(f"the rounds are numbers of answers, as 1,8,16,32, not {text!r}")
    return tuple(map(int, words))


def without_columns(config: Config, columns: Mapping[str, Any]) -> Config:
    """The configuration that does not read some further columns, which are yet to be written."""
    kept = {ours: path for ours, path in config.data.columns.items() if ours not in columns}
    return config.model_copy(update={"data": config.data.model_copy(update={"columns": kept})})


def make(config: Config, out: Path, plan: Plan) -> Anchored:
    """Makes the anchors of ``data.train``. Blocks until every question has one or has had all rounds.

    Args:
        out: what is found is kept beside it as it comes, in ``*.answers.jsonl``, from which the same call goes on; what
            could not be asked is listed in ``*.problems.jsonl``.

    Raises:
        FatalError: the data cannot be read, there is no engine, or as of ``answer_tasks``.
    """
    config = scored_by(without_columns(config, plan.columns), plan.by)
    gated = config.reward.is_gated or plan.consistent
    tokenizer, problems, lost = load_tokenizer(config.model.path), Problems(), Counter[str]()
    rows = usable_rows(config, tokenizer, config.data.train, problems)
    if plan.question and plan.question not in config.data.columns:
        raise FatalError(
            f"--question {plan.question}: data.columns names no such column; it has {', '.join(config.data.columns)}"
        )
    tasks, how = [], _how(config, plan)
    for row in rows:
        question = anchor_question(row, plan)
        if question is None:
            lost["no question in that language"] += 1
            reason = f"its column {config.data.columns[plan.question]!r} is empty: it gets no anchor"
            problems.add(row.place, RowError(plan.question, reason, "no anchor"))
        elif config.model.silent_about_language and question.language != plan.language:
            raise FatalError(
                f"{config.model.silent_about_language} does not say in which language an answer is to be, so "
                f"{row.place} cannot be asked for an anchor in {plan.language!r}: name a column with the question in "
                "that language by --question, or ask for languages by another model.prompt_style"
            )
        else:
            tasks.append(Task(row, plan.language, _key(question, how)))
    journal = Journal(out.with_suffix(".answers.jsonl"))

    async def ask(answering: Answering, task: Task) -> None:
        question = anchor_question(task.row, plan)
        assert question is not None, "only rows with a question have a task"
        for number, count in enumerate(plan.rounds):
            answers = await answering(question, plan.language, count, f"{task.key} {number}")
            right = [one for one in answers if solves(one.score, least=plan.right, gated=gated)]
            found = (parts(one, plan, answering.opens_thought) for one in right)
            texts = next((texts for texts in found if all(texts.values())), None)  # an empty text is no anchor
            if texts is not None:
                journal.add(task, round=number, texts=texts)
                return
        journal.add(task, round=None, texts=None)

    languages = list(dict.fromkeys([*config.run.languages, plan.language]))
    what = f"answering the questions in {plan.language} for their anchors"
    try:
        answer_tasks(config, tokenizer, tasks, journal, ask, problems, name="anchors", what=what, languages=languages)
    finally:
        journal.close()
        problems.write(out.with_suffix(PROBLEMS_SUFFIX))
    anchors, asked = dict[Place, dict[str, str]](), dict.fromkeys(map(_round_name, range(len(plan.rounds))), 0)
    for task in tasks:
        entry = journal.entries.get(task.key)
        if entry is None:
            lost["could not be asked"] += 1
        elif entry["texts"] is None:
            lost[f"no right answer in {sum(plan.rounds)}"] += 1
        else:
            anchors[task.row.place] = entry["texts"]
            asked[_round_name(entry["round"])] += 1
    return Anchored(rows, anchors, asked, lost, problems)


def anchor_question(row: QuestionRow, plan: Plan) -> Question | None:
    """The question as it is asked for an anchor; nothing where the row has none in the language."""
    question = as_question(row.place.row, row)
    if not plan.question:
        return question
    text = row.extra.get(plan.question, "").strip()
    return msgspec.structs.replace(question, messages=[Chat("user", text)], language=plan.language) if text else None


def parts(answer: ScoredAnswer, plan: Plan, thinking_opened: bool) -> dict[str, str]:
    """The texts of a right answer by their columns."""
    read = read_answer(answer.text, plan.language, answer.truncated, thinking_opened=thinking_opened)
    texts: dict[Part, str] = {
        "thought": read.thought or read.final,
        "answer": read.final,
        "whole": answer.text.strip(),
    }
    return {column: texts[part] for column, part in plan.columns.items()}


def _how(config: Config, plan: Plan) -> str:
    stricter = {"consistent": True} if plan.consistent and not config.reward.is_gated else {}
    return json.dumps(
        {
            **how_answered(config), "language": plan.language, "rounds": plan.rounds, "right": plan.right,
            "columns": dict(plan.columns), **stricter,
        },
        sort_keys=True,
    )  # fmt: skip


def _key(question: Question, how: str) -> str:
    return hashlib.sha256(b"\n".join([encode(question), how.encode()])).hexdigest()


def _round_name(number: int) -> str:
    return f"round {number + 1}"


def anchored_records(
    source: str, rows: Sequence[QuestionRow], found: Mapping[Place, Mapping[str, str]], columns: Mapping[str, Part]
) -> list[dict[str, Any]]:
    """The records of the rows as the source has them, with the columns of the anchors, null where there is none."""
    wanted = {row.place for row in rows}
    return [
        {**record, **{column: found.get(place, {}).get(column) for column in columns}}
        for place, record in read_records(source)
        if place in wanted and not isinstance(record, Unreadable)
    ]


def told(found: Anchored, plan: Plan) -> str:
    """How many questions have an anchor, and why the others have none, as one line."""
    rounds = ", ".join(
        f"{count} in {name} ({size} answers)"
        for (name, count), size in zip(found.asked.items(), plan.rounds, strict=True)
    )
    lost = "".join(f"; {count} without: {why}" for why, count in found.without.most_common())
    return f"{len(found.anchors)} of {len(found.rows)} questions have an anchor in {plan.language}: {rounds}{lost}"


@command(ValueError, passes_flags_on=True)
def main(
    context: typer.Context,
    *,
    out: OutOption,
    columns: Annotated[
        list[str],
        typer.Option("--write", metavar="COLUMN=PART", help="PART: thought, answer or whole. May be repeated."),
    ],
    language: Annotated[str, typer.Option(help="The strong language.")] = "en",
    question: Annotated[str, typer.Option(help="Column of data.columns that holds the question in it.")] = "",
    rounds: Annotated[str, typer.Option(help="Answers of each round.")] = "1,8,16,32",
    right: RightOption = None,
    consistent: ConsistentOption = False,
    by: ByOption = "",
) -> None:
    config = load(context.args)
    least = least_of_right(scored_by(config, by), right)
    plan = Plan(parse_columns(columns), code_of(language), question, parse_rounds(rounds), least, consistent, by)
    check_holds(out, config.data.train)
    found = make(config, out, plan)
    write(anchored_records(config.data.train, found.rows, found.anchors, plan.columns), out)
    for kind in ("broken", "not measured"):
        for line in found.problems.lines(kind):
            print(f"{kind}: {line}")
    print(told(found, plan))
    named = ", ".join(f"{column} = {column!r}" for column in plan.columns)
    print(f"{out}: {len(found.rows)} questions; a run reads the anchors by data.columns = {{{named}}}")


if __name__ == "__main__":
    main()
