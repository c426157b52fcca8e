"""Teaches a model to name its language, think in it and answer, before RL: the traces of a teacher that show it.

``python -m scripts.data.cold_start --questions train.parquet --url http://HOST/v1 --model NAME --languages en,zh,fr
--each 500 --out traces.parquet`` asks an OpenAI-compatible server, of a strong model or of the policy itself, to go on
from ``<think>`` and a native opening ("Okay", "好的", "D'accord"). A trace is kept when its answer verifies and its
thought stayed in its language. The server must take ``continue_final_message``, as those of SGLang and vLLM do.

``python -m scripts.data.sft MODEL traces.parquet --prompt-style select --out DIR`` then teaches them.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, deque
from pathlib import Path
from typing import Any

from common.config import ModelConfig
from common.process import FatalError
from learner.work.questions import read_table
from reward.answer import split_thinking
from reward.gate import LanguageGate
from reward.terms import text as terms
from reward.terms.math import MathVerifier
from scripts.command import plain_errors
from scripts.data.endpoint import Endpoint, Failure
from scripts.data.prepare import write
from scripts.world.templates import OPENINGS

_CALLS = 32  # at a time; after these it is looked again at what is missing
_PATIENCE = 20  # tries for each trace that is wanted, before a language is given up


class Acceptance:
    """Which language to ask for next: those that lack most and are rarely kept get most tries.

    Tries are drawn with weight (wanted - kept) / rate, rate = (kept + 1) / (tried + 2): as many as each is expected to
    need.
    """

    def __init__(self, each: int) -> None:
        self.kept, self.tried, self._each = Counter[str](), Counter[str](), each

    def next(self, draw: random.Random, languages: list[str], count: int) -> list[str]:
        """``count`` of these languages; none when all have enough or are given up."""
        open_ = [one for one in languages if self.kept[one] < self._each > self.tried[one] / _PATIENCE]
        weights = [(self._each - self.kept[one]) * (self.tried[one] + 2) / (self.kept[one] + 1) for one in open_]
        return draw.choices(open_, weights, k=count) if open_ else []


def gather(args: argparse.Namespace, acceptance: Acceptance) -> list[dict[str, Any]]:
    """Kept traces: messages, language, answer. A question comes again only after all others."""
    questions = read_table(args.questions).to_pylist()
    if not questions:
        raise FatalError(f"{args.questions} has no rows")
    draw, gate = random.Random(args.seed), LanguageGate()
    verify = {"exact": terms.exact, "contains": terms.contains}.get(args.term) or MathVerifier()
    teacher = Endpoint[str](
        f"{args.model}@{args.url}", calls=_CALLS, timeout_s=600, temperature=args.temperature,
        max_tokens=args.max_tokens, continue_final_message=True, add_generation_prompt=False, separate_reasoning=False,
    )  # fmt: skip
    waiting = {one: deque(draw.sample(questions, len(questions))) for one in args.languages}
    begun = {one: {"role": "assistant", "content": f"<think>{OPENINGS[one]}"} for one in args.languages}
    kept: list[dict[str, Any]] = []
    while asked := acceptance.next(draw, [one for one in args.languages if waiting[one]], _CALLS):
        pairs = [(waiting[one].popleft(), one) for one in asked if waiting[one]]
        talks = [[*question["prompt"], begun[language]] for question, language in pairs]
        for (question, language), said in zip(pairs, teacher.ask(talks, lambda _, answer: answer), strict=True):
            if isinstance(said, Failure):
                raise FatalError(f"{args.url} does not answer: {said}")
            text = f"<think>{OPENINGS[language]}{said}"
            thinking, answer = split_thinking(text)
            accepted = question["reward_model"].get("accepted") or [question["reward_model"]["ground_truth"]]
            good = gate.detect([thinking]) == [language] and bool(answer) and verify(answer, accepted) == 1
            acceptance.tried[language] += 1
            acceptance.kept[language] += good
            if good:
                header = args.header.replace("{code}", language)
                kept.append({"messages": question["prompt"], "language": language, "answer": header + text})
            else:
                waiting[language].append(question)
    return kept


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.data.cold_start", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--questions", required=True, help="rows as learner/work/questions.py reads them")
    parser.add_argument("--url", required=True, help="of an OpenAI-compatible server, up to /v1")
    parser.add_argument("--model", required=True, help="name at the server")
    parser.add_argument("--languages", type=lambda text: text.split(","), required=True, help="codes, apart by commas")
    parser.add_argument("--term", choices=("math", "exact", "contains"), default="math", help="verifies an answer")
    parser.add_argument("--each", type=int, default=500, help="traces wanted in a language")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=4096)
    parser.add_argument("--header", default=ModelConfig().header)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    with plain_errors():
        if unknown := set(args.languages) - OPENINGS.keys():
            raise FatalError(f"no opening for {', '.join(unknown)} in scripts/world/templates.py: add it")
        acceptance = Acceptance(args.each)
        write(gather(args, acceptance), args.out)
    for one in args.languages:
        print(f"{one}: kept {acceptance.kept[one]} of {acceptance.tried[one]} tries, {args.each} wanted")


if __name__ == "__main__":
    main()
