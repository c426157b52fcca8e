"""How many groups a second the learner's server leases, takes, acknowledges and enters in the ledger, on one core.

    python -m scripts.bench.queue [--json] [--groups 20000]

A group has 8 answers of 1,024 tokens: ids, log-probabilities and versions. The actors are one process of their own and
send answers they encoded beforehand; the baseline is a bare ROUTER that acknowledges the same bytes unread.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from common import sockets, wire
from learner.admission import Limits
from learner.ledger import Ledger
from learner.queue import WorkQueue
from learner.server import Finished, Server
from scripts.bench.table import Row, report

_K, _TOKENS, _STEP, _IN_FLIGHT, _GOAL = 8, 1024, 64, 64, 5000


def _work(sequence: int) -> wire.Work:
    question = wire.Question(
        index=sequence, messages=[wire.Chat(role="user", content="What is the capital of France?")], language="en",
        reference="The capital of France is Paris.", topics=["geography"], regions=[],
    )  # fmt: skip
    return wire.Work(
        id=f"train-{sequence}", question=question, languages=["en"] * _K, propensities=[1.0] * _K, router_version=0,
        policy_version=0, greedy=False,
    )  # fmt: skip


def _answer(rng: np.random.Generator) -> wire.Rollout:
    return wire.Rollout(
        language="en", prompt_ids=rng.integers(0, 9999, 32, np.int32), text="Paris.", truncated=False,
        response_ids=rng.integers(0, 9999, _TOKENS, np.int32), logprobs=-rng.random(_TOKENS, np.float32),
        versions=np.zeros(_TOKENS, np.int32),
        score=wire.Score(reward=0.5, quality=0.5, similarity=0.5, compliant=True, detected="en"),
    )  # fmt: skip


def _answers() -> list[wire.Rollout]:
    rng = np.random.default_rng(0)
    return [_answer(rng) for _ in range(_K)]


def _actor(address: str, core: int) -> None:
    os.sched_setaffinity(0, {core})
    rollouts = _answers()
    socket = sockets.connect(zmq.Context(), address, "a")
    socket.send(wire.encode(wire.Hello(protocol=wire.PROTOCOL, engine_ranks=1, slots=_IN_FLIGHT, transport="group")))
    while not isinstance(message := wire.decode(socket.recv()), wire.Stop):
        if isinstance(message, wire.Leased):
            for work in message.work:
                socket.send(wire.encode(wire.Submit(id=work.id, rollouts=rollouts)))


def _bare(address: str, core: int) -> None:
    os.sched_setaffinity(0, {core})
    data = wire.encode(wire.Submit(id="0:train-0", rollouts=_answers()))
    socket = sockets.connect(zmq.Context(), address, "a")
    for _ in range(_IN_FLIGHT):
        socket.send(data)
    while socket.recv() != b"stop":
        socket.send(data)


def _cores() -> tuple[int, int]:
    """One for the server, another for the actor: a child would inherit the server's alone."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[0], cores[-1]


def served(directory: Path, groups: int, core: int) -> tuple[float, float]:
    """Groups a second, and a second of processor time, through the server, all its threads on one core."""
    address = f"ipc://{directory}/queue"
    server = Server(address, lease_timeout_s=60)
    child = multiprocessing.get_context("spawn").Process(target=_actor, args=(address, core))
    child.start()
    while not server.members():
        time.sleep(0.01)
    queue: WorkQueue[Finished] = WorkQueue(groups_per_step=_STEP, staleness=1, window=_STEP, attempts=3, total=groups)
    ledger = Ledger(directory / "ledger.jsonl")
    server.serve(queue, _work, lambda *_: None, Limits(vocabulary=10_000, tokens=4096))
    begin, cpu, done = time.perf_counter(), time.process_time(), 0
    server.published(server.members())
    while done < groups:
        batch = server.take(1.0)
        if batch is None:
            continue
        for group in batch:
            ledger.enter(done, group.work.question.index, "trained", done // _STEP, "", group.work)
            done += 1
        ledger.sync()
        server.published(server.members())
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.queue", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--groups", type=int, default=20_000)
    arguments = parser.parse_args()
    server_core, actor_core = _cores()
    os.sched_setaffinity(0, {server_core})
    groups = arguments.groups // _STEP * _STEP
    with tempfile.TemporaryDirectory() as scratch:
        baseline = bare(Path(scratch), groups, actor_core)
        ours = served(Path(scratch), groups, actor_core)
    name = "groups leased, submitted, acknowledged, entered"
    rows = [
        Row(f"{name}, a {of}", mine, "groups", f"bare ROUTER {theirs:.0f}", mine / theirs, f">= {_GOAL}", mine >= _GOAL)
        for of, mine, theirs in zip(("second", "second of processor time"), ours, baseline, strict=True)
    ]
    report("queue", rows, arguments.json)


if __name__ == "__main__":
    main()
