"""Makes the examples of a warm start: prompts with answers in random languages, to be taught with scripts.data.sft.

    python -m scripts.data.warm_start_data PROMPTS --teacher MODEL@URL --languages en,zh,ja,... --out warm_start.parquet
    python -m scripts.data.warm_start_data PARALLEL --parallel --languages en,zh,ja,... --out warm_start.parquet

Each prompt gets ``--answers`` answers, each in another language, drawn with the seed. A teacher is asked in that
language; where it answers in another one it is asked again, and in the end the prompt is listed and left out.
PROMPTS are of any form that scripts.data.prepare takes, and need no answers. PARALLEL has the columns id, language,
question and answer, where rows of one id mean the same. ``--columns`` names other columns.

``--without FILE`` leaves out the questions of the training data, which should not be taught, of PARALLEL with all rows
of their ids; ``--without-columns`` names its columns. Rows that are not used are listed in ``*.problems.jsonl`` beside
``--out``.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from common.endpoint import Failure
from common.languages import code_of, display_name
from common.process import FatalError
from common.prompts import add_instruction
from learner.data.problems import PROBLEMS_SUFFIX, Problems, RowError
from learner.data.rows import QuestionRow, Rules, normal_form, read_question_rows
from scripts.data.endpoint import Endpoint, EndpointOption, in_languages
from scripts.data.prepare import pairs
from scripts.data.sources import read, tell
from scripts.data.tables import OutOption, write
from scripts.ops.command_line import command


def questions_of(source: str, rules: Rules) -> set[str]:
    """The normal forms of the questions of a source.

    Raises:
        FatalError: it cannot be read, or the question of a row cannot: then nobody knows whether it is among others.
    """
    problems, missing = Problems(), set[str]()
    rules = replace(rules, needs_language=False, needs_answer=False)
    found = {normal_form(row.messages) for row in read_question_rows(source, rules, problems, missing)}
    if missing:
        raise FatalError(f"--without {source}: no row has a column {min(missing)!r}")
    if broken := problems.of("broken"):
        raise FatalError(
            f"--without {source}: the questions of {len(broken)} rows cannot be read, and so not be left out. Name "
            f"their column with --without-columns question=NAME, or mend them. {broken[0]}"
        )
    if not found:
        raise FatalError(f"--without {source} holds no questions")
    return found


def teach(
    sources: Sequence[str],
    rules: Rules,
    teacher: str,
    languages: Sequence[str],
    answers: int,
    prompts: int | None,
    known: Collection[str],
    seed: int,
    cache: Path,
    problems: Problems,
) -> list[dict[str, Any]]:
    """Examples whose answers the teacher gave: messages, language, answer.

    Blocks until the teacher has answered everything; what it answered is kept in ``cache``.

    Args:
        known: the normal forms of questions that are left out.
        problems: gets the rows that are not used, and what the teacher did not answer.

    Raises:
        FatalError: a source cannot be read, or the teacher does not answer.
    """
    rng, every = random.Random(seed), read(sources, replace(rules, needs_answer=False), problems)
    rows = [row for row in every if normal_form(row.messages) not in known]
    print(f"{len(every)} prompts; {len(every) - len(rows)} are in --without and left out")
    wanted = [(row, language) for row in rows[:prompts] for language in rng.sample(languages, answers)]
    talks = [add_instruction(row.messages, language) for row, language in wanted]
    said = Endpoint[str](teacher, cache).ask(talks, in_languages([language for _, language in wanted]))
    made = []
    for (row, language), answer in zip(wanted, said, strict=True):
        if isinstance(answer, Failure):
            reason = f"no answer in {display_name(language)}: {answer}"
            problems.add(row.place, RowError("", reason, "not answered"))
        else:
            made.append({"messages": row.messages, "language": language, "answer": answer})
    return made


def pair_parallel(
    sources: Sequence[str],
    rules: Rules,
    languages: Sequence[str],
    answers: int,
    prompts: int | None,
    known: Collection[str],
    seed: int,
    problems: Problems,
) -> list[dict[str, Any]]:
    """Examples whose answers are rows of the same id in other languages: messages, language, answer.

    Args:
        known: the normal forms of questions that are left out, with all rows of their ids.
        problems: gets the rows that are not used.

    Raises:
        FatalError: no row has an id, a known language, a question and an answer.
    """
    rng, by_id = random.Random(seed), defaultdict[str, dict[str, QuestionRow]](dict)
    for source in sources:
        for row in read_question_rows(source, rules, problems):
            first = by_id[row.id].setdefault(row.language, row) if row.id else None
            if first is None:
                problems.add(row.place, RowError("id", "it is missing (null)"))
            elif first is not row:
                problems.add(
                    row.place, RowError("id", f"{first.place} has the same id {row.id!r} in the same language")
                )
    if not by_id:
        raise FatalError(
            f"{', '.join(sources)}: no parallel data of id, language, question and answer: "
            f"{next(iter(problems.found), 'it is empty')}"
        )
    free = [rows for rows in by_id.values() if not any(normal_form(one.messages) in known for one in rows.values())]
    print(f"{len(by_id)} ids; {len(by_id) - len(free)} have a question that is in --without and are left out")
    made: list[dict[str, Any]] = []
    left = prompts
    for rows in free:
        targets = [language for language in languages if language in rows]
        for row in rows.values() if targets else ():
            if left == 0:
                return made
            left = None if left is None else left - 1
            for language in rng.sample(targets, min(answers, len(targets))):
                made.append({"messages": row.messages, "language": language, "answer": rows[language].reference})
    return made


@command(ValueError)
def main(
    source: Annotated[list[str], typer.Argument(help="Prompts; with --parallel rows of the same ids.")],
    *,
    out: OutOption,
    languages: Annotated[str, typer.Option(help="Languages to answer in, separated by commas.")],
    teacher: EndpointOption = "",
    parallel: Annotated[
        bool, typer.Option("--parallel", help="Take the answers from rows of the same id instead of a teacher.")
    ] = False,
    answers: Annotated[int, typer.Option(min=1, help="Answers of each prompt, each in another language.")] = 2,
    prompts: Annotated[int | None, typer.Option(min=1, help="At most this many prompts; LRPO took 420.")] = None,
    columns: Annotated[str, typer.Option(help="OURS=THEIRS,... as for scripts.data.prepare.")] = "",
    language: Annotated[str, typer.Option(help="Language of the rows that do not name one.")] = "",
    without: Annotated[str, typer.Option(help="Training data, whose questions are left out.")] = "",
    without_columns: Annotated[str, typer.Option(help="OURS=THEIRS,... of --without.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the languages that are drawn.")] = 0,
) -> None:
    if bool(teacher) == parallel:
        raise FatalError("give either --teacher or --parallel")
    codes = list(dict.fromkeys(code_of(name) for name in languages.split(",")))
    if answers > len(codes):
        raise FatalError(f"--answers {answers} in different languages need as many --languages")
    rules, problems = Rules(pairs(columns), language), Problems()
    known = questions_of(without, Rules(pairs(without_columns))) if without else set[str]()
    try:
        if parallel:
            rows = pair_parallel(source, rules, codes, answers, prompts, known, seed, problems)
        else:
            cache = out.with_suffix(".answers.sqlite")
            rows = teach(source, rules, teacher, codes, answers, prompts, known, seed, cache, problems)
    finally:
        tell(problems, out.with_suffix(PROBLEMS_SUFFIX))
    if not rows:
        raise FatalError(f"no example could be made of {', '.join(source)}")
    write(rows, out)
    print(f"{out}: {len(rows)} examples in {len({row['language'] for row in rows})} languages")


if __name__ == "__main__":
    main()
