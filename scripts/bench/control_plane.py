"""One queue process with hundreds of actors: rate, latency and memory of the learner's server.

    python -m scripts.bench.control_plane [--json] [--actors 512] [--seconds 20]

The actors are simulated: real sockets and messages (hello, lease, submit, heartbeat), in a few processes, with answers
encoded beforehand, 8 of 1,024 tokens a group. Paced, each takes as long for a group as an engine might (exponentially
spread, so that the rate is the same from the start, and with room for stragglers); flat out, none.
The baseline is the same with 8 actors. Server, training thread and ledger are the learner's, in this process.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgpack
import numpy as np
import psutil
import typer
import zmq

from common import wire
from common.net import sockets
from common.net.ports import reserve_port
from common.process import FatalError
from learner.groups import Group
from learner.work.ledger import Ledger
from learner.work.scheduler import WorkQueue
from learner.work.server import Server
from scripts.bench.queue import K, answers, entered
from scripts.bench.table import Json, Row, run
from scripts.ops.command_line import command
from tests.support.groups import work

_STEP, _STALENESS, _SLOTS, _PROCESSES, _BEAT_S = 512, 5, 4, 4, 2.0
_START_S = 60.0  # for the processes to come and to go
_PACED_S, _ENOUGH_S = 20.0, 0.5  # of a group; and the latency that would be no burden to an actor
_PLACE = "0" * 12  # stands for the id of the lease in a message encoded beforehand, and parts it


@dataclass(frozen=True)
class Found:
    groups_s: float
    groups_cpu_s: float  # a second of the queue process's processor time
    submit_s: list[float]  # latencies until acknowledged
    beat_s: list[float]
    grown_mb: float  # of the queue process, at most


def _actors(address: str, names: list[str], pace_s: float, told: Any) -> None:
    """Until the server stops them; then puts the latencies of submits and of heartbeats into ``told``."""
    before, after = wire.encode(wire.Submit(id=_PLACE, rollouts=answers("Paris. " * 500))).split(msgpack.packb(_PLACE))
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


def load(scratch: Path, actors: int, pace_s: float, seconds: float) -> Found:
    """Serves so many actors for so long."""
    spawn = multiprocessing.get_context("spawn")
    with reserve_port() as holder:
        server = Server(f"tcp://127.0.0.1:{holder.getsockname()[1]}", lease_timeout_s=60)
    ledger = Ledger(Path(tempfile.mkdtemp(dir=scratch)) / "ledger.jsonl")
    queue: WorkQueue[Group] = WorkQueue(
        groups_per_step=_STEP, staleness=_STALENESS, window=(_STALENESS + 1) * _STEP, attempts=3, total=10**9
    )
    told, names = spawn.Queue(), [f"actor-{n}" for n in range(actors)]
    parts = [names[first::_PROCESSES] for first in range(min(_PROCESSES, actors))]
    for part in parts:
        spawn.Process(target=_actors, args=(server.address, part, pace_s, told), daemon=True).start()
    latest = time.monotonic() + _START_S
    while len(server.members()) < actors:
        if time.monotonic() > latest:
            raise FatalError(f"only {len(server.members())} of {actors} actors came")
        time.sleep(0.05)
    server.serve(queue, lambda n: work(n, ["en"] * K), lambda *_: None)
    me = psutil.Process()
    base, most, done = me.memory_info().rss, 0, 0
    begin, cpu = time.monotonic(), time.process_time()
    for number in entered(server, ledger, _STEP):
        done, most = number, max(most, me.memory_info().rss)
        if time.monotonic() > begin + seconds:
            break
    finished = server.counts()["finished"] + done
    spent, cpu = time.monotonic() - begin, time.process_time() - cpu
    server.close()
    results = [told.get(timeout=_START_S) for _ in parts]
    submits, beats = ([value for result in results for value in result[which]] for which in (0, 1))
    return Found(finished / spent, finished / cpu, submits, beats, (most - base) / 1e6)


def measure(scratch: Path, actors: int, seconds: float) -> list[Row]:
    few, many = load(scratch, 8, 0, seconds), load(scratch, actors, 0, seconds)
    paced = load(scratch, actors, _PACED_S, max(seconds, 2 * _PACED_S))
    offered = actors * _SLOTS / _PACED_S
    rows = [
        Row(f"groups a second, {actors} actors flat out", many.groups_s, "groups", f"8 actors {few.groups_s:.0f}",
            many.groups_s / few.groups_s),
        Row("the same, a second of the queue's processor time", many.groups_cpu_s, "groups",
            f"8 actors {few.groups_cpu_s:.0f}", many.groups_cpu_s / few.groups_cpu_s, ">= 0.8",
            many.groups_cpu_s >= 0.8 * few.groups_cpu_s),
        Row("memory grown, flat out", many.grown_mb, "MB", f"8 actors {few.grown_mb:.0f}", None),
        Row(f"groups a second, {actors} actors of {_PACED_S:.0f} s a group", paced.groups_s, "groups",
            f"offered {offered:.0f}", paced.groups_s / offered, ">= 0.9", paced.groups_s >= 0.9 * offered),
    ]  # fmt: skip
    for what, values in (("submit to ack", paced.submit_s), ("heartbeat to answer", paced.beat_s)):
        middle, most = np.percentile(values, [50, 99]).tolist() if values else [math.nan] * 2
        rows.append(Row(f"{what}, p50, paced", middle, "s"))
        rows.append(Row(f"{what}, p99, paced", most, "s", goal=f"<= {_ENOUGH_S}", ok=most <= _ENOUGH_S))
    return rows


@command()
def main(
    *,
    actors: Annotated[int, typer.Option(help="Number of simulated actors.")] = 512,
    seconds: Annotated[float, typer.Option(help="Length of each measurement.")] = 20.0,
    as_json: Json = False,
) -> None:
    run(measure, as_json, actors=actors, seconds=seconds)


if __name__ == "__main__":
    main()
