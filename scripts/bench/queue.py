"""How many groups per second the learner's server leases, takes, acknowledges and enters in the ledger, on one core.

    python -m scripts.bench.queue [--json] [--groups 45000]

A group has 8 answers of 1,024 tokens, with token ids, log-probabilities and versions. One process plays an actor, and
makes its answers before the measurement begins. The baseline is a plain ROUTER socket that acknowledges the same bytes
without reading them. Both run in turn, again and again, and the medians count.
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
from scripts.bench.support.groups import work
from scripts.bench.table import Json, Row, run
from scripts.ops.command_line import command

K, _TOKENS, _VOCABULARY = 8, 1024, 10_000
_GROUPS_PER_STEP, _SLOTS = 64, 64
_GOAL = 5000  # groups per second
_TURNS = 9  # of the server and of the baseline


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


class OurServer:
    """The learner's server, and what its training thread does but the training, with an actor in another process."""

    def __init__(self, directory: Path, core: int) -> None:
        address = f"ipc://{directory}/queue"
        self._server = WorkServer(address, lease_timeout_s=60)
        self._actor = multiprocessing.get_context("spawn").Process(target=_play_actors, args=(address, core))
        self._actor.start()
        while not self._server.members():
            time.sleep(0.01)
        queue: WorkQueue[Group] = WorkQueue(
            groups_per_step=_GROUPS_PER_STEP, staleness=1, window=_GROUPS_PER_STEP, attempts=3, total=10**9
        )
        limits = Limits(_VOCABULARY, tokens=4096)
        self._server.serve(queue, lambda n: work(n, ["en"] * K), lambda *_: None, limits)
        self._taken = take_groups(self._server, Ledger(directory / "ledger.jsonl"), _GROUPS_PER_STEP)

    def run(self, groups: int) -> tuple[float, float]:
        """Groups that came per second, and per second of processor time, while about so many were taken."""
        before = next(self._taken)
        came_before = before + self._server.counts()["waiting"]
        begin, cpu = time.perf_counter(), time.process_time()
        done = next(done for done in self._taken if done >= before + groups)
        came = done + self._server.counts()["waiting"] - came_before
        return came / (time.perf_counter() - begin), came / (time.process_time() - cpu)

    def close(self) -> None:
        self._server.close()
        self._actor.join()


class PlainRouter:
    """The baseline: a ROUTER that acknowledges without reading."""

    def __init__(self, directory: Path, core: int) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        address = f"ipc://{directory}/plain"
        self._socket = sockets.bind(self._context, address)
        self._sender = multiprocessing.get_context("spawn").Process(target=_send_unread, args=(address, core))
        self._sender.start()
        self._peer, _ = self._socket.recv_multipart()
        self._socket.send_multipart([self._peer, b"ack"])

    def run(self, groups: int) -> tuple[float, float]:
        """Messages per second, and per second of processor time."""
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(groups):
            peer, _ = self._socket.recv_multipart()
            self._socket.send_multipart([peer, b"ack"])
        return groups / (time.perf_counter() - begin), groups / (time.process_time() - cpu)

    def close(self) -> None:
        self._socket.send_multipart([self._peer, b"stop"])
        self._sender.join()
        self._context.destroy(linger=0)


def measure(scratch: Path, groups: int) -> list[Row]:
    """Runs the server and the baseline in turn, all threads of both on one core."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])  # the children would inherit this, so they are given a core of their own
    ours, plain = OurServer(scratch, cores[-1]), PlainRouter(scratch, cores[-1])
    ours.run(_GROUPS_PER_STEP)  # what happens once at the beginning does not count
    turns = [(ours.run(groups // _TURNS), plain.run(groups // _TURNS)) for _ in range(_TURNS)]
    ours.close()
    plain.close()
    mine, theirs = (np.median([turn[which] for turn in turns], axis=0).tolist() for which in (0, 1))
    name = "groups leased, submitted, acknowledged, entered"
    return [
        Row(f"{name}, per {of}, median of {_TURNS}", my, "groups", f"plain ROUTER {their:.0f}", my / their,
            f">= {_GOAL}", my >= _GOAL)
        for of, my, their in zip(("second", "second of processor time"), mine, theirs, strict=True)
    ]  # fmt: skip


@command()
def main(
    *,
    groups: Annotated[int, typer.Option(min=_TURNS, help="Groups in all turns together.")] = 45_000,
    as_json: Json = False,
) -> None:
    run(measure, as_json, groups=groups)


if __name__ == "__main__":
    main()
