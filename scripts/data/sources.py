"""Questions of several sources, as scripts.data.prepare and the other commands take them, with their languages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from common.process import FatalError
from learner.data.problems import Problems, RowError
from learner.data.rows import QuestionRow, Rules, drop_repeated, read_question_rows
from reward.gate import LanguageGate


def read(
    sources: Sequence[str],
    rules: Rules,
    problems: Problems,
    length: Callable[[str], int] = len,
    longest: int = 100_000,
) -> list[QuestionRow]:
    """The questions of all sources, in order; the other rows are added to ``problems``.

    Args:
        rules: of all sources; a column that it names may be missing in some of them, and not in all.
        length: measures a prompt, in characters or tokens.
        longest: the longest prompt that is taken, by ``length``.

    Raises:
        FatalError: a source is neither a readable file nor a data set of the hub, or no row of any source has a column
            that ``rules`` names.
    """
    rows: list[QuestionRow] = []
    not_seen: set[str] | None = None
    for source in sources:
        missing: set[str] = set()
        rows += read_question_rows(source, rules, problems, missing)
        not_seen = missing if not_seen is None else not_seen & missing
    if not_seen:
        raise FatalError(f"no row of {', '.join(sources)} has a column {min(not_seen)!r}")
    fitting = []
    for row in rows:
        if (size := length(row.prompt)) > longest:
            reason = f"the prompt is {size} long, --max-prompt is {longest}"
            problems.add(row.place, RowError("question", reason, "too long"))
        else:
            fitting.append(row)
    named = _detect_languages(fitting, problems) if rules.needs_language else fitting
    return drop_repeated(named, problems, by_id=True)


def read_whole(source: str, rules: Rules) -> list[QuestionRow]:
    """Every question of a source, in order, also long ones and those that are there twice, as a benchmark is scored.

    Of several answers to a question that are rated, as CARE has them, the best one is the reference.

    Raises:
        FatalError: the source cannot be read, a row of it is no question, or there is none.
    """
    problems, missing = Problems(), set[str]()
    rows = list(read_question_rows(source, rules, problems, missing))
    if rows and missing:
        raise FatalError(f"no row of {source} has a column {min(missing)!r}")
    rows = _detect_languages(rows, problems) if rules.needs_language else rows
    if broken := problems.of("broken"):
        listed = "; ".join(problems.lines("broken"))
        raise FatalError(f"{source} is read as a whole or not at all, and {len(broken)} rows are broken: {listed}")
    if not rows:
        raise FatalError(f"{source} has no question: {next(iter(problems.found), 'it is empty')}")
    best = {row.place for row in drop_repeated([row for row in rows if row.rating is not None], Problems())}
    return [row for row in rows if row.rating is None or row.place in best]


def tell(problems: Problems, path: Path) -> None:
    """Prints the first 20 problems of each kind, and writes all of them to a file, which is not there without any."""
    if not problems.found:
        path.unlink(missing_ok=True)  # that of an earlier call
        return
    for kind in problems.counts:
        for line in problems.lines(kind):
            print(f"{kind}: {line}")
    problems.write(path)
    print(f"{path} lists all: " + ", ".join(f"{count} {kind}" for kind, count in problems.counts.most_common()))


def _detect_languages(rows: list[QuestionRow], problems: Problems) -> list[QuestionRow]:
    """The rows with their languages. CARE names none: the language is detected from the question."""
    unnamed = [row.question for row in rows if not row.language]
    detected = iter(LanguageGate().detect(unnamed) if unnamed else ())
    complete = [row if row.language else replace(row, language=next(detected)) for row in rows]
    for row in complete:
        if not row.language:
            reason = "the language could not be detected: name it with --language"
            problems.add(row.place, RowError("language", reason))
    return [row for row in complete if row.language]
