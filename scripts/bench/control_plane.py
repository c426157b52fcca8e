"""Rate, latency and memory of the learner's server with hundreds of actors, and what it makes of those that lie.

    python -m scripts.bench.control_plane [--json] [--actors 512] [--seconds 20]

The actors are simulated: they have real sockets and send real messages (hello, submit, heartbeat) from a few processes.
Their answers, 8 of 1,024 tokens in each group, are encoded before the measurement begins. In the runs called "flat out"
they answer every lease at once. In the run called "paced" each group takes as long as an engine might take, drawn from
an exponential distribution, so that the rate is even from the start; the staleness leaves room for the slowest groups.
The baseline is the same with 8 actors. At last as many actors join, leave and lie: ``scripts/bench/membership.py``.
The server, the training thread and the ledger are the learner's own, and run in this process.
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
from common.config import HEARTBEAT_S
from common.net import sockets
from common.net.ports import reserve_port
from common.process import FatalError
from learner.groups import Group
from learner.work.ledger import Ledger
from learner.work.scheduler import WorkQueue
from learner.work.server import WorkServer
from scripts.bench import membership
from scripts.bench.queue import K, make_rollouts, take_groups
from scripts.bench.support.groups import work
from scripts.bench.table import Json, Row, run
from scripts.ops.command_line import command

_GROUPS_PER_STEP, _STALENESS = 512, 5
_SLOTS = 4  # leases of an actor
_PROCESSES = 4
_START_S = 60.0  # how long the processes may take to start and to end
_PACED_S = 20.0  # mean duration of a group in the paced run
_LATENCY_GOAL_S = 0.5  # a latency that would not hold up an actor
# These stand for the id of the lease and for the two lives in the message that is encoded beforehand.
_LEASE, _LIVES = "0" * 12, wire.Lives("1" * 12, "2" * 12)


@dataclass(frozen=True)
class Measurement:
    """What was measured with one number of actors."""

    groups_s: float  # groups per second
    groups_cpu_s: float  # groups per second of processor time of this process
    submit_s: list[float]  # seconds from each submit to its acknowledgement
    heartbeat_s: list[float]  # seconds from each heartbeat to its answer
    grown_mb: float  # by how much the memory of this process has grown at most


def _play_actors(address: str, names: list[str], pace_s: float, results: Any) -> None:
    """Plays actors until the server stops them, then puts the latencies of submits and heartbeats into ``results``."""
    submit = wire.encode(wire.Submit(id=_LEASE, rollouts=make_rollouts("Paris. " * 500)).of(_LIVES))
    submit_of: dict[Any, bytes] = {}  # the same, with the lives of each socket
    context, poller = zmq.Context(), zmq.Poller()
    lives: dict[Any, wire.Lives] = {}  # of each socket, once it is welcome
    held: dict[Any, dict[str, float]] = {}  # of each socket: when the group of each lease will be finished
    next_heartbeat: dict[Any, float] = {}
    for name in names:
        socket = sockets.connect(context, address, name)
        hello = wire.Hello(protocol=wire.PROTOCOL, engine_ranks=1, slots=_SLOTS, transport="group", name=name)
        socket.send(wire.encode(hello.of(wire.Lives(name, ""))))
        held[socket] = {}
        next_heartbeat[socket] = time.monotonic() + np.random.default_rng().random() * HEARTBEAT_S
        poller.register(socket, zmq.POLLIN)
    sent: dict[str, float] = {}  # when the answer to each lease was sent
    submits, heartbeats = list[float](), list[float]()
    stopped = False
    while not stopped:
        now = time.monotonic()
        for socket, _ in poller.poll(5):
            message = msgpack.unpackb(socket.recv())
            if message["kind"] == "welcome":
                lives[socket] = wire.Lives(message["actor_life"], message["learner_life"])
                submit_of[socket] = submit
                for placeholder, life in zip(_LIVES, lives[socket], strict=True):
                    submit_of[socket] = submit_of[socket].replace(msgpack.packb(placeholder), msgpack.packb(life))
            elif message["kind"] == "leased":
                durations = pace_s * np.random.default_rng().exponential(1.0, len(message["work"]))
                held[socket] |= {work["id"]: now + x for work, x in zip(message["work"], durations, strict=True)}
            elif message["kind"] == "ack":
                submits += [time.monotonic() - sent.pop(lease) for lease in message["accepted"]]
            elif message["kind"] == "alive":
                heartbeats.append(time.monotonic() - (next_heartbeat[socket] - HEARTBEAT_S))
            stopped |= message["kind"] == "stop"
        for socket, leases in held.items():
            for lease in [lease for lease, finished in leases.items() if finished <= now]:
                del leases[lease]
                sent[lease] = time.monotonic()
                socket.send(submit_of[socket].replace(msgpack.packb(_LEASE), msgpack.packb(lease), 1))
            if socket in lives and next_heartbeat[socket] <= now:
                next_heartbeat[socket] = now + HEARTBEAT_S
                beat = wire.Heartbeat(holding=list(leases), seconds={"generate": 1.0}).of(lives[socket])
                socket.send(wire.encode(beat))
    results.put((submits, heartbeats))
    context.destroy(linger=0)


def serve_actors(scratch: Path, actors: int, pace_s: float, seconds: float) -> Measurement:
    """Serves this many actors for this long, and measures it.

    Raises:
        FatalError: not all actors came in time.
    """
    spawn = multiprocessing.get_context("spawn")
    with reserve_port() as holder:
        server = WorkServer(f"tcp://127.0.0.1:{holder.getsockname()[1]}", lease_timeout_s=60)
    ledger = Ledger(Path(tempfile.mkdtemp(dir=scratch)) / "ledger.jsonl")
    queue: WorkQueue[Group] = WorkQueue(
        groups_per_step=_GROUPS_PER_STEP, staleness=_STALENESS, window=(_STALENESS + 1) * _GROUPS_PER_STEP,
        attempts=3, total=10**9,
    )  # fmt: skip
    results, names = spawn.Queue(), [f"actor-{n}" for n in range(actors)]
    parts = [names[first::_PROCESSES] for first in range(min(_PROCESSES, actors))]
    for part in parts:
        spawn.Process(target=_play_actors, args=(server.address, part, pace_s, results), daemon=True).start()
    deadline = time.monotonic() + _START_S
    while len(server.members()) < actors:
        if time.monotonic() > deadline:
            raise FatalError(f"only {len(server.members())} of {actors} actors came")
        time.sleep(0.05)
    server.serve(queue, lambda n: work(n, ["en"] * K), lambda *_: None)
    process = psutil.Process()
    memory_before, done = process.memory_info().rss, 0
    memory_most = 0
    begin, cpu = time.monotonic(), time.process_time()
    for number in take_groups(server, ledger, _GROUPS_PER_STEP):
        done, memory_most = number, max(memory_most, process.memory_info().rss)
        if time.monotonic() > begin + seconds:
            break
    finished = server.counts()["waiting"] + done
    spent, cpu = time.monotonic() - begin, time.process_time() - cpu
    server.close()
    latencies = [results.get(timeout=_START_S) for _ in parts]
    submits, heartbeats = ([value for part in latencies for value in part[which]] for which in (0, 1))
    grown_mb = (memory_most - memory_before) / 1e6
    return Measurement(finished / spent, finished / cpu, submits, heartbeats, grown_mb)


def measure(scratch: Path, actors: int, seconds: float) -> list[Row]:
    """Runs the baseline, all actors flat out, all actors paced, and actors that join, leave and lie."""
    few, many = serve_actors(scratch, 8, 0, seconds), serve_actors(scratch, actors, 0, seconds)
    paced = serve_actors(scratch, actors, _PACED_S, max(seconds, 2 * _PACED_S))
    offered = actors * _SLOTS / _PACED_S
    rows = [
        Row(f"groups per second, {actors} actors flat out", many.groups_s, "groups", f"8 actors {few.groups_s:.0f}",
            many.groups_s / few.groups_s),
        Row("the same, per second of the server's processor time", many.groups_cpu_s, "groups",
            f"8 actors {few.groups_cpu_s:.0f}", many.groups_cpu_s / few.groups_cpu_s, ">= 0.8",
            many.groups_cpu_s >= 0.8 * few.groups_cpu_s),
        Row("growth of memory, flat out", many.grown_mb, "MB", f"8 actors {few.grown_mb:.0f}", None),
        Row(f"groups per second, {actors} actors, {_PACED_S:.0f} s for a group", paced.groups_s, "groups",
            f"offered {offered:.0f}", paced.groups_s / offered, ">= 0.9", paced.groups_s >= 0.9 * offered),
    ]  # fmt: skip
    for what, values in (("submit to acknowledgement", paced.submit_s), ("heartbeat to answer", paced.heartbeat_s)):
        median, high = np.percentile(values, [50, 99]).tolist() if values else [math.nan] * 2
        rows.append(Row(f"{what}, p50, paced", median, "s"))
        rows.append(Row(f"{what}, p99, paced", high, "s", goal=f"<= {_LATENCY_GOAL_S}", ok=high <= _LATENCY_GOAL_S))
    return rows + membership.rows(scratch, actors, max(seconds, 2 * _PACED_S))


@command()
def main(
    *,
    actors: Annotated[int, typer.Option(min=1, help="Number of simulated actors.")] = 512,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each measurement.")] = 20.0,
    as_json: Json = False,
) -> None:
    run(measure, as_json, actors=actors, seconds=seconds)


if __name__ == "__main__":
    main()
