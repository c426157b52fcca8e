"""One queue process with hundreds of actors: rate, latency and memory of the learner's server.

    python -m scripts.bench.control_plane [--json] [--actors 512] [--seconds 20]

The actors are simulated: real sockets and messages (hello, lease, submit, heartbeat), in a few processes, with answers
encoded beforehand, 8 of 1,024 tokens a group. Paced, each takes as long for a group as an engine might (exponentially
spread, so that the rate is the same from the start, and with room for stragglers); flat out, none.
The baseline is the same with 8 actors. Server, training thread and ledger are the learner's, in this process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import zmq

from common import sockets, wire
from learner.ledger import Ledger
from learner.queue import WorkQueue
from learner.server import Finished, Server
from scripts.bench.table import Row, report

_K, _TOKENS, _STEP, _STALENESS, _SLOTS, _PROCESSES, _BEAT_S = 8, 1024, 512, 5, 4, 4, 2.0
_START_S = 60.0  # for the processes to come and to go
_PACED_S, _ENOUGH_S = 20.0, 0.5  # of a group; and the latency that would be no burden to an actor
_PLACE = "0" * 12  # where the id of the lease goes in a message encoded beforehand


@dataclass(frozen=True)
class Found:
    groups_s: float
    groups_cpu_s: float  # a second of the queue process's processor time
    submit_s: list[float]  # latencies until acknowledged
    beat_s: list[float]
    grown_mb: float  # of the queue process, at most


def _work(sequence: int) -> wire.Work:
    question = wire.Question(
        index=sequence, messages=[wire.Chat(role="user", content="What is the capital of France?")],
        reference="The capital of France is Paris.", language="en", topics=["geography"], regions=[],
    )  # fmt: skip
    return wire.Work(
        id=f"train-{sequence}", question=question, languages=["en"] * _K, propensities=[1.0] * _K, router_version=0,
        policy_version=0, greedy=False,
    )  # fmt: skip


def _submit() -> list[bytes]:
    """A message in two parts, between which the packed id belongs."""
    rng = np.random.default_rng(0)
    rollout = wire.Rollout(
        language="en", prompt_ids=rng.integers(0, 9999, 32).astype(np.int32),
        response_ids=rng.integers(0, 9999, _TOKENS).astype(np.int32), logprobs=-rng.random(_TOKENS, np.float32),
        versions=np.zeros(_TOKENS, np.int32), truncated=False, text="Paris. " * 500,
        score=wire.Score(reward=0.5, quality=0.5, similarity=0.5, compliant=True, detected="en"),
    )  # fmt: skip
    return wire.encode(wire.Submit(id=_PLACE, rollouts=[rollout] * _K)).split(msgpack.packb(_PLACE))


def _actors(address: str, names: list[str], pace_s: float, told: Any) -> None:
    """Until the server stops them; then puts the latencies of submits and of heartbeats into ``told``."""
    before, after = _submit()
    context, poller = zmq.Context(), zmq.Poller()
    hello = wire.Hello(protocol=wire.PROTOCOL, engine_ranks=1, slots=_SLOTS, transport="group")
    held: dict[Any, dict[str, float]] = {}  # by socket: ids and when they are finished
    beaten: dict[Any, float] = {}
    for name in names:
        socket = sockets.connect(context, address, name)
        socket.send(wire.encode(hello))
        held[socket], beaten[socket] = {}, time.monotonic() + np.random.default_rng().random() * _BEAT_S
        poller.register(socket, zmq.POLLIN)
    sent: dict[str, float] = {}
    submits, beats = list[float](), list[float]()
    stopped = False
    while not stopped:
        now = time.monotonic()
        for socket, _ in poller.poll(5):
            message = msgpack.unpackb(socket.recv())
            if message["kind"] == "leased":
                spread = np.random.default_rng().exponential(1.0, len(message["work"]))
                due = {work["id"]: now + pace_s * x for work, x in zip(message["work"], spread, strict=True)}
                held[socket] |= due
            elif message["kind"] == "ack":
                submits += [time.monotonic() - sent.pop(id) for id in message["accepted"]]
            elif message["kind"] == "alive":
                beats.append(time.monotonic() - (beaten[socket] - _BEAT_S))
            stopped |= message["kind"] == "stop"
        for socket, works in held.items():
            for id in [id for id, due in works.items() if due <= now]:
                del works[id]
                sent[id] = time.monotonic()
                socket.send(before + msgpack.packb(id) + after)
            if beaten[socket] <= now:
                beaten[socket] = now + _BEAT_S
                socket.send(wire.encode(wire.Heartbeat(holding=list(works), seconds={"generate": 1.0})))
    told.put((submits, beats))
    context.destroy(linger=0)


def load(actors: int, pace_s: float, seconds: float) -> Found:
    """Serves so many actors for so long."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(f"tcp://127.0.0.1:{_free_port()}", lease_timeout_s=60)
        queue: WorkQueue[Finished] = WorkQueue(
            groups_per_step=_STEP, staleness=_STALENESS, window=(_STALENESS + 1) * _STEP, attempts=3, total=10**9
        )
        ledger, told = Ledger(Path(scratch) / "ledger.jsonl"), spawn.Queue()
        parts = [[f"actor-{n}" for n in range(first, actors, _PROCESSES)] for first in range(_PROCESSES)]
        children = [
            spawn.Process(target=_actors, args=(server.address, part, pace_s, told), daemon=True)
            for part in parts
            if part
        ]
        for child in children:
            child.start()
        latest = time.monotonic() + _START_S
        while len(server.members()) < actors:
            if time.monotonic() > latest:
                raise SystemExit(f"error: only {len(server.members())} of {actors} actors came")
            time.sleep(0.05)
        server.serve(queue, _work, lambda *_: None)
        me = psutil.Process()
        base, most, done = me.memory_info().rss, 0, 0
        begin, cpu = time.monotonic(), time.process_time()
        server.published(server.members())
        while time.monotonic() < begin + seconds:
            batch = server.take(0.2) or []
            for group in batch:
                ledger.enter(done, group.work.question.index, "trained", done // _STEP, "", group.work)
                done += 1
            most = max(most, me.memory_info().rss)
            if batch:
                ledger.sync()
                server.published(server.members())
        finished = server.counts()["finished"] + done
        spent, cpu = time.monotonic() - begin, time.process_time() - cpu
        server.close()
        results = [told.get(timeout=_START_S) for _ in children]
    submits, beats = ([value for result in results for value in result[which]] for which in (0, 1))
    return Found(finished / spent, finished / cpu, submits, beats, (most - base) / 1e6)


def _free_port() -> int:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as probe:
        return int(probe.bind_to_random_port("tcp://127.0.0.1"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.control_plane", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--actors", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    few, many = load(8, 0, arguments.seconds), load(arguments.actors, 0, arguments.seconds)
    paced = load(arguments.actors, _PACED_S, max(arguments.seconds, 2 * _PACED_S))
    offered = arguments.actors * _SLOTS / _PACED_S
    rows = [
        Row(f"groups a second, {arguments.actors} actors flat out", many.groups_s, "groups",
            f"8 actors {few.groups_s:.0f}", many.groups_s / few.groups_s),
        Row("the same, a second of the queue's processor time", many.groups_cpu_s, "groups",
            f"8 actors {few.groups_cpu_s:.0f}", many.groups_cpu_s / few.groups_cpu_s, ">= 0.8",
            many.groups_cpu_s >= 0.8 * few.groups_cpu_s),
        Row("memory grown, flat out", many.grown_mb, "MB", f"8 actors {few.grown_mb:.0f}", None),
        Row(f"groups a second, {arguments.actors} actors of {_PACED_S:.0f} s a group", paced.groups_s, "groups",
            f"offered {offered:.0f}", paced.groups_s / offered, ">= 0.9", paced.groups_s >= 0.9 * offered),
    ]  # fmt: skip
    for what, values in (("submit to ack", paced.submit_s), ("heartbeat to answer", paced.beat_s)):
        for percent in (50, 99):
            value = float(np.percentile(values, percent)) if values else float("nan")
            goal = f"<= {_ENOUGH_S}" if percent == 99 else None
            rows.append(
                Row(f"{what}, p{percent}, paced", value, "s", goal=goal, ok=value <= _ENOUGH_S if goal else None)
            )
    report("control_plane", rows, arguments.json)


if __name__ == "__main__":
    main()
