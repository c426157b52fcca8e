"""How many groups a second the learner's server leases, takes, acknowledges and enters in the ledger, on one core.

    python -m scripts.bench.queue [--json] [--groups 20000]

A group has 8 answers of 1,024 tokens: ids, log-probabilities and versions. The actors are one process of their own and
send answers they encoded beforehand; the baseline is a bare ROUTER that acknowledges the same bytes unread.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import zmq
from numpy.typing import NDArray

from common import wire
from common.net import sockets
from learner.groups import Group
from learner.work.admission import Limits
from learner.work.ledger import Ledger
from learner.work.scheduler import WorkQueue
from learner.work.server import Server
from scripts.bench.table import Json, Row, run
from scripts.ops.command_line import command
from tests.support.groups import work

K, _TOKENS, _VOCABULARY = 8, 1024, 10_000
_STEP, _IN_FLIGHT, _GOAL = 64, 64, 5000


def answer(
    rng: np.random.Generator, prompt: NDArray[np.int32], tokens: int, vocabulary: int, text: str = ""
) -> wire.Rollout:
    score = wire.Score(reward=float(rng.random()), quality=0.5, similarity=0.5, compliant=True, detected="en")
    ids = rng.integers(0, vocabulary, tokens).astype(np.int32)
    return wire.Rollout(
        language="en", prompt_ids=prompt, response_ids=ids, versions=np.zeros(tokens, np.int32), truncated=False,
        logprobs=np.full(tokens, -np.log(vocabulary), np.float32), text=text, score=score,
    )  # fmt: skip


def answers(text: str) -> list[wire.Rollout]:
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, _VOCABULARY, 32, np.int32)
    return [answer(rng, prompt, _TOKENS, _VOCABULARY, text) for _ in range(K)]


def entered(server: Server, ledger: Ledger, step: int) -> Iterator[int]:
    """A learner but for the training: again and again how many groups it has taken and entered so far."""
    done = 0
    server.published(server.members())
    while True:
        yield done
        batch = server.take(0.2) or []
        for group in batch:
            ledger.enter(done, group.work.question.index, "trained", done // step, "", group.work)
            done += 1
        if batch:
            ledger.sync()
            server.published(server.members())


def _actor(address: str, core: int) -> None:
    os.sched_setaffinity(0, {core})
    rollouts = answers("Paris.")
    socket = sockets.connect(zmq.Context(), address, "a")
    socket.send(wire.encode(wire.Hello(protocol=wire.PROTOCOL, engine_ranks=1, slots=_IN_FLIGHT, transport="group")))
    while not isinstance(message := wire.decode(socket.recv()), wire.Stop):
        if isinstance(message, wire.Leased):
            for work in message.work:
                socket.send(wire.encode(wire.Submit(id=work.id, rollouts=rollouts)))


def _bare(address: str, core: int) -> None:
    os.sched_setaffinity(0, {core})
    data = wire.encode(wire.Submit(id="0:train-0", rollouts=answers("Paris.")))
    socket = sockets.connect(zmq.Context(), address, "a")
    for _ in range(_IN_FLIGHT):
        socket.send(data)
    while socket.recv() != b"stop":
        socket.send(data)


def served(directory: Path, groups: int, core: int) -> tuple[float, float]:
    """Groups a second, and a second of processor time, through the server, all its threads on one core."""
    address = f"ipc://{directory}/queue"
    server = Server(address, lease_timeout_s=60)
    child = multiprocessing.get_context("spawn").Process(target=_actor, args=(address, core))
    child.start()
    while not server.members():
        time.sleep(0.01)
    queue: WorkQueue[Group] = WorkQueue(groups_per_step=_STEP, staleness=1, window=_STEP, attempts=3, total=groups)
    ledger = Ledger(directory / "ledger.jsonl")
    server.serve(queue, lambda n: work(n, ["en"] * K), lambda *_: None, Limits(_VOCABULARY, tokens=4096))
    begin, cpu = time.perf_counter(), time.process_time()
    next(done for done in entered(server, ledger, _STEP) if done >= groups)
    spent = time.perf_counter() - begin, time.process_time() - cpu
    server.close()
    child.join()
    return groups / spent[0], groups / spent[1]


def bare(directory: Path, groups: int, core: int) -> tuple[float, float]:
    """Messages a second, and a second of processor time, of a ROUTER that acknowledges what it does not read."""
    context: zmq.Context[Any] = zmq.Context()
    address = f"ipc://{directory}/bare"
    socket = sockets.bind(context, address)
    child = multiprocessing.get_context("spawn").Process(target=_bare, args=(address, core))
    child.start()
    peer, _ = socket.recv_multipart()
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(groups):
        peer, _ = socket.recv_multipart()
        socket.send_multipart([peer, b"ack"])
    spent = time.perf_counter() - begin, time.process_time() - cpu
    socket.send_multipart([peer, b"stop"])
    child.join()
    context.destroy(linger=0)
    return groups / spent[0], groups / spent[1]


def measure(scratch: Path, groups: int) -> list[Row]:
    cores = sorted(os.sched_getaffinity(0))  # told the actors, too, which would inherit the server's
    os.sched_setaffinity(0, cores[:1])
    groups = groups // _STEP * _STEP
    baseline, ours = bare(scratch, groups, cores[-1]), served(scratch, groups, cores[-1])
    name = "groups leased, submitted, acknowledged, entered"
    return [
        Row(f"{name}, a {of}", mine, "groups", f"bare ROUTER {theirs:.0f}", mine / theirs, f">= {_GOAL}", mine >= _GOAL)
        for of, mine, theirs in zip(("second", "second of processor time"), ours, baseline, strict=True)
    ]


@command()
def main(*, groups: Annotated[int, typer.Option(help="Groups to send.")] = 20_000, as_json: Json = False) -> None:
    run(measure, as_json, groups=groups)


if __name__ == "__main__":
    main()
