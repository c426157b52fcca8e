"""What updates cost answers in flight, by ``sync.pause``, beside the same engine without updates.

    python -m scripts.bench.pauses [--json] [--updates 6]

Real SGLang keeps 8 answers in flight; every three seconds it reads weights that differ by 1%. Afterwards the
log-probabilities of the tokens of 12 answers, of as many versions as there are, are compared with fresh forward passes
of the weights they are marked with.
"""

from __future__ import annotations

import asyncio
import copy
import random
import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import PreTrainedModel

from actor.engine.client import Engine, Generation, make_http_session
from actor.engine.start import open_engine
from common import wire
from common.config import load
from scripts.bench.table import Json, Row, run
from scripts.bench.weight_sync import make_model
from scripts.ops.command_line import command

TEMPERATURE, PROMPT = 0.8, [1, 7, 8, 9]
_IN_FLIGHT, _EVERY_S, _COMPARED, _EXACT = 8, 3, 12, 1e-4
NO_PROBE = wire.Probe(ids=np.zeros(1, np.int32), logprobs=np.zeros(0, np.float32), tolerance=0)


def logprobs(model: PreTrainedModel, ids: list[int], temperature: float = 1.0) -> NDArray[np.float64]:
    """Of all tokens but the first."""
    with torch.no_grad():
        table = (model(torch.tensor([ids])).logits[0].double() / temperature).log_softmax(-1)
    return np.array(table[range(len(ids) - 1), ids[1:]].tolist())


def distances(answer: Generation, policies: list[PreTrainedModel]) -> dict[int, float]:
    """By version, how far the engine's log-probabilities of its tokens are from a fresh forward pass of that policy."""
    ids, found = [*PROMPT, *answer.ids.tolist()], {}
    for version in map(int, np.unique(answer.versions)):
        off = np.abs(logprobs(policies[version], ids, TEMPERATURE)[len(PROMPT) - 1 :] - answer.logprobs)
        found[version] = float(off[answer.versions == version].max())
    return found


def changed(model: PreTrainedModel, by: float) -> PreTrainedModel:
    new = copy.deepcopy(model)
    with torch.no_grad():
        for value in new.parameters():
            value.mul_(1 + by * torch.randn_like(value))
    return new


def by_file(model: PreTrainedModel, version: int, scratch: Path) -> wire.Receive:
    save_file({name: value.detach() for name, value in model.named_parameters()}, scratch / "model.safetensors")
    return wire.Receive(group="", path=str(scratch), version=version, buckets=[], probe=NO_PROBE, timeout_s=60)


async def update(engine: Engine, order: wire.Receive) -> float:
    """Gives the engine new weights; seconds from the order until it goes on."""
    begin = time.perf_counter()
    await engine.pause(60, 600)
    await engine.receive_weights(order)
    await engine.resume(60)
    return time.perf_counter() - begin


async def under_updates(
    engine: Engine, policies: list[PreTrainedModel], scratch: Path | None, updates: int
) -> tuple[float, list[float], list[Generation]]:
    """Tokens per second, seconds of each update, answers; without updates if there is no ``scratch``."""
    answers: list[Generation] = []
    seconds: list[float] = []
    going = True

    async def ask() -> None:
        while going:
            sampling = {"temperature": TEMPERATURE, "max_new_tokens": random.randint(100, 300), "ignore_eos": True}
            answers.extend(await engine.generate([PROMPT], sampling))

    begin = time.perf_counter()
    asking = [asyncio.create_task(ask()) for _ in range(_IN_FLIGHT)]
    for _ in range(updates):
        await asyncio.sleep(_EVERY_S)
        if scratch:
            policies.append(changed(policies[-1], 0.01))
            seconds.append(await update(engine, by_file(policies[-1], engine.version + 1, scratch)))
    going = False
    await asyncio.gather(*asking)
    return sum(len(answer.ids) for answer in answers) / (time.perf_counter() - begin), seconds, answers


async def compare(model: PreTrainedModel, path: Path, scratch: Path, updates: int) -> list[Row]:
    policies = [model]
    async with make_http_session() as http:
        flags = ["--model.path", str(path), "--model.dtype", "float32", "--run.dir", str(scratch)]
        async with open_engine(load(flags), "a", http) as (engine, _):
            baseline = [(await under_updates(engine, policies, None, number))[0] for number in (1, updates)][1]
            rows = [Row("no updates", baseline, "tokens/s")]
            for engine.pause_mode in ("retract", "in_place", "drain"):
                rate, seconds, answers = await under_updates(engine, policies, scratch, updates)
                rows.append(Row(engine.pause_mode, rate, "tokens/s", f"no updates {baseline:.0f}", rate / baseline))
                rows.append(Row(f"{engine.pause_mode}: update", statistics.median(seconds), "s"))
                longest = sorted(answers, key=lambda answer: -len(set(answer.versions)))[:_COMPARED]
                found = [list(distances(answer, policies).values()) for answer in longest]
                parts = {"old": [off[0] for off in found], "new": [max(off[1:]) for off in found if len(off) > 1]}
                for name, off in parts.items():
                    goal = None if engine.pause_mode == "in_place" and name == "new" else f"< {_EXACT}"
                    metric, worst = (
                        f"{engine.pause_mode}: {len(off)} answers under {name} weights",
                        max(off, default=0.0),
                    )
                    rows.append(Row(metric, worst, "nats", goal=goal, ok=worst < _EXACT if goal else None))
    return rows


def measure(scratch: Path, updates: int) -> list[Row]:
    torch.set_num_threads(1)
    model = make_model(path := scratch / "model", 128)
    return asyncio.run(compare(model, path, scratch, updates))


@command()
def main(
    *, updates: Annotated[int, typer.Option(help="Weight updates for each kind of pause.")] = 6, as_json: Json = False
) -> None:
    run(measure, as_json, updates=updates)


if __name__ == "__main__":
    main()
