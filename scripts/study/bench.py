"""Scores a model on a public multilingual benchmark, as published and as it should be, with its language diagnostics.

    lrpo bench mmath MODEL --data MMATH/mmath --out runs/mmath.json [--languages de,fr] [--samples 4]

NAME is one of mmath, polymath, mgsm, mgsm-rev2, msvamp, global-mmlu-lite, include-lite, mclm. --data is a local
directory or file in the published layout, or the name of the data set on the hub. MODEL is a run directory, a Hugging
Face directory or hub name, for which an engine is started, or NAME@URL of an engine that is already up.

Every question is asked --samples times, in its language; the engine answers many at a time. The table has, for each
scoring, the mean with its 95% interval (a bootstrap over questions, a question and its translations together), pass@k
by the unbiased estimator, and by language Acc, LC, LC&Acc, LCPR and code switching, by the detector that it names.
--out has all of it, and the file beside it every response. What was answered is kept: the same command goes on where it
was interrupted.

docs/benchmarks.md has for each benchmark where its rows are, how it is asked, and how it is scored.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from common import diagnostics
from common.answer import read_answer
from common.config import RewardConfig
from common.diagnostics import Sample
from common.endpoint import Failure
from common.languages import code_of
from common.process import FatalError
from common.progress import Activity
from learner.data.rows import QuestionRow
from reward.detectors import Detector, DetectorName, diagnose, make_detector
from reward.gate import ComplianceGate
from scripts.ops.command_line import command
from scripts.study.benchmarks.consistency import published_consistency
from scripts.study.benchmarks.letters import LetterQuestion, SeveralTokens, letter_questions, likeliest
from scripts.study.benchmarks.prompts import HARNESS_PROMPTS, prompt, read_templates
from scripts.study.benchmarks.rows import BenchmarkRow
from scripts.study.benchmarks.scoring import (
    BENCHMARKS,
    LIKELIHOOD,
    OURS,
    Benchmark,
    Response,
    Stratum,
    Verifier,
    weighted_mean,
)
from scripts.study.served_model import Asking, answers, cache_file, served, text_of, told_styles

_TIMEOUT_S = 3600.0  # for one response, which may have tens of thousands of tokens
_CHARACTERS_PER_TOKEN = 4  # where no tokenizer is known, as AdaMame counts
_DIAGNOSED = 256  # responses at a time: a detector holds the vectors of all words that it is given
_LETTERS = f"as published: {LIKELIHOOD}"
_SHOWN = ("accuracy", "lc", "lc_accuracy", "lc_thought", "lc_answer", "lcpr_thought", "lcpr_answer",
          "switching_thought", "switching_answer", "tokens")  # fmt: skip


def first_of_each(rows: Sequence[BenchmarkRow], limit: int | None) -> list[BenchmarkRow]:
    """The first questions of each language and group."""
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for row in rows:
        seen[row.stratum] += 1
        if limit is None or seen[row.stratum] <= limit:
            kept.append(row)
    return kept


def cut(row: BenchmarkRow, raw: str, opened: bool) -> Response:
    return Response(row, raw, read_answer(raw, row.language, thinking_opened=opened))


def as_samples(responses: Sequence[Response], detector: Detector, tokens: Sequence[int]) -> list[Sample]:
    """The language of each response's parts; whether it is right is not told here."""
    texts = [one.answer for one in responses]
    chunks = [texts[start : start + _DIAGNOSED] for start in range(0, len(texts), _DIAGNOSED)]
    parts = [pair for chunk in chunks for pair in diagnose(detector, chunk)]
    return [Sample(thought, final, None, count) for (thought, final), count in zip(parts, tokens, strict=True)]


def summarise(
    benchmark: Benchmark,
    rows: Sequence[BenchmarkRow],
    scores: Mapping[str, Sequence[Sequence[float]]],
    samples: Sequence[Sequence[Sample]],
    seed: int,
    of_letters: Collection[str] = (),
) -> dict[str, Any]:
    """All figures of a benchmark.

    Args:
        scores: scoring -> [questions][responses] 0 or 1.
        samples: [questions][responses].
        of_letters: scorings of another output than the responses, which say nothing of the languages of that; by
            language they have the accuracy alone.

    Returns:
        scoring -> ``means`` (name -> mean, low, high), ``pass@k`` (the same), ``groups`` (mean by group), and
        ``languages`` (language -> the figures of ``common.diagnostics.summarise``); shares, not percentages.
    """
    strata = Counter(row.stratum for row in rows)
    weights = {name: weigh(strata) for name, weigh in benchmark.means.items()}
    headline = next(iter(weights.values()))
    found: dict[str, Any] = {}
    for scoring, by_question in scores.items():
        generator = np.random.default_rng(seed)

        def by_stratum(values: Sequence[float]) -> dict[tuple[str, str], Stratum]:
            gathered: defaultdict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
            for row, value in zip(rows, values, strict=True):
                gathered[row.stratum].append((value, row.id))
            return {
                key: Stratum(np.array([value for value, _ in some], np.float64), [id for _, id in some])
                for key, some in gathered.items()
            }

        means = by_stratum([float(np.mean(some)) for some in by_question])
        n = min(map(len, by_question))
        powers = [2**exponent for exponent in range(n.bit_length())]
        chance = {
            k: by_stratum([diagnostics.pass_at_k(len(some), round(sum(some)), k) for some in by_question])
            for k in powers
        }
        groups = sorted({row.group for row in rows if row.group})
        judged: defaultdict[str, list[Sample]] = defaultdict(list)
        for row, some, values in zip(rows, samples, by_question, strict=True):
            if scoring not in of_letters:
                judged[row.stratum[0]] += [replace(one, right=v >= 0.5) for one, v in zip(some, values, strict=True)]
        found[scoring] = {
            "means": {name: weighted_mean(means, one, generator) for name, one in weights.items()},
            "pass@k": {k: weighted_mean(values, headline, generator) for k, values in chance.items()},
            "groups": {
                group: float(np.concatenate([some.values for key, some in means.items() if key[1] == group]).mean())
                for group in groups
            },
            "languages": {language: diagnostics.summarise(some) for language, some in sorted(judged.items())}
            if scoring not in of_letters
            else _accuracies(means),
        }
    return found


def _accuracies(means: Mapping[tuple[str, str], Stratum]) -> dict[str, dict[str, float]]:
    """The mean over the questions of each language, of whatever group."""
    by_language: defaultdict[str, list[float]] = defaultdict(list)
    for (language, _), one in means.items():
        by_language[language] += one.values.tolist()
    return {language: {"accuracy": float(np.mean(some))} for language, some in sorted(by_language.items())}


def table(name: str, model: str, detector: str, found: Mapping[str, Any]) -> str:
    """The figures for people, in percent."""
    size = f"{found['questions']} questions, {found['samples']} responses each"
    lines = [f"{name}: {model}, {size}, {told_styles(found['prompt_style'])}"]
    for scoring, one in found["scorings"].items():
        lines.append(f"\n{scoring}")
        for what, (mean, low, high) in one["means"].items():
            lines.append(f"  mean over {what:<22} {100 * mean:6.2f} [{100 * low:.2f}, {100 * high:.2f}]")
        for k, (mean, low, high) in one["pass@k"].items():
            lines.append(f"  pass@{k:<27} {100 * mean:6.2f} [{100 * low:.2f}, {100 * high:.2f}]")
        lines += [f"  {group:<32} {100 * mean:6.2f}" for group, mean in one["groups"].items()]
    for what, value in found["published_consistency"].items():
        lines.append(f"{what:<40} {100 * value:6.2f}")
    first = found["scorings"][OURS]["languages"]
    shown = [figure for figure in _SHOWN if any(figure in one for one in first.values())]
    lines.append(f"\nby language, scored by {OURS!r}, detector {detector}; percent, and tokens")
    lines.append("  " + " ".join(f"{figure:>{max(9, len(figure))}}" for figure in ["language", *shown]))
    for language, one in first.items():
        cells = []
        for figure in shown:
            value = one.get(figure)
            text = "-" if value is None else f"{value:.0f}" if figure == "tokens" else f"{100 * value:.2f}"
            cells.append(f"{text:>{max(9, len(figure))}}")
        lines.append(f"  {language:>9} " + " ".join(cells))
    return "\n".join(lines)


def _letter_questions(name: str, rows: Sequence[BenchmarkRow], ask: Asking) -> list[LetterQuestion]:
    """The questions whose letters are compared; none where the benchmark has no options, or the letters cannot be."""
    form = HARNESS_PROMPTS.get(name)
    if form is None or ask.tokenizer is None:
        return []
    try:
        return letter_questions(rows, ask.tokenizer, form)
    except SeveralTokens as error:
        print(
            f"{_LETTERS} is left out: {error}, where one is needed; lrpo evaluate --lm-eval scores such a model on its "
            "weights",
            file=sys.stderr,
        )
        return []


@command(ValueError, OSError)
def main(
    name: Annotated[str, typer.Argument(metavar="NAME", help=", ".join(BENCHMARKS))],
    model: Annotated[str, typer.Argument(help="Run, Hugging Face directory or hub name, or NAME@URL.")],
    *,
    data: Annotated[str, typer.Option(metavar="PATH", help="File or directory of its rows, or owner/name on the hub.")],
    out: Annotated[Path, typer.Option(help="JSON file to write; responses and the engine's log go beside it.")],
    languages: Annotated[str, typer.Option(help="CODE,... of the questions; all unless given.")] = "",
    samples: Annotated[
        int | None, typer.Option(min=1, help="Responses to a question; the benchmark's unless given.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="The benchmark's unless given; 0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1, help="The benchmark's unless given.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest response; the benchmark's unless given.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each language and group.")] = None,
    detector: Annotated[DetectorName, typer.Option(help="Tells the languages of thought and answer.")] = "gate",
    prompts: Annotated[
        Path | None, typer.Option(help="JSON of language: template with {question}; ours unless given.")
    ] = None,
    prompt_style: Annotated[
        Literal["auto", "tag", "system", "plain"],
        typer.Option(help="How the language is asked for, as of lrpo evaluate."),
    ] = "auto",
    opens_thought: Annotated[
        bool, typer.Option(help="Prompts end with <think>; of a model that is no NAME@URL the template tells it.")
    ] = False,
    calls: Annotated[int, typer.Option(min=1, help="Questions that are asked at a time.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the first response's sampling, and of the bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of the table.")] = False,
) -> None:
    if name not in BENCHMARKS:
        raise FatalError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    benchmark, codes = BENCHMARKS[name], [code_of(one) for one in languages.split(",") if one]
    rows = first_of_each(benchmark.read(data, codes), limit)
    templates, n = read_templates(prompts), samples or benchmark.samples
    heat = benchmark.temperature if temperature is None else temperature
    if heat == 0 and n > 1:
        raise FatalError(f"{n} greedy responses are one and the same: set --samples 1, or a --temperature above 0")
    own = Path(model) / "model"
    weights = str(own) if (own / "config.json").exists() else model
    # What cannot be had ends the command here, and not after hours of answering.
    tells = make_detector(detector, ComplianceGate(RewardConfig()), {row.language for row in rows} | {"en"})
    ask = Asking(prompt_style, weights, own.parent)
    letters = _letter_questions(name, rows, ask)
    sampling = {"temperature": heat, "top_p": benchmark.top_p if top_p is None else top_p}
    longest = max_tokens or benchmark.max_tokens
    asked = [
        QuestionRow(
            [{"role": "user", "content": prompt(row, templates)}], row.answer, row.language, [], [], name, row.place
        )
        for row in rows
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    cache = cache_file(out, weights)
    limits = ask.limits(asked, longest)
    with served(weights, own.parent, out.with_suffix(".engine.log")) as endpoint:
        chosen: list[str] = []
        if letters:
            with Activity("bench", "comparing the letters"):
                chosen = likeliest(letters, endpoint, calls)
        said: list[list[str | Failure]] = []
        with Activity("bench", "answering the questions", detail=lambda: f"response {len(said) + 1} of {n} to each"):
            while len(said) < n:
                more: dict[str, Any] = {**sampling, "seed": seed + len(said)}
                said.append(answers(asked, endpoint, ask, limits, cache, calls=calls, timeout_s=_TIMEOUT_S, **more))
    opened = ask.opens_thought or opens_thought
    responses = [[cut(row, text_of(sample[q]), opened) for sample in said] for q, row in enumerate(rows)]
    flat = [one for some in responses for one in some]
    lengths = [
        len(one.raw) // _CHARACTERS_PER_TOKEN if ask.tokenizer is None else len(ask.tokenizer.encode(one.raw))
        for one in flat
    ]
    every = [sample[q] for q in range(len(rows)) for sample in said]
    refusals = [one.reason if isinstance(one, Failure) else "" for one in every]
    with Activity("bench", "scoring the responses"):
        verifier = Verifier()
        try:
            scorings = {OURS: benchmark.ours(flat, verifier)}
            scorings |= {
                f"as published: {source}": score(flat, verifier) for source, score in benchmark.published.items()
            }
        finally:
            verifier.close()
        diagnosed = as_samples(flat, tells, lengths)
        consistency = published_consistency(name, responses)
    scores = {scoring: [values[q * n : q * n + n] for q in range(len(rows))] for scoring, values in scorings.items()}
    if letters:
        scores[_LETTERS] = [[float(letter == row.answer)] for letter, row in zip(chosen, rows, strict=True)]
    per_question = [diagnosed[q * n : q * n + n] for q in range(len(rows))]
    found = {
        "benchmark": name, "model": model, "detector": detector, "questions": len(rows), "samples": n,
        "sampling": {**sampling, "max_tokens": longest, "max_tokens_that_fit": min(limits), "seed": seed},
        "refused": sum(map(bool, refusals)), "prompts": str(prompts) if prompts else "ours",
        "prompt_style": ask.styles(asked),
        "interval": "95%, bootstrap over questions, a question and its translations together",
        "published_consistency": consistency,
        "scorings": summarise(benchmark, rows, scores, per_question, seed, [_LETTERS]),
    }  # fmt: skip
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with out.with_suffix(".responses.jsonl").open("w", encoding="utf-8") as file:
        for number, one in enumerate(flat):
            line = {
                "language": one.row.stratum[0], "group": one.row.group, "file": one.row.place.file,
                "row": one.row.place.row, "id": one.row.id, "gold": one.row.answer, "response": one.raw,
                "scores": {scoring: values[number] for scoring, values in scorings.items()},
            } | ({"refused": refusals[number]} if refusals[number] else {})  # fmt: skip
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(json.dumps(found, ensure_ascii=False) if as_json else table(name, model, detector, found))


if __name__ == "__main__":
    main()
