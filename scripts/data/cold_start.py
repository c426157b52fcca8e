"""Gathers traces of a teacher that names its language, thinks in it and answers, to be taught before RL.

``python -m scripts.data.cold_start --questions train.parquet --url http://HOST/v1 --model NAME --languages en,zh,fr
--each 500 --out traces.parquet`` asks an OpenAI-compatible server, of a strong model or of the policy itself, to go on
from ``<think>`` and a native opening ("Okay", "好的", "D'accord"). A trace is kept when its answer verifies and its
thought stayed in its language. The server must take ``continue_final_message``, as those of SGLang and vLLM do.

A thought in a language for which there is no opening begins with nothing; ``--openings FILE.toml`` gives openings, a
line ``ckb = "باشە. "`` for each language. Answers are kept in ``*.answers.sqlite`` beside ``--out`` as they come, and
the same command goes on from there. Rows that are broken, and questions that the server refuses, are listed in
``*.problems.jsonl`` and left out.

``python -m scripts.data.sft MODEL traces.parquet --prompt-style select --out DIR`` then teaches them.
"""

from __future__ import annotations

import random
import tomllib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from common.answer import read_answer
from common.config import ModelConfig
from common.endpoint import Failure
from common.languages import code_of
from common.process import FatalError
from learner.data.problems import PROBLEMS_SUFFIX, Place, Problems, RowError
from learner.data.rows import QuestionRow, Rules
from reward.gate import LanguageGate
from reward.terms import text as terms
from reward.terms.math import MathVerifier
from scripts.data.endpoint import Endpoint
from scripts.data.prepare import pairs
from scripts.data.sources import read, tell
from scripts.data.tables import OutOption, write
from scripts.ops.command_line import command
from scripts.world.templates import OPENINGS

_CALLS = 32  # questions asked at a time, after which it is counted again what is missing
_PATIENCE = 20  # tries for each wanted trace before a language is given up


class Acceptance:
    """Decides which language to ask for next: those that lack most traces and are rarely kept get most tries.

    A language is drawn with weight (wanted - kept) / rate, where rate = (kept + 1) / (tried + 2): the number of tries
    that it is expected to need.
    """

    def __init__(self, each: int) -> None:
        self.kept, self.tried, self._each = Counter[str](), Counter[str](), each

    def next(self, draw: random.Random, languages: list[str], count: int) -> list[str]:
        """``count`` of these languages; none when all have enough or are given up."""
        open_ = [one for one in languages if self.kept[one] < self._each > self.tried[one] / _PATIENCE]
        weights = [(self._each - self.kept[one]) * (self.tried[one] + 2) / (self.kept[one] + 1) for one in open_]
        return draw.choices(open_, weights, k=count) if open_ else []


def read_openings(path: Path | None) -> dict[str, str]:
    """How a thought begins, by language code: as shipped, and as a TOML file has it, whose keys are languages.

    Raises:
        FatalError: the file cannot be read, is no TOML, or names no language or no text.
    """
    if path is None:
        return OPENINGS
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FatalError(f"cannot read --openings {path}: {error}") from None
    found = dict(OPENINGS)
    for name, opening in given.items():
        if not isinstance(opening, str):
            raise FatalError(f'--openings {path}: {name} is no text, as in ckb = "باشە. "')
        try:
            found[code_of(name)] = opening
        except ValueError as error:
            raise FatalError(f"--openings {path}: {error}") from None
    return found


def gather(
    questions: Sequence[QuestionRow],
    languages: Sequence[str],
    openings: Mapping[str, str],
    acceptance: Acceptance,
    teacher: Endpoint[str],
    verify: Callable[[str, list[str]], float | None],
    header: str,
    seed: int,
    problems: Problems,
) -> list[dict[str, Any]]:
    """The traces that are kept: messages, language, answer. A question comes again only after all others.

    Blocks until every language has enough traces or is given up. Questions that the teacher refuses are added to
    ``problems`` and not asked again, in no language.

    Args:
        openings: how a thought begins in a language; where there is none, with nothing.

    Raises:
        FatalError: the teacher does not answer, or refuses all of the first questions.
    """
    draw, gate = random.Random(seed), LanguageGate()
    waiting = {one: deque(draw.sample(list(questions), len(questions))) for one in languages}
    begun = {one: f"<think>{openings.get(one, '')}" for one in languages}
    tries, refused = Counter[tuple[Place, str]](), dict[Place, str]()
    kept: list[dict[str, Any]] = []
    while asked := acceptance.next(draw, [one for one in languages if waiting[one]], _CALLS):
        drawn = [(waiting[one].popleft(), one) for one in asked if waiting[one]]
        tried = [(question, one) for question, one in drawn if question.place not in refused]
        talks = [[*question.messages, {"role": "assistant", "content": begun[one]}] for question, one in tried]
        # The try and the seed tell answers to the same question apart, so that an interrupted command gets each again.
        samples = [f"seed {seed}, try {tries[question.place, one]}" for question, one in tried]
        tries.update((question.place, one) for question, one in tried)
        for (question, language), said in zip(
            tried, teacher.ask(talks, lambda _, answer: answer, samples), strict=True
        ):
            if isinstance(said, Failure):
                if question.place not in refused:
                    problems.add(question.place, RowError("", f"the teacher refuses it: {said}", "refused"))
                refused[question.place] = said.reason
                continue
            text = begun[language] + said
            answer = read_answer(text, language)
            accepted = question.accepted or [question.reference]
            good = (
                gate.judge([answer.thought], [language])[0].matches
                and bool(answer.final)
                and verify(answer.final, accepted) == 1
            )
            acceptance.tried[language] += 1
            acceptance.kept[language] += good
            if good:
                named = header.replace("{code}", language)
                kept.append({"messages": question.messages, "language": language, "answer": named + text})
            else:
                waiting[language].append(question)
        if refused and not acceptance.tried:
            place, reason = next(iter(refused.items()))
            raise FatalError(
                f"{teacher.model} refuses all of the first {len(tried)} questions. It has to take "
                f"continue_final_message, as the servers of SGLang and vLLM do. {place}: {reason}"
            )
    return kept


@command(ValueError)
def main(
    *,
    questions: Annotated[str, typer.Option(help="Questions, in any form that scripts.data.prepare takes.")],
    url: Annotated[str, typer.Option(help="Address of an OpenAI-compatible server, up to /v1.")],
    model: Annotated[str, typer.Option(help="Name of the model at the server.")],
    languages: Annotated[str, typer.Option(help="Codes or names, separated by commas.")],
    openings: Annotated[
        Path | None, typer.Option(help="TOML file of openings by language, beside those shipped or in their place.")
    ] = None,
    columns: Annotated[str, typer.Option(help="OURS=THEIRS,... of --questions, as for scripts.data.prepare.")] = "",
    term: Annotated[Literal["math", "exact", "contains"], typer.Option(help="What verifies an answer.")] = "math",
    each: Annotated[int, typer.Option(min=1, help="Traces that are wanted in each language.")] = 500,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature of the teacher.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest trace.")] = 4096,
    header: Annotated[str, typer.Option(help="As model.header.")] = ModelConfig().header,
    seed: Annotated[int, typer.Option(min=0, help="Seed of questions and languages.")] = 0,
    out: OutOption,
) -> None:
    codes = list(dict.fromkeys(code_of(name) for name in languages.split(",")))
    begins = read_openings(openings)
    if without := [code for code in codes if code not in begins]:
        print(f"without an opening, a thought begins with nothing in {', '.join(without)}: --openings gives some")
    problems = Problems()
    rows = read([questions], Rules(pairs(columns), needs_language=False), problems)
    if not rows:
        raise FatalError(f"{questions} has no good row: {next(iter(problems.found), 'it is empty')}")
    verify = {"exact": terms.exact, "contains": terms.contains}.get(term) or MathVerifier()
    teacher = Endpoint[str](
        f"{model}@{url}", out.with_suffix(".answers.sqlite"), calls=_CALLS, timeout_s=600, temperature=temperature,
        max_tokens=max_tokens, continue_final_message=True, add_generation_prompt=False, separate_reasoning=False,
        thoughts=True,
    )  # fmt: skip
    acceptance = Acceptance(each)
    try:
        kept = gather(rows, codes, begins, acceptance, teacher, verify, header, seed, problems)
    finally:
        tell(problems, out.with_suffix(PROBLEMS_SUFFIX))
    for one in codes:
        print(f"{one}: kept {acceptance.kept[one]} of {acceptance.tried[one]} tries, {each} wanted")
    if not kept:
        raise FatalError(f"no trace was right and in its language; {out} is not written")
    write(kept, out)


if __name__ == "__main__":
    main()
