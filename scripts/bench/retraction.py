"""What an engine whose memory for tokens is too small does to throughput, and whether its answers stay right.

    python -m scripts.bench.retraction [--json] [--answers 32]

SGLang puts answers back into its queue ("retracts" them) when the keys and values of all that run do not fit any
more, and computes theirs anew later. Real SGLang on the CPU generates the same answers, 24 at a time, with a pool of
tokens in which all of them fit, and with one of a quarter of that: as SGLang schedules by itself, which admits an
answer when there is likely to be room for its end; and "bold", with ``schedule_conservativeness = 0.01``, which admits
them at once. Bold with 8 in flight, which fit, is the alternative to which an actor comes (``actor/concurrency.py``).

Afterwards each engine answers half as many questions while new weights arrive twice. Every answer must have as many
tokens as were asked for, and the log-probability of each token is compared with a fresh forward pass of the weights
with whose version it is marked: of all answers with new weights, of those that were put back, and of as many others.

Tokens are counted by second of the engine's processor time, on which other work on the machine has little effect, and
by the clock; ratios are of the former.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from transformers import PreTrainedModel

from actor.engine.client import Engine
from actor.engine.generation import Generation
from actor.engine.readiness import make_http_session
from actor.engine.start import open_engine
from common import wire
from common.config import load
from scripts.bench.pauses import compute_logprobs, perturbed, update, write_weights
from scripts.bench.table import Json, Row, run
from scripts.bench.weight_sync import make_model
from scripts.ops.command_line import command

_TEMPERATURE, _IN_FLIGHT, _FITTING, _PROMPT, _LENGTHS = 0.8, 24, 8, 16, (100, 300)
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
    """An engine and how many answers it has in flight, one number after the other."""

    name: str
    pool: int  # tokens
    bold: bool = False
    in_flight: tuple[int, ...] = (_IN_FLIGHT,)


@dataclass
class Outcome:
    """What came of all requests."""

    requests: list[Request]
    answers: dict[int, Generation] = field(default_factory=dict)  # by the number of the request
    seconds: float = 0.0
    engine_s: float = 0.0  # processor time of the engine

    @property
    def retracted(self) -> dict[int, Generation]:
        """The answers that were put back, as far as the client can tell those from weight updates."""
        return {number: answer for number, answer in self.answers.items() if answer.retracted}

    @property
    def tokens(self) -> int:
        return sum(len(answer.ids) for answer in self.answers.values())

    @property
    def whole(self) -> int:
        """The answers with as many tokens, log-probabilities and versions as tokens were asked for."""
        return sum(
            len(answer.ids) == len(answer.logprobs) == len(answer.versions) == self.requests[number].tokens
            for number, answer in self.answers.items()
        )


def make_requests(count: int, vocabulary: int, seed: int) -> list[Request]:
    """Prompts that share no beginning, with answers of 100 to 300 tokens."""
    drawn = random.Random(seed)
    return [
        Request([drawn.randrange(5, vocabulary) for _ in range(_PROMPT)], drawn.randint(*_LENGTHS))
        for _ in range(count)
    ]


async def answer_all(
    engine: Engine, requests: list[Request], in_flight: int, orders: Iterable[wire.Receive] = ()
) -> Outcome:
    """Asks for all answers, and gives the engine new weights after equal parts of them.

    Args:
        orders: to read the weights of the versions that follow the engine's.
    """
    found, waiting, given = Outcome(requests), deque(enumerate(requests)), list(orders)
    running: dict[asyncio.Task[list[Generation]], int] = {}
    due = deque((len(requests) * (n + 1) // (len(given) + 1), order) for n, order in enumerate(given))
    updating: asyncio.Task[float] | None = None
    begin, engine_began_s = time.perf_counter(), engine_seconds()
    while waiting or running:
        while waiting and len(running) < in_flight:
            number, request = waiting.popleft()
            sampling = {"temperature": _TEMPERATURE, "max_new_tokens": request.tokens, "ignore_eos": True}
            running[asyncio.create_task(engine.generate([request.prompt], sampling))] = number
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            found.answers[running.pop(task)] = task.result()[0]
        if due and len(found.answers) >= due[0][0] and (updating is None or updating.done()):
            updating = asyncio.create_task(update(engine, due.popleft()[1]))
    if updating is not None:
        await updating
    found.seconds, found.engine_s = time.perf_counter() - begin, engine_seconds() - engine_began_s
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
) -> list[Outcome]:
    """Starts an engine, has it answer all requests with each number in flight, and half of them with new weights."""
    settings = f"max_total_tokens = {case.pool}, max_running_requests = {_IN_FLIGHT}"
    settings += f", schedule_conservativeness = {_BOLD}" if case.bold else ""
    flags = ["--model.path", str(path), "--model.dtype", "float32", "--run.dir", str(scratch)]
    config = load([*flags, "--actor.engine_args", f"{{{settings}}}"])
    async with make_http_session() as http, open_engine(config, case.name, http) as (engine, _):
        # The first requests, in which the engine warms up, do not count.
        await engine.generate([[5] * _PROMPT] * 4, {"temperature": 1.0, "max_new_tokens": 20, "ignore_eos": True})
        found = [await answer_all(engine, requests, number) for number in case.in_flight]
        return [*found, await answer_all(engine, requests[: len(requests) // 2], _IN_FLIGHT, orders)]


def rows_of(case: Case, outcomes: list[Outcome], policies: list[PreTrainedModel], baseline: float | None) -> list[Row]:
    """What an engine did, and the largest errors among its answers."""
    *plain, updated = outcomes
    rows, goal = list[Row](), f"< {_EXACT}"
    for in_flight, found in zip(case.in_flight, plain, strict=True):
        name, rate = f"{case.name}, {in_flight} in flight", found.tokens / found.engine_s
        against: dict[str, Any] = {} if baseline is None else {"baseline": f"roomy {baseline:.0f}"}
        against |= {} if baseline is None else {"ratio": rate / baseline}
        others = [one for one in found.answers.items() if not one[1].retracted]
        worst = largest_error(
            found.requests, dict([*list(found.retracted.items())[:_CHECKED], *others[:_CHECKED]]), policies
        )
        rows += [
            Row(f"{name}: of the engine's time", rate, "tokens/s", **against),
            Row(f"{name}: by the clock", found.tokens / found.seconds, "tokens/s"),
            Row(f"{name}: put back", len(found.retracted), f"of {len(found.answers)} answers"),
            Row(f"{name}: whole", found.whole, "answers", goal=f"{len(found.requests)}",
                ok=found.whole == len(found.requests)),
            Row(f"{name}: log-probabilities", worst, "nats", goal=goal, ok=worst < _EXACT),
        ]  # fmt: skip
    versions = {int(version) for answer in updated.answers.values() for version in answer.versions}
    worst = largest_error(updated.requests, updated.answers, policies)
    return [
        *rows,
        Row(f"{case.name}, new weights: whole", updated.whole, "answers", goal=f"{len(updated.requests)}",
            ok=updated.whole == len(updated.requests)),
        Row(f"{case.name}, new weights: versions", len(versions), "", goal=f"{len(policies)}",
            ok=versions == set(range(len(policies)))),
        Row(f"{case.name}, new weights: log-probabilities", worst, "nats", goal=goal, ok=worst < _EXACT),
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
    cases = [Case("roomy", _ROOMY), Case("tight", _TIGHT), Case("bold", _TIGHT, True, (_IN_FLIGHT, _FITTING))]
    rows: list[Row] = []
    for case in cases:
        found = asyncio.run(try_case(case, path, scratch, requests, orders))
        rows += rows_of(case, found, policies, rows[0].value if rows else None)
    return rows


@command()
def main(
    *, answers: Annotated[int, typer.Option(min=8, help="Answers in each case.")] = 32, as_json: Json = False
) -> None:
    run(measure, as_json, answers=answers)


if __name__ == "__main__":
    main()
