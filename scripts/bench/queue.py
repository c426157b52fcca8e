"""How many groups per second the learner's server leases, takes, acknowledges and enters in the ledger, on one core.

    python -m scripts.bench.queue [--json] [--groups 20000]

A group has 8 answers of 1,024 tokens, with token ids, log-probabilities and versions. One process plays an actor, and
makes its answers before the measurement begins. The baseline is a plain ROUTER socket that acknowledges the same bytes
without reading them.
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
from learner.work.server import WorkServer
from scripts.bench.table import Json, Row, run
from scripts.ops.command_line import command
from tests.support.groups import work

K, _TOKENS, _VOCABULARY = 8, 1024, 10_000
_GROUPS_PER_STEP, _SLOTS = 64, 64
_GOAL = 5000  # groups per second


def make_rollout(
    rng: np.random.Generator, prompt: NDArray[np.int32], tokens: int, vocabulary: int, text: str = ""
) -> wire.Rollout:
    """A rollout of ``tokens`` random token ids."""
    score = wire.Score(reward=float(rng.random()), quality=0.5, similarity=0.5, compliant=True, detected="en")
    ids = rng.integers(0, vocabulary, tokens).astype(np.int32)
    return wire.Rollout(
        language="en", prompt_ids=prompt, response_ids=ids, versions=np.zeros(tokens, np.int32), truncated=False,
        logprobs=np.full(tokens, -np.log(vocabulary), np.float32), text=text, score=score,
    )  # fmt: skip


def make_rollouts(text: str) -> list[wire.Rollout]:
    """The K rollouts of a group, the same ones each time but for the text."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, _VOCABULARY, 32, np.int32)
    return [make_rollout(rng, prompt, _TOKENS, _VOCABULARY, text) for _ in range(K)]


def take_groups(server: WorkServer, ledger: Ledger, groups_per_step: int) -> Iterator[int]:
    """Does what the training thread does, except for the training.

    Yields how many groups were taken and entered in the ledger so far, again and again without end.
    """
    done = 0
    server.mark_published(server.members())
    while True:
        yield done
        batch = server.take(0.2) or []
        for group in batch:
            ledger.enter(done, group.work.question.index, "trained", done // groups_per_step, "", group.work)
            done += 1
        if batch:
            ledger.flush()
            server.mark_published(server.members())


def _play_actors(address: str, core: int) -> None:
    """Answers every lease at once, until the server stops it."""
    os.sched_setaffinity(0, {core})
    rollouts = make_rollouts("Paris.")
    socket = sockets.connect(zmq.Context(), address, "a")
    hello = wire.Hello(
        protocol=wire.PROTOCOL, engine_ranks=1, slots=_SLOTS, transport="group", name="a", actor_life="a"
    )  # fmt: skip
    socket.send(wire.encode(hello))
    while not isinstance(message := wire.decode(socket.recv()), wire.Stop):
        if isinstance(message, wire.Leased):
            for work in message.work:
                socket.send(wire.encode(wire.Submit(id=work.id, rollouts=rollouts).of(message.lives)))


def _send_unread(address: str, core: int) -> None:
    """Sends the same message again for every acknowledgement, until it is told to stop."""
    os.sched_setaffinity(0, {core})
    data = wire.encode(wire.Submit(id="0:train-0", rollouts=make_rollouts("Paris.")))
    socket = sockets.connect(zmq.Context(), address, "a")
    for _ in range(_SLOTS):
        socket.send(data)
    while socket.recv() != b"stop":
        socket.send(data)


def measure_server(directory: Path, groups: int, core: int) -> tuple[float, float]:
    """Groups per second, and per second of processor time, through the server with all its threads on one core."""
    address = f"ipc://{directory}/queue"
    server = WorkServer(address, lease_timeout_s=60)
    child = multiprocessing.get_context("spawn").Process(target=_play_actors, args=(address, core))
    child.start()
    while not server.members():
        time.sleep(0.01)
    queue: WorkQueue[Group] = WorkQueue(
        groups_per_step=_GROUPS_PER_STEP, staleness=1, window=_GROUPS_PER_STEP, attempts=3, total=groups
    )
    ledger = Ledger(directory / "ledger.jsonl")
    server.serve(queue, lambda n: work(n, ["en"] * K), lambda *_: None, Limits(_VOCABULARY, tokens=4096))
    begin, cpu = time.perf_counter(), time.process_time()
    next(done for done in take_groups(server, ledger, _GROUPS_PER_STEP) if done >= groups)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    server.close()
    child.join()
    return groups / seconds, groups / cpu_seconds


def measure_plain_router(directory: Path, groups: int, core: int) -> tuple[float, float]:
    """Messages per second, and per second of processor time, of a ROUTER that acknowledges without reading."""
    context: zmq.Context[Any] = zmq.Context()
    address = f"ipc://{directory}/plain"
    socket = sockets.bind(context, address)
    child = multiprocessing.get_context("spawn").Process(target=_send_unread, args=(address, core))
    child.start()
    peer, _ = socket.recv_multipart()
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(groups):
        peer, _ = socket.recv_multipart()
        socket.send_multipart([peer, b"ack"])
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    socket.send_multipart([peer, b"stop"])
    child.join()
    context.destroy(linger=0)
    return groups / seconds, groups / cpu_seconds


def measure(scratch: Path, groups: int) -> list[Row]:
    """Runs the baseline and the server."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])  # the children would inherit this, so they are given a core of their own
    groups = groups // _GROUPS_PER_STEP * _GROUPS_PER_STEP
    baseline = measure_plain_router(scratch, groups, cores[-1])
    ours = measure_server(scratch, groups, cores[-1])
    name = "groups leased, submitted, acknowledged, entered"
    return [
        Row(f"{name}, per {of}", mine, "groups", f"plain ROUTER {theirs:.0f}", mine / theirs, f">= {_GOAL}",
            mine >= _GOAL)
        for of, mine, theirs in zip(("second", "second of processor time"), ours, baseline, strict=True)
    ]  # fmt: skip


@command()
def main(*, groups: Annotated[int, typer.Option(help="Groups to send.")] = 20_000, as_json: Json = False) -> None:
    run(measure, as_json, groups=groups)


if __name__ == "__main__":
    main()
