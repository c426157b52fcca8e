"""Makes the examples of a warm start: prompts with answers in random languages, to be taught with scripts.data.sft.

    python -m scripts.data.warm_start_data PROMPTS --teacher MODEL@URL --languages en,zh,ja,... --out warm_start.parquet
    python -m scripts.data.warm_start_data PARALLEL --parallel --languages en,zh,ja,... --out warm_start.parquet

Each prompt gets ``--answers`` answers, each in another language, drawn with the seed. A teacher is asked in that
language; where it answers in another one it is asked again, and in the end the prompt is listed and left out.
PROMPTS are of any form that scripts.data.prepare takes; ``--without FILE`` leaves out those of the training data, which
should not be taught. PARALLEL has the columns id, language, question and answer, where rows of one id mean the same.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from common.endpoint import Failure
from common.languages import code_of
from common.process import FatalError
from common.prompts import add_instruction
from learner.data.problems import Problems, RowError
from learner.data.rows import QuestionRow, Rules, normal_form, read_question_rows
from scripts.data.endpoint import Endpoint, EndpointOption, in_languages
from scripts.data.sources import read
from scripts.data.tables import write
from scripts.ops.command_line import command


def teach(
    sources: Sequence[str],
    teacher: str,
    languages: Sequence[str],
    answers: int,
    prompts: int | None,
    without: str,
    seed: int,
    cache: Path,
) -> list[dict[str, Any]]:
    """Examples whose answers the teacher gave: messages, language, answer.

    Blocks until the teacher has answered everything; what it answered is kept in ``cache``.

    Raises:
        FatalError: a source cannot be read, or the teacher does not answer.
    """
    problems, rng = Problems(), random.Random(seed)
    others = read([without], Rules(), Problems()) if without else []
    known = {normal_form(row.messages) for row in others}
    rows = [row for row in read(sources, Rules(), problems) if normal_form(row.messages) not in known][:prompts]
    wanted = [(row.messages, language) for row in rows for language in rng.sample(languages, answers)]
    talks = [add_instruction(messages, language) for messages, language in wanted]
    said = Endpoint[str](teacher, cache).ask(talks, in_languages([language for _, language in wanted]))
    failed = [one.reason for one in said if isinstance(one, Failure)]
    for reason in failed:
        print(f"left out: {reason}")
    print(f"{len(rows)} prompts ({problems.counts.total()} rows of no use), {len(failed)} answers of no use")
    return [
        {"messages": messages, "language": language, "answer": answer}
        for (messages, language), answer in zip(wanted, said, strict=True)
        if isinstance(answer, str)
    ]


def pair_parallel(
    source: str, languages: Sequence[str], answers: int, prompts: int | None, seed: int
) -> list[dict[str, Any]]:
    """Examples whose answers are rows of the same id in other languages: messages, language, answer.

    Raises:
        FatalError: no row has an id, a known language, a question and an answer. Broken rows are printed.
    """
    rng, by_id = random.Random(seed), defaultdict[str, dict[str, QuestionRow]](dict)
    problems = Problems()
    for row in read_question_rows(source, Rules(), problems):
        if row.id:
            by_id[row.id][row.language] = row
        else:
            problems.add(row.place, RowError("id", "it is missing (null)"))
    for line in problems.lines("broken"):
        print(f"broken: {line}")
    if not by_id:
        raise FatalError(
            f"{source} is no parallel data of id, language, question and answer: "
            f"{next(iter(problems.found), 'it is empty')}"
        )
    made: list[dict[str, Any]] = []
    for known in by_id.values():
        targets = [language for language in languages if language in known]
        for row in known.values():
            for language in rng.sample(targets, min(answers, len(targets))):
                made.append({"messages": row.messages, "language": language, "answer": known[language].reference})
    return made[: prompts and prompts * answers]


@command(ValueError)
def main(
    source: Annotated[list[str], typer.Argument(help="Prompts; with --parallel one parquet file.")],
    *,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    languages: Annotated[str, typer.Option(help="Languages to answer in, separated by commas.")],
    teacher: EndpointOption = "",
    parallel: Annotated[
        bool, typer.Option("--parallel", help="Take the answers from rows of the same id instead of a teacher.")
    ] = False,
    answers: Annotated[int, typer.Option(help="Answers of each prompt, each in another language.")] = 2,
    prompts: Annotated[int | None, typer.Option(help="At most this many prompts; LRPO took 420.")] = None,
    without: Annotated[str, typer.Option(help="Training data, whose prompts are left out.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the languages that are drawn.")] = 0,
) -> None:
    if bool(teacher) == parallel:
        raise FatalError("give either --teacher or --parallel")
    codes = [code_of(name) for name in languages.split(",")]
    if answers > len(codes):
        raise FatalError(f"--answers {answers} in different languages need as many --languages")
    if parallel:
        rows = pair_parallel(source[0], codes, answers, prompts, seed)
    else:
        rows = teach(source, teacher, codes, answers, prompts, without, seed, out.with_suffix(".answers.sqlite"))
    if not rows:
        raise FatalError(f"no example could be made of {', '.join(source)}")
    write(rows, out)
    print(f"{out}: {len(rows)} examples in {len({row['language'] for row in rows})} languages")


if __name__ == "__main__":
    main()
