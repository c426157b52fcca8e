"""What weight updates cost answers in flight, for each value of ``sync.pause``, compared with no updates.

    python -m scripts.bench.pauses [--json] [--updates 6]

Real SGLang keeps 8 answers in flight, and every three seconds it reads weights that differ by 1%. Afterwards, 12
answers with tokens of as many versions as possible are checked: the engine's log-probability of each token is compared
with a fresh forward pass of the weights with whose version the token is marked.
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

from actor.engine.client import Engine
from actor.engine.generation import Generation
from actor.engine.readiness import make_http_session
from actor.engine.start import open_engine
from common import wire
from common.config import load
from scripts.bench.table import Json, Row, run
from scripts.bench.weight_sync import make_model
from scripts.ops.command_line import command

TEMPERATURE, PROMPT = 0.8, [1, 7, 8, 9]
_IN_FLIGHT = 8  # answers
_UPDATE_EVERY_S = 3
_CHECKED = 12  # answers
_EXACT = 1e-4  # nats; log-probabilities that are closer are of the same weights
NO_PROBE = wire.Probe(ids=np.zeros(1, np.int32), logprobs=np.zeros(0, np.float32), tolerance=0)


def compute_logprobs(model: PreTrainedModel, ids: list[int], temperature: float = 1.0) -> NDArray[np.float64]:
    """Log-probabilities in nats of all tokens but the first, [len(ids) - 1] float64; runs one forward pass."""
    with torch.no_grad():
        table = (model(torch.tensor([ids])).logits[0].double() / temperature).log_softmax(-1)
    return np.array(table[range(len(ids) - 1), ids[1:]].tolist())


def distance_by_version(answer: Generation, policies: list[PreTrainedModel]) -> dict[int, float]:
    """How far the engine's log-probabilities are from a fresh forward pass, by policy version of the tokens.

    Args:
        answer: to ``PROMPT``, at ``TEMPERATURE``.
        policies: by version.

    Returns:
        The largest absolute difference in nats over the tokens of each version, from the oldest to the newest.
    """
    ids, found = [*PROMPT, *answer.ids.tolist()], {}
    for version in map(int, np.unique(answer.versions)):
        off = np.abs(compute_logprobs(policies[version], ids, TEMPERATURE)[len(PROMPT) - 1 :] - answer.logprobs)
        found[version] = float(off[answer.versions == version].max())
    return found


def perturbed(model: PreTrainedModel, by: float) -> PreTrainedModel:
    """A copy whose weights are multiplied with 1 + ``by`` * N(0, 1), each with another draw."""
    new = copy.deepcopy(model)
    with torch.no_grad():
        for value in new.parameters():
            value.mul_(1 + by * torch.randn_like(value))
    return new


def write_weights(model: PreTrainedModel, version: int, scratch: Path) -> wire.Receive:
    """Writes the weights into ``scratch``; returns the order to an engine to read them as ``version``."""
    save_file({name: value.detach() for name, value in model.named_parameters()}, scratch / "model.safetensors")
    return wire.Receive(group="", path=str(scratch), version=version, buckets=[], probe=NO_PROBE, timeout_s=60)


async def update(engine: Engine, order: wire.Receive) -> float:
    """Gives the engine new weights, with a deadline of 60 s a step; seconds from the pause until it generates again."""
    begin = time.perf_counter()
    await engine.pause(60, 600)
    await engine.receive_weights(order)
    await engine.resume(60)
    return time.perf_counter() - begin


async def measure_updates(
    engine: Engine, policies: list[PreTrainedModel], scratch: Path | None, updates: int
) -> tuple[float, list[float], list[Generation]]:
    """Keeps answers in flight while weights are updated.

    Args:
        policies: by version; the new ones are added.
        scratch: for the files of weights; None for no updates during the same time.
        updates: how many.

    Returns:
        Tokens per second, the seconds of each update, and all answers.
    """
    answers: list[Generation] = []
    seconds: list[float] = []
    generating = True

    async def request_answers() -> None:
        while generating:
            sampling = {"temperature": TEMPERATURE, "max_new_tokens": random.randint(100, 300), "ignore_eos": True}
            answers.extend(await engine.generate([PROMPT], sampling))

    begin = time.perf_counter()
    requests = [asyncio.create_task(request_answers()) for _ in range(_IN_FLIGHT)]
    for _ in range(updates):
        await asyncio.sleep(_UPDATE_EVERY_S)
        if scratch:
            policies.append(perturbed(policies[-1], 0.01))
            seconds.append(await update(engine, write_weights(policies[-1], engine.version + 1, scratch)))
    generating = False
    await asyncio.gather(*requests)
    return sum(len(answer.ids) for answer in answers) / (time.perf_counter() - begin), seconds, answers


async def compare_modes(model: PreTrainedModel, path: Path, scratch: Path, updates: int) -> list[Row]:
    policies = [model]
    async with make_http_session() as http:
        flags = ["--model.path", str(path), "--model.dtype", "float32", "--run.dir", str(scratch)]
        async with open_engine(load(flags), "a", http) as (engine, _):
            baseline = [(await measure_updates(engine, policies, None, number))[0] for number in (1, updates)][1]
            rows = [Row("no updates", baseline, "tokens/s")]
            for engine.pause_mode in ("retract", "in_place", "drain"):
                rate, seconds, answers = await measure_updates(engine, policies, scratch, updates)
                rows.append(Row(engine.pause_mode, rate, "tokens/s", f"no updates {baseline:.0f}", rate / baseline))
                rows.append(Row(f"{engine.pause_mode}: update", statistics.median(seconds), "s"))
                longest = sorted(answers, key=lambda answer: -len(set(answer.versions)))[:_CHECKED]
                found = [list(distance_by_version(answer, policies).values()) for answer in longest]
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
    return asyncio.run(compare_modes(model, path, scratch, updates))


@command()
def main(
    *,
    updates: Annotated[int, typer.Option(min=1, help="Weight updates for each kind of pause.")] = 6,
    as_json: Json = False,
) -> None:
    run(measure, as_json, updates=updates)


if __name__ == "__main__":
    main()
