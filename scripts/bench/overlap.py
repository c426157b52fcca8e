"""Measures whether asynchronous training hides the shorter of rollouts and training behind the longer one.

    python -m scripts.bench.overlap [--json]
    python -m scripts.bench.overlap --record MODEL   # records lengths and latencies of SGLang in trace.jsonl

The learner's loop runs with two actors, whose engines replay ``trace.jsonl``. A training step takes as long as the
rollouts of a step, which is the case in which waiting for each other costs most. "Rollouts alone" is measured with
training steps that take no time, "training alone" with answers that take no time.
"""

from __future__ import annotations

import asyncio
import json
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
from scripts.bench.table import Json, Row, run
from scripts.ops.command_line import command
from tests.support.groups import question

_TRACE = Path(__file__).with_name("trace.jsonl")
_P, _IN_FLIGHT, _STEPS, _GOAL = 32, 8, 10, 1.1
_LANGUAGES = ("de", "en", "es", "fr", "ja", "pt", "ru", "zh")


def measure(directory: Path, record: str) -> list[Row]:
    if record:
        asyncio.run(write_trace(record, directory))
        return []
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
    as_json: Json = False,
) -> None:
    run(measure, as_json, record=record)


if __name__ == "__main__":
    main()
