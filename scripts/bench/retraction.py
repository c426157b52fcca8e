"""What an engine whose memory for tokens is too small does to throughput, and whether its answers stay right.

    python -m scripts.bench.retraction [--json] [--answers 96]

SGLang puts answers back into its queue ("retracts" them) when the keys and values of all that run do not fit any
more, and computes theirs anew later. Real SGLang on the CPU generates the same answers, 24 at a time, with a pool of
tokens in which all of them fit, and with one of a quarter of that: as SGLang schedules by itself; "bold", with
``schedule_conservativeness = 0.01``, which lets answers run that there is hardly memory for; and bold with the number
in flight found as an actor finds it (``actor/concurrency.py``). New weights arrive twice in each run.

Every answer has to have as many tokens as were asked for. The log-probability of each token of those that were put
back, and of as many others, is compared with a fresh forward pass of the weights with whose version it is marked.
Tokens are counted by second of the engine's processor time as well, on which other work on the machine has little
effect; ratios are of that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from transformers import PreTrainedModel

from actor.concurrency import Concurrency
from actor.engine.client import Engine, Generation
from actor.engine.readiness import make_http_session
from actor.engine.start import open_engine
from common import wire
from common.config import load
from scripts.bench.pauses import compute_logprobs, perturbed, update, write_weights
from scripts.bench.table import Json, Row, run
from scripts.bench.weight_sync import make_model
from scripts.ops.command_line import command

_TEMPERATURE, _IN_FLIGHT, _PROMPT, _LENGTHS = 0.8, 24, 16, (100, 300)
_ROOMY, _TIGHT = 8192, 2048  # tokens; 24 answers have up to 24 * (16 + 300) = 7,584
_BOLD = 0.01
_UPDATES = 2  # of the weights, after equal parts of the answers
_CHECKED = 16  # answers that were put back, and as many others
_EXACT = 1e-4  # nats, as in scripts.bench.pauses


@dataclass(frozen=True)
class Request:
    """An answer that is asked for."""

    prompt: list[int]
    tokens: int


@dataclass(frozen=True)
class Case:
    """An engine and how it is used."""

    name: str
    pool: int  # tokens
    bold: bool = False
    adapts: bool = False  # whether the number in flight is found as an actor finds it


@dataclass
class Outcome:
    """What came of all requests."""

    answers: dict[int, Generation] = field(default_factory=dict)  # by the number of the request
    seconds: float = 0.0
    engine_s: float = 0.0  # processor time of the engine
    slots: int = _IN_FLIGHT  # at the end


def make_requests(count: int, vocabulary: int, seed: int) -> list[Request]:
    """Prompts that share no beginning, with answers of 100 to 300 tokens."""
    drawn = random.Random(seed)
    return [
        Request([drawn.randrange(5, vocabulary) for _ in range(_PROMPT)], drawn.randint(*_LENGTHS))
        for _ in range(count)
    ]


async def answer_all(
    engine: Engine, requests: list[Request], concurrency: Concurrency | None, orders: list[wire.Receive]
) -> Outcome:
    """Asks for all answers, and gives the engine new weights after equal parts of them.

    Args:
        concurrency: how many are in flight; None for a fixed number.
        orders: to read the weights of the versions that follow the engine's.
    """
    found, waiting = Outcome(), deque(enumerate(requests))
    running: dict[asyncio.Task[list[Generation]], int] = {}
    due = deque((len(requests) * (n + 1) // (len(orders) + 1), order) for n, order in enumerate(orders))
    updating: asyncio.Task[float] | None = None
    begin, engine_began_s = time.perf_counter(), engine_seconds()
    while waiting or running:
        while waiting and len(running) < (concurrency.slots if concurrency else _IN_FLIGHT):
            number, request = waiting.popleft()
            sampling = {"temperature": _TEMPERATURE, "max_new_tokens": request.tokens, "ignore_eos": True}
            running[asyncio.create_task(engine.generate([request.prompt], sampling))] = number
        in_flight = len(running)
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            (answer,) = task.result()
            found.answers[running.pop(task)] = answer
            if concurrency is not None:
                concurrency.record_finished(await engine.read_gauges(), in_flight, retracted=answer.retracted)
        if due and len(found.answers) >= due[0][0] and (updating is None or updating.done()):
            updating = asyncio.create_task(update(engine, due.popleft()[1]))
    if updating is not None:
        await updating
    found.seconds, found.engine_s = time.perf_counter() - begin, engine_seconds() - engine_began_s
    found.slots = concurrency.slots if concurrency else _IN_FLIGHT
    return found


def engine_seconds() -> float:
    """Processor time of the processes that this one has started, which are those of its engine."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return float(sum(one.user + one.system for one in times))


def largest_error(requests: list[Request], answers: dict[int, Generation], policies: list[PreTrainedModel]) -> float:
    """The largest difference in nats between the engine's log-probabilities and those of a fresh forward pass.

    Args:
        answers: some of them, by the number of the request.
        policies: by version.
    """
    worst = 0.0
    for number, answer in answers.items():
        ids = [*requests[number].prompt, *answer.ids.tolist()]
        for version in map(int, np.unique(answer.versions)):
            off = np.abs(compute_logprobs(policies[version], ids, _TEMPERATURE)[_PROMPT - 1 :] - answer.logprobs)
            worst = max(worst, float(off[answer.versions == version].max()))
    return worst


async def try_case(
    case: Case, path: Path, scratch: Path, requests: list[Request], orders: list[wire.Receive]
) -> Outcome:
    """Starts an engine, has it answer all requests and ends it."""
    settings = f"max_total_tokens = {case.pool}, max_running_requests = {_IN_FLIGHT}"
    settings += f", schedule_conservativeness = {_BOLD}" if case.bold else ""
    flags = ["--model.path", str(path), "--model.dtype", "float32", "--run.dir", str(scratch)]
    config = load([*flags, "--actor.engine_args", f"{{{settings}}}"])
    async with make_http_session() as http, open_engine(config, case.name.replace(" ", "-"), http) as (engine, _):
        # The first requests, in which the engine warms up, do not count.
        await engine.generate([[5] * _PROMPT] * 4, {"temperature": 1.0, "max_new_tokens": 20, "ignore_eos": True})
        return await answer_all(engine, requests, Concurrency(_IN_FLIGHT) if case.adapts else None, orders)


def rows_of(
    case: Case, found: Outcome, requests: list[Request], policies: list[PreTrainedModel], baseline: float | None
) -> list[Row]:
    """What a case did, and the largest error among its answers."""
    retracted = {number: answer for number, answer in found.answers.items() if answer.retracted}
    others = {number: answer for number, answer in found.answers.items() if not answer.retracted}
    tokens = sum(len(answer.ids) for answer in found.answers.values())
    whole = sum(
        len(answer.ids) == len(answer.logprobs) == len(answer.versions) == requests[number].tokens
        for number, answer in found.answers.items()
    )
    rate, versions = tokens / found.engine_s, {int(one) for a in found.answers.values() for one in a.versions}
    checked = dict([*list(retracted.items())[:_CHECKED], *list(others.items())[:_CHECKED]])
    worst = largest_error(requests, checked, policies)
    against: dict[str, Any] = (
        {} if baseline is None else {"baseline": f"roomy {baseline:.0f}", "ratio": rate / baseline}
    )
    return [
        Row(f"{case.name}: pool of {case.pool} tokens", rate, "tokens/s of the engine", **against),
        Row(f"{case.name}: by the clock", tokens / found.seconds, "tokens/s"),
        Row(f"{case.name}: answers put back", len(retracted), "answers"),
        Row(f"{case.name}: answers in flight in the end", found.slots, "answers"),
        Row(f"{case.name}: whole answers", whole, "answers", goal=f"{len(requests)}", ok=whole == len(requests)),
        Row(f"{case.name}: policy versions", len(versions), "versions", goal=f"{len(policies)}",
            ok=versions == set(range(len(policies)))),
        Row(f"{case.name}: log-probabilities of {len(checked)} answers", worst, "nats", goal=f"< {_EXACT}",
            ok=worst < _EXACT),
    ]  # fmt: skip


def measure(scratch: Path, answers: int) -> list[Row]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policies: list[PreTrainedModel] = [make_model(path := scratch / "model", 128)]
    orders = []
    for version in range(1, _UPDATES + 1):
        policies.append(perturbed(policies[-1], 0.01))
        (directory := scratch / f"version-{version}").mkdir()
        orders.append(write_weights(policies[-1], version, directory))
    requests = make_requests(answers, policies[0].config.vocab_size, seed=0)
    cases = [
        Case("roomy", _ROOMY), Case("tight", _TIGHT), Case("tight, bold", _TIGHT, bold=True),
        Case("tight, bold, in flight as an actor", _TIGHT, bold=True, adapts=True),
    ]  # fmt: skip
    rows: list[Row] = []
    for case in cases:
        found = asyncio.run(try_case(case, path, scratch, requests, orders))
        rows += rows_of(case, found, requests, policies, rows[0].value if rows else None)
    return rows


@command()
def main(
    *, answers: Annotated[int, typer.Option(min=1, help="Answers in each case.")] = 96, as_json: Json = False
) -> None:
    run(measure, as_json, answers=answers)


if __name__ == "__main__":
    main()
