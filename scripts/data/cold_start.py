"""Gathers traces of a teacher that names its language, thinks in it and answers, to be taught before RL.

``python -m scripts.data.cold_start --questions train.parquet --url http://HOST/v1 --model NAME --languages en,zh,fr
--each 500 --out traces.parquet`` asks an OpenAI-compatible server, of a strong model or of the policy itself, to go on
from ``<think>`` and a native opening ("Okay", "好的", "D'accord"). A trace is kept when its answer verifies and its
thought stayed in its language. The server must take ``continue_final_message``, as those of SGLang and vLLM do.

``python -m scripts.data.sft MODEL traces.parquet --prompt-style select --out DIR`` then teaches them.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from common.answer import read_answer
from common.config import ModelConfig
from common.endpoint import Failure
from common.process import FatalError
from learner.data.problems import Problems
from learner.data.rows import QuestionRow, Rules
from reward.gate import LanguageGate
from reward.terms import text as terms
from reward.terms.math import MathVerifier
from scripts.data.endpoint import Endpoint
from scripts.data.sources import read
from scripts.data.tables import write
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


def gather(
    questions: list[QuestionRow],
    languages: list[str],
    acceptance: Acceptance,
    teacher: Endpoint[str],
    verify: Callable[[str, list[str]], float | None],
    header: str,
    seed: int,
) -> list[dict[str, Any]]:
    """The traces that are kept: messages, language, answer. A question comes again only after all others.

    Blocks until every language has enough traces or is given up.

    Raises:
        FatalError: the teacher does not answer.
    """
    draw, gate = random.Random(seed), LanguageGate()
    waiting = {one: deque(draw.sample(questions, len(questions))) for one in languages}
    begun = {one: {"role": "assistant", "content": f"<think>{OPENINGS[one]}"} for one in languages}
    kept: list[dict[str, Any]] = []
    while asked := acceptance.next(draw, [one for one in languages if waiting[one]], _CALLS):
        pairs = [(waiting[one].popleft(), one) for one in asked if waiting[one]]
        talks = [[*question.messages, begun[language]] for question, language in pairs]
        for (question, language), said in zip(pairs, teacher.ask(talks, lambda _, answer: answer), strict=True):
            if isinstance(said, Failure):
                raise FatalError(f"the teacher refuses a question: {said}")
            text = f"<think>{OPENINGS[language]}{said}"
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
    return kept


@command()
def main(
    *,
    questions: Annotated[str, typer.Option(help="Questions, in any form that scripts.data.prepare takes.")],
    url: Annotated[str, typer.Option(help="Address of an OpenAI-compatible server, up to /v1.")],
    model: Annotated[str, typer.Option(help="Name of the model at the server.")],
    languages: Annotated[str, typer.Option(help="Codes, separated by commas.")],
    term: Annotated[Literal["math", "exact", "contains"], typer.Option(help="What verifies an answer.")] = "math",
    each: Annotated[int, typer.Option(help="Traces that are wanted in each language.")] = 500,
    temperature: Annotated[float, typer.Option(help="Sampling temperature of the teacher.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest trace.")] = 4096,
    header: Annotated[str, typer.Option(help="As model.header.")] = ModelConfig().header,
    seed: Annotated[int, typer.Option(help="Seed of questions and languages.")] = 0,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
) -> None:
    codes = languages.split(",")
    if unknown := set(codes) - OPENINGS.keys():
        raise FatalError(f"no opening for {', '.join(unknown)} in scripts/world/templates.py: add it")
    problems = Problems()
    rows = read([questions], Rules(needs_language=False), problems)
    for line in problems.lines("broken"):
        print(f"broken: {line}")
    if not rows:
        raise FatalError(f"{questions} has no good row")
    verify = {"exact": terms.exact, "contains": terms.contains}.get(term) or MathVerifier()
    teacher = Endpoint[str](
        f"{model}@{url}", calls=_CALLS, timeout_s=600, temperature=temperature, max_tokens=max_tokens,
        continue_final_message=True, add_generation_prompt=False, separate_reasoning=False,
    )  # fmt: skip
    acceptance = Acceptance(each)
    write(gather(rows, codes, acceptance, teacher, verify, header, seed), out)
    for one in codes:
        print(f"{one}: kept {acceptance.kept[one]} of {acceptance.tried[one]} tries, {each} wanted")


if __name__ == "__main__":
    main()
