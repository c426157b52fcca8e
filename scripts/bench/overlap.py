"""Measures whether asynchronous training hides the shorter of rollouts and training behind the longer one.

    python -m scripts.bench.overlap [--json]
    python -m scripts.bench.overlap --long [--json]  # answers with a long tail, of up to 16,384 tokens
    python -m scripts.bench.overlap --record MODEL   # records lengths and latencies of SGLang in trace.jsonl

The learner's loop runs with two actors, whose engines replay ``trace.jsonl``. A training step takes as long as the
rollouts of a step, which is the case in which waiting for each other costs most. "Rollouts alone" is measured with
training steps that take no time, "training alone" with answers that take no time.

The lengths of ``--long`` are drawn: ``long_tail`` says how. A token that is replayed stands for 128, and takes 40 ms
whatever else the engine generates; so the longest answers take 5.1 s.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from pathlib import Path
from typing import Annotated

import typer

from actor.engine.readiness import make_http_session
from actor.engine.start import open_engine
from common.config import load
from common.prompts import TagPrompts
from common.tokenizer import load_tokenizer
from scripts.bench.fleet import Fleet
from scripts.bench.support.groups import question
from scripts.bench.table import Json, Row, run
from scripts.ops.command_line import command

_TRACE = Path(__file__).with_name("trace.jsonl")
_P, _IN_FLIGHT, _STEPS, _GOAL = 32, 8, 10, 1.1
_LONG_P99, _LONG_MEDIAN, _LONGEST, _LONG_SHARED = 10.0, 1024, 16384, 0.5
_LONG_LINES, _LONG_STEPS, _LONG_SEED, _LONG_GOAL = 128, 24, 0, 2.3
_STANDS_FOR, _TOKEN_S = 128, 0.04  # tokens that one of the replayed answer stands for, and its seconds
_P99 = 2.3263  # of the standard normal distribution
_LANGUAGES = ("de", "en", "es", "fr", "ja", "pt", "ru", "zh")


def measure(directory: Path, record: str, long: bool) -> list[Row]:
    if record:
        asyncio.run(write_trace(record, directory))
        return []
    if long:
        return measure_long(directory)
    flags = {"learner.groups_per_step": _P, "learner.window": _P, "actor.groups_in_flight": _IN_FLIGHT}
    lines = _TRACE.read_text().splitlines()
    with Fleet(directory, {**flags, "sampling.max_new_tokens": 64}) as fleet:
        for name in ("a", "b"):
            fleet.start(name, "\n".join(random.Random(name).sample(lines, len(lines))))
        rollouts, _ = fleet.run(_STEPS)
        synchronous, _ = fleet.run(_STEPS, train_s=rollouts, staleness=0)
        asynchronous, _ = fleet.run(_STEPS, train_s=rollouts, staleness=1)
        for name in ("a", "b"):
            fleet.trace(name, json.dumps({"lengths": [8], "seconds": 0.0}))
        training, _ = fleet.run(_STEPS, train_s=rollouts)
    longer = max(rollouts, training)
    return [
        Row("a step's rollouts alone", rollouts, "s"),
        Row("a step's training alone", training, "s"),
        Row("a synchronous step (S = 0)", synchronous, "s", f"their sum {rollouts + training:.3g}"),
        Row("an asynchronous step (S = 1)", asynchronous, "s", f"the longer of the two {longer:.3g}",
            longer / asynchronous, f"<= {_GOAL} x {longer:.3g} = {_GOAL * longer:.3g}", asynchronous <= _GOAL * longer),
        Row("synchronous over asynchronous", synchronous / asynchronous, "x",
            f"bound {(rollouts + training) / longer:.3g}"),
    ]  # fmt: skip


def long_tail(groups: int, seed: int) -> list[list[int]]:
    """Tokens of 8 answers to each question, [groups][8], with the skew of a large run of mathematical reasoning.

    The logarithm of a length is normal: its median is 1,024 tokens and its 99th percentile ten times as long, as
    Laminar (arXiv 2510.12633) is said to have recorded, and nothing is longer than 16,384 tokens, where answers end. A
    question's difficulty makes half of the variance: ln L = ln 1024 + σ (√0.5 z + √0.5 e) with σ = ln 10 / 2.3263,
    where z is drawn for each question and e for each answer from N(0, 1), by ``random.Random(seed).gauss``, z first.
    """
    drawn, sigma = random.Random(seed), math.log(_LONG_P99) / _P99
    found = []
    for _ in range(groups):
        question_z = drawn.gauss(0, 1)
        parts = [
            math.sqrt(_LONG_SHARED) * question_z + math.sqrt(1 - _LONG_SHARED) * drawn.gauss(0, 1) for _ in range(8)
        ]
        found.append([min(_LONGEST, max(1, round(_LONG_MEDIAN * math.exp(sigma * part)))) for part in parts])
    return found


def replayed(lengths: list[int]) -> str:
    """A line of the trace for a group of long answers."""
    short = [math.ceil(length / _STANDS_FOR) for length in lengths]
    return json.dumps({"lengths": short, "seconds": round(_TOKEN_S * max(short), 3)})


def measure_long(directory: Path) -> list[Row]:
    groups = long_tail(_LONG_LINES, _LONG_SEED)
    lengths = sorted(length for group in groups for length in group)
    lines = [replayed(group) for group in groups]
    flags = {"learner.groups_per_step": _P, "actor.groups_in_flight": _IN_FLIGHT, "router.rollouts": 8}
    with Fleet(directory, {**flags, "sampling.max_new_tokens": _LONGEST // _STANDS_FOR}) as fleet:
        for name in ("a", "b"):
            fleet.start(name, "\n".join(random.Random(name).sample(lines, len(lines))))
        rollouts, _ = fleet.run(_LONG_STEPS, staleness=2, window=2 * _P)
        synchronous, _ = fleet.run(_LONG_STEPS, train_s=rollouts, staleness=0, window=_P)
        asynchronous = {
            staleness: fleet.run(_LONG_STEPS, train_s=rollouts, staleness=staleness, window=staleness * _P)[0]
            for staleness in (1, 2)
        }
    return [
        Row("answers: median", lengths[len(lengths) // 2], "tokens"),
        Row("answers: 99th percentile", lengths[len(lengths) * 99 // 100], "tokens"),
        Row("answers: longest", lengths[-1], "tokens"),
        Row("a step's rollouts alone, and its training alone", rollouts, "s"),
        Row("a synchronous step (S = 0)", synchronous, "s"),
        *(
            Row(f"an asynchronous step (S = {staleness}, W = {staleness * _P})", seconds, "s",
                f"synchronous {synchronous:.3g}", synchronous / seconds, f">= {_LONG_GOAL}x",
                synchronous / seconds >= _LONG_GOAL)
            for staleness, seconds in asynchronous.items()
        ),
    ]  # fmt: skip


async def write_trace(model: str, scratch: Path) -> None:
    """Records lengths and latency of each request to a real engine, with eight requests in flight, as an actor has."""
    flags = ["--model.path", model, "--model.dtype", "float32", "--run.dir", str(scratch)]
    config, tokenizer = load([*flags, "--run.languages", json.dumps(_LANGUAGES)]), load_tokenizer(model)
    prompts = [TagPrompts(tokenizer, config)(question(), language) for language in _LANGUAGES]
    sampling = {"temperature": 1.0, "max_new_tokens": 64, "stop_token_ids": [tokenizer.eos_token_id]}
    free, lines = asyncio.Semaphore(_IN_FLIGHT), []
    async with make_http_session() as http, open_engine(config, "trace", http) as (engine, _):

        async def ask() -> None:
            async with free:
                begin = time.monotonic()
                lengths = [len(answer.ids) for answer in await engine.generate(prompts, sampling)]
                lines.append(json.dumps({"lengths": lengths, "seconds": round(time.monotonic() - begin, 3)}))

        await asyncio.gather(*(ask() for _ in range(10 * _IN_FLIGHT)))
    _TRACE.write_text("\n".join(lines[_IN_FLIGHT:]) + "\n")  # without the first requests, in which the engine warms up


@command()
def main(
    *,
    record: Annotated[
        str, typer.Option(metavar="MODEL", help="Record a trace anew with this Hugging Face model.")
    ] = "",
    long: Annotated[bool, typer.Option("--long", help="Answers of up to 16,384 tokens, with a long tail.")] = False,
    as_json: Json = False,
) -> None:
    run(measure, as_json, record=record, long=long)


if __name__ == "__main__":
    main()
