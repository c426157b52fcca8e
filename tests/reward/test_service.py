"""The reward service and its client, under good messages and bad ones, load, and killed replicas."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
import zmq.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from actor import scoring
from actor.scoring import Scoring, ScoringError
from common.config import RewardConfig, RunConfig
from common.net import rendezvous
from common.net.rendezvous import Route
from common.net.sockets import bind, connect
from common.process import FatalError
from common.wire import Health, Healthy, Heartbeat, Score, ScoreReply, ScoreRequest, decode, encode
from reward.batching import each_or_error
from reward.scored import ScoredAnswer
from reward.service import Service
from scripts.bench.support.scoring import request
from tests.support.groups import question
from tests.support.pace import Pace
from tests.support.scorers import FunctionScorer, ScoreBatch

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 400  # of all that should come: a busy machine takes long to start a process
GOOD = Score(reward=1, quality=1, similarity=1, compliant=True, detected="en")


@settings(max_examples=50)
@given(st.lists(st.booleans(), max_size=20))
def test_a_bad_request_harms_no_other(bad: list[bool]) -> None:
    def score(batch: Sequence[ScoreRequest]) -> list[list[Score]]:
        if any(bad[entry.id] for entry in batch):
            raise RuntimeError("poison" * 1000)
        return [[GOOD] * entry.id for entry in batch]

    results = each_or_error(score, [request([], [], id=index) for index in range(len(bad))])
    for index, (result, is_bad) in enumerate(zip(results, bad, strict=True)):
        if is_bad:
            assert isinstance(result, RuntimeError)
        else:
            assert result == [GOOD] * index


# --- service ------------------------------------------------------------------------------------------------------


class _Enough(BaseException):
    """Ends a service's ``run``, as an interrupt would."""


@contextmanager
def serving(address: str, config: RewardConfig) -> Iterator[Callable[[ScoreBatch], None]]:
    """A service that takes messages, and scores them once it is given a function."""
    ended = threading.Event()
    with zmq.Context() as context, bind(context, address) as socket:
        service = Service(context, socket, config)

        def start(score: ScoreBatch) -> None:
            def until_ended(batch: Sequence[ScoreRequest]) -> list[list[Score]]:
                if ended.is_set():
                    raise _Enough
                return score(batch)

            def run() -> None:
                with pytest.raises(_Enough):
                    service.run(FunctionScorer(until_ended))

            threads.append(threading.Thread(target=run))
            threads[-1].start()

        threads: list[threading.Thread] = []
        try:
            yield start
        finally:
            ended.set()
            if threads:
                with connect(context, address) as last:
                    last.send(encode(request([], [])))
                    threads[0].join(_PATIENCE_S)
            service.close()


def replies(socket: Any, count: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(count):
        assert socket.poll(1000 * _PATIENCE_S), f"only {len(found)} of {count} replies"
        found.append(decode(socket.recv()))
    return found


def health(socket: Any) -> Healthy:
    socket.send(encode(Health()))
    (found,) = replies(socket, 1)
    assert isinstance(found, Healthy)
    return found


def test_queued_requests_are_merged_up_to_the_batch_size(tmp_path: Path) -> None:
    sizes: list[int] = []

    def score(batch: Sequence[ScoreRequest]) -> list[list[Score]]:
        sizes.append(len(batch))
        return [[] for _ in batch]

    address = f"ipc://{tmp_path}/reward"
    with (
        serving(address, RewardConfig(batch_texts=8, batch_window_ms=0)) as start,
        zmq.Context() as context,
        connect(context, address) as socket,
    ):
        for index in range(5):
            socket.send(encode(request(["a"] * 3, ["en"] * 3, id=index)))
        waiting = health(socket)
        assert not waiting.ready and waiting.queued == 20, "answered before anything is loaded"
        start(score)
        assert [reply.id for reply in replies(socket, 5)] == list(range(5))
    assert sizes[:3] == [2, 2, 1]


def test_a_request_whose_scoring_is_cancelled_is_answered(tmp_path: Path) -> None:
    class Cancelling(FunctionScorer):
        def begin(self, requests: Sequence[ScoreRequest]) -> list[Future[list[ScoredAnswer]]]:
            futures: list[Future[list[ScoredAnswer]]] = [Future() for _ in requests]
            assert all(future.cancel() for future in futures)
            return futures

        def check(self) -> None:
            if ended.is_set():
                raise FatalError("enough")

    ended, address = threading.Event(), f"ipc://{tmp_path}/reward"
    with zmq.Context() as context, bind(context, address) as socket, connect(context, address) as client_socket:
        service = Service(context, socket, RewardConfig())

        def run() -> None:
            with pytest.raises(FatalError, match="enough"):
                service.run(Cancelling(lambda _: []))

        thread = threading.Thread(target=run)
        thread.start()
        client_socket.send(encode(request(["a"], ["en"], id=5)))
        (reply,) = replies(client_socket, 1)
        ended.set()
        thread.join(_PATIENCE_S)
        service.close()
    assert (reply.id, reply.later) == (5, True) and "cancelled" in reply.error


def test_the_queue_is_bounded_and_forgets_what_nobody_waits_for(tmp_path: Path) -> None:
    go, scored = threading.Event(), list[int]()

    def score(batch: Sequence[ScoreRequest]) -> list[list[Score]]:
        assert go.wait(_PATIENCE_S)
        scored.extend(entry.id for entry in batch)
        return [[GOOD] * len(entry.answers) for entry in batch]

    address = f"ipc://{tmp_path}/reward"
    with (
        serving(address, RewardConfig(batch_texts=1, queue_texts=20)) as start,
        zmq.Context() as context,
        connect(context, address) as socket,
    ):
        start(score)
        socket.send(encode(request(["a"], ["en"], id=0)))  # is being scored, until told to go on
        while health(socket).queued:
            time.sleep(0.01)
        for index in range(1, 101):
            deadline = 0.0 if index == 3 else 60.0
            socket.send(encode(request(["a"], ["en"], id=index, deadline_s=deadline)))
        refused = replies(socket, 90)
        assert all(reply.full and not reply.scores for reply in refused)
        assert [reply.id for reply in refused] == list(range(11, 101))
        assert health(socket).queued == 20
        go.set()
        served = replies(socket, 10)
        assert [reply.id for reply in served] == scored == [0, 1, 2, *range(4, 11)]
        assert all(not reply.full and reply.scores == [GOOD] for reply in served)
        counts = health(socket).counts
        assert (counts["full"], counts["late"], counts["scored"]) == (90, 1, 10)
        socket.send(encode(request(["a"] * 50, ["en"] * 50, id=200)))  # larger than the queue, but alone in it
        assert len(replies(socket, 1)[0].scores) == 50


def malformed(generator: random.Random) -> list[bytes]:
    """Noise, cut and damaged messages, wrong types, kinds that do not belong here, and wrong numbers of frames."""
    good = encode(request(["a", "b"], ["en", "de"]))
    place = generator.randrange(len(good))
    fields = msgpack.unpackb(good)
    fields[generator.choice(list(fields))] = generator.choice([None, {}, [[]], b"\xff", -1.5, {"a": 1}])
    return generator.choice(
        [
            [generator.randbytes(generator.randrange(60))],
            [good[:place]],
            [good + b"\x00"],
            [msgpack.packb(fields)],
            [encode(Heartbeat(holding=[], seconds={}))],
            [encode(ScoreReply(id=1, scores=[], error="", busy_s=0, waiting_s=0))],
            [b"\xdd\xff\xff\xff\xff"],  # an array of four billion
            [b"\x81" * 2000],  # nested deeper than any reader goes
            [good, good],
        ]
    )


@pytest.mark.parametrize("sent", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_flood_of_malformed_messages_is_refused(
    sent: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    address, generator = f"ipc://{tmp_path}/reward", random.Random(seed)
    pool = [frames for _ in range(2000) if not _valid(frames := malformed(generator))]
    with (
        caplog.at_level(logging.WARNING),
        serving(address, RewardConfig()) as start,
        zmq.Context() as context,
        connect(context, address, "bad") as bad,
        connect(context, address, "good") as good,
    ):
        start(lambda batch: [[GOOD] * len(entry.answers) for entry in batch])
        for number in range(sent):
            bad.send_multipart(generator.choice(pool))
            if number % 1000 == 0:
                good.send(encode(request(["a"], ["en"], id=number)))
        served = replies(good, sent // 1000)
        assert [reply.scores for reply in served] == [[GOOD]] * (sent // 1000)
        deadline = time.monotonic() + _PATIENCE_S
        while (refused := health(good).counts.get("refused", 0)) < sent and time.monotonic() < deadline:
            time.sleep(0.1)
        assert refused == sent
        told: list[Any] = [decode(bad.recv()) for _ in iter(lambda: bad.poll(100), 0)]
        assert {(type(reply), *reply.scores, reply.later) for reply in told} == {(ScoreReply, True)}, "and only those"
        assert all("another version than the actor" in reply.error for reply in told)
    assert len(caplog.records) < 20, "a flood must not fill the disk"


def test_a_request_of_another_version_is_answered_with_the_reason(tmp_path: Path) -> None:
    """Silence would look as if the replica were dead."""
    address = f"ipc://{tmp_path}/reward"
    newer = {**msgpack.unpackb(encode(request(["a"], ["en"], id=7))), "verifier": "of tomorrow"}
    older = {key: value for key, value in newer.items() if key not in ("verifier", "reference_language")}
    with serving(address, RewardConfig()), zmq.Context() as context, connect(context, address) as socket:
        for fields in (newer, older):
            socket.send(msgpack.packb(fields))
            (reply,) = replies(socket, 1)
            assert (reply.id, reply.scores, reply.later) == (7, [], True)
            assert "another version" in reply.error
        assert health(socket).counts["refused"] == 2


def _valid(frames: list[bytes]) -> bool:
    try:
        return len(frames) == 1 and isinstance(decode(frames[0]), (ScoreRequest, Health))
    except ValueError:
        return False


# --- client -------------------------------------------------------------------------------------------------------

# A replica without models in a process of its own, which can be killed. Its arguments are those of `replica`.
REPLICA = """
import sys, time, zmq
from common.config import RewardConfig
from common.net.sockets import bind
from common.wire import Score
from reward.service import Service
from tests.support.scorers import FunctionScorer
good = Score(reward=1, quality=1, similarity=1, compliant=True, detected="en")
def score(batch):
    time.sleep(float(sys.argv[2]))
    if any(entry.reference == "poison" for entry in batch):
        raise ValueError("poison")
    return [[good] * len(entry.answers) for entry in batch]
with zmq.Context() as context, bind(context, sys.argv[1]) as socket:
    Service(context, socket, RewardConfig(batch_texts=16, queue_texts=int(sys.argv[3]))).run(FunctionScorer(score))
"""


@contextmanager
def replica(address: str, seconds: float = 0.02, queue: int = 10_000) -> Iterator[None]:
    """A replica in a thread: scores 1 after some seconds, and refuses the reference "poison"."""

    def score(batch: Sequence[ScoreRequest]) -> list[list[Score]]:
        time.sleep(seconds)
        if any(entry.reference == "poison" for entry in batch):
            raise ValueError("poison")
        return [[GOOD] * len(entry.answers) for entry in batch]

    with serving(address, RewardConfig(batch_texts=16, queue_texts=queue)) as start:
        start(score)
        yield


@contextmanager
def process_replica(address: str, seconds: float = 0.02, queue: int = 10_000) -> Iterator[subprocess.Popen[bytes]]:
    """The same in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", REPLICA, address, str(seconds), str(queue)], cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def client(body: Any, config: RewardConfig) -> Any:
    """Runs ``body(scoring)`` beside the scoring's own task."""

    async def run() -> Any:
        context = zmq.asyncio.Context()
        routes = [Route(RunConfig(), f"reward-{n}", address, 0) for n, address in enumerate(config.addresses)]
        one = Scoring(context, config.request_timeout_s, routes)
        listening = asyncio.create_task(one.listen())
        try:
            return await body(one)
        finally:
            listening.cancel()
            context.destroy(linger=0)

    return asyncio.run(run())


async def all_alive(one: Scoring) -> None:
    while not all(replica.life for replica in one.replicas):
        await asyncio.sleep(0.05)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_HEALTH_S", 0.1)
    monkeypatch.setattr(scoring, "_SILENCE_S", 0.6)


def addresses(tmp_path: Path, count: int = 2) -> tuple[str, ...]:
    return tuple(f"ipc://{tmp_path}/reward-{number}" for number in range(count))


@pytest.mark.usefixtures("impatient")
def test_a_replica_killed_under_load_loses_no_group(tmp_path: Path) -> None:
    first, second = addresses(tmp_path)

    async def body(one: Scoring) -> list[Any]:
        await all_alive(one)
        groups = [asyncio.create_task(one.score(question(), ["a"] * 8, ["en"] * 8, [])) for _ in range(150)]
        await asyncio.wait(groups[:40], return_when=asyncio.ALL_COMPLETED)
        assert not all(group.done() for group in groups)
        process.kill()
        return await asyncio.gather(*groups)

    with process_replica(first) as process, replica(second):
        found = client(body, RewardConfig(addresses=(first, second), request_timeout_s=_PATIENCE_S))
    assert found == [[GOOD] * 8] * 150


def test_replicas_share_requests_that_come_one_by_one(tmp_path: Path) -> None:
    first, second = addresses(tmp_path)
    counts = [0, 0]

    def counting(number: int) -> ScoreBatch:
        def score(batch: Sequence[ScoreRequest]) -> list[list[Score]]:
            counts[number] += len(batch)
            return [[GOOD] * len(entry.answers) for entry in batch]

        return score

    async def body(one: Scoring) -> None:
        await all_alive(one)
        for _ in range(20):
            assert await one.score(question(), ["a"], ["en"], []) == [GOOD]

    with serving(first, RewardConfig()) as start_first, serving(second, RewardConfig()) as start_second:
        start_first(counting(0))
        start_second(counting(1))
        client(body, RewardConfig(addresses=(first, second), request_timeout_s=_PATIENCE_S))
    assert sum(counts) >= 20 and min(counts) >= 8, counts


def test_the_time_of_all_replicas_is_told_together_and_never_falls(tmp_path: Path) -> None:
    first, second = addresses(tmp_path)
    told: list[dict[str, float]] = []

    async def score(one: Scoring) -> None:
        await one.score(question(), ["a"], ["en"], [])
        told.append(one.seconds)

    async def body(one: Scoring) -> None:
        await score(one)
        with replica(second):  # has less to tell than the first one
            while not one.replicas[1].life:
                await asyncio.sleep(0.05)
            for _ in range(5):
                await asyncio.gather(score(one), score(one))

    with replica(first):
        client(body, RewardConfig(addresses=(first, second), request_timeout_s=_PATIENCE_S))
    for before, after in pairwise(told):
        assert all(after[state] >= spent for state, spent in before.items())


@pytest.mark.usefixtures("impatient")
def test_the_time_of_a_replica_that_starts_again_goes_on(tmp_path: Path) -> None:
    (address,) = addresses(tmp_path, 1)
    told: list[dict[str, float]] = []

    async def score(one: Scoring) -> None:
        await one.score(question(), ["a"], ["en"], [])
        told.append(one.seconds)

    async def body(one: Scoring) -> None:
        with replica(address, seconds=1.0):
            await score(one)
            life = one.replicas[0].life
        with replica(address, seconds=0.1):
            while one.replicas[0].life == life:
                await asyncio.sleep(0.05)
            await score(one)
            await score(one)

    client(body, RewardConfig(addresses=(address,), request_timeout_s=_PATIENCE_S))
    for before, after in pairwise(told):
        assert after["reward_busy"] - before["reward_busy"] >= 0.09, told


def test_a_stopped_replica_costs_no_group_and_little_time(tmp_path: Path) -> None:
    first, second = addresses(tmp_path)
    before, after = list[float](), list[float]()

    async def ask_for(one: Scoring, seconds: float, latencies: list[float]) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            assert await one.score(question(), ["a"] * 8, ["en"] * 8, []) == [GOOD] * 8
            latencies.append(time.monotonic() - began)
            await asyncio.sleep(0.05)

    async def body(one: Scoring) -> None:
        await all_alive(one)
        await asyncio.gather(*(ask_for(one, 1.5, before) for _ in range(4)))
        os.kill(process.pid, signal.SIGSTOP)
        await asyncio.gather(*(ask_for(one, 5, after) for _ in range(4)))

    with process_replica(first) as process, process_replica(second), Pace() as pace:
        client(body, RewardConfig(addresses=(first, second), request_timeout_s=60))
    # Who asked the stopped replica first would wait at least so long before the other one is asked as well.
    assert statistics.median(after) < scoring._LEAST_PATIENCE_S * pace.slowness, (before, after)
    assert max(after) < 20, "long before the deadline"


def test_a_replica_that_hangs_says_so_although_its_messages_are_answered(tmp_path: Path) -> None:
    first, second = addresses(tmp_path)
    release, taken = threading.Event(), threading.Event()

    def hang(batch: Sequence[ScoreRequest]) -> list[list[Score]]:
        taken.set()
        assert release.wait(_PATIENCE_S)
        return [[GOOD] * len(entry.answers) for entry in batch]

    async def body(one: Scoring) -> list[Any]:
        await all_alive(one)
        return await asyncio.gather(*(one.score(question(), ["a"], ["en"], []) for _ in range(8)))

    try:
        with serving(first, RewardConfig()) as start, replica(second), zmq.Context() as context:
            start(hang)
            began = time.monotonic()
            assert client(body, RewardConfig(addresses=(first, second), request_timeout_s=_PATIENCE_S)) == [[GOOD]] * 8
            assert time.monotonic() - began < _PATIENCE_S / 4 and taken.is_set()
            with connect(context, first) as socket:
                assert health(socket).stalled_s > 1
            release.set()
    finally:
        release.set()


@pytest.mark.usefixtures("impatient")
def test_a_replica_that_starts_again_is_asked_again(tmp_path: Path) -> None:
    (address,) = addresses(tmp_path, 1)

    async def body(one: Scoring) -> list[Score]:
        with process_replica(address, seconds=60) as stuck:
            asked = asyncio.create_task(one.score(question(), ["a"], ["en"], []))
            while not one.replicas[0].life:
                await asyncio.sleep(0.05)
            stuck.kill()
            stuck.wait()
        with replica(address):
            return await asked

    assert client(body, RewardConfig(addresses=(address,), request_timeout_s=_PATIENCE_S)) == [GOOD]


def test_full_replicas_are_asked_until_they_have_room(tmp_path: Path) -> None:
    first, second = addresses(tmp_path)

    async def body(one: Scoring) -> list[Any]:
        return await asyncio.gather(*(one.score(question(), ["a"] * 4, ["en"] * 4, []) for _ in range(40)))

    with replica(first, queue=10), replica(second, queue=10):
        found = client(body, RewardConfig(addresses=(first, second), request_timeout_s=_PATIENCE_S))
    assert found == [[GOOD] * 4] * 40


def test_errors_and_silence_name_the_replicas(tmp_path: Path) -> None:
    first, second = addresses(tmp_path)
    poison = question().model_copy(update={"reference": "poison"})

    async def ask(one: Scoring) -> None:
        await one.score(poison, ["a"], ["en"], [])

    with replica(first), replica(second), pytest.raises(ScoringError, match=r"reward-0: .*poison.*reward-1: .*poison"):
        client(ask, RewardConfig(addresses=(first, second), request_timeout_s=_PATIENCE_S))
    with pytest.raises(ScoringError, match=r"within 1 s: ipc://.*reward-0: no answer"):
        client(ask, RewardConfig(addresses=(first,), request_timeout_s=1))


@pytest.mark.usefixtures("impatient")
def test_what_was_asked_of_a_dead_replica_does_not_wait_for_its_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would score for nobody. What is still waited for is asked again."""
    (address,) = addresses(tmp_path, 1)
    monkeypatch.setattr(scoring, "_HEALTH_S", 0.02)
    monkeypatch.setattr(scoring, "_CUT_S", 0.5)
    given_up = 10

    async def body(one: Scoring) -> list[Score]:
        for _ in range(given_up):
            with pytest.raises(ScoringError, match="no answer"):
                await one.score(question(), ["a"], ["en"], [])
        one._timeout_s = _PATIENCE_S
        asked = asyncio.create_task(one.score(question(), ["b"], ["en"], []))
        await asyncio.sleep(1)
        with zmq.Context() as context, bind(context, address) as socket:
            await asyncio.sleep(1)
            parts = [socket.recv_multipart() for _ in iter(lambda: socket.poll(0), 0)]
            found = [decode(payload) for _, payload in parts]
            alive = Healthy(life="earlier", ready=True, queued=0, counts={})
            newest = parts[-1][0]
            while one.replicas[0].life != "earlier":  # a busy machine may take so long that the actor connects anew
                socket.send_multipart([newest, encode(alive)])  # it dies with what it was asked
                await asyncio.sleep(0.1)
                newest = [newest, *(socket.recv_multipart()[0] for _ in iter(lambda: socket.poll(0), 0))][-1]
            requests = [message for message in found if isinstance(message, ScoreRequest)]
            asked_for = [entry.answers[0] for entry in requests]
            assert asked_for.count("a") < given_up and asked_for[-1] == "b"
        with replica(address):
            return await asked

    assert client(body, RewardConfig(addresses=(address,), request_timeout_s=0.1)) == [GOOD]


def test_replicas_that_are_equally_busy_are_asked_alike(tmp_path: Path) -> None:
    """One request at a time, as the last ones of a step are: each actor would ask the first replica alone."""
    three = addresses(tmp_path, 3)

    async def body(one: Scoring) -> list[float]:
        await all_alive(one)
        for _ in range(60):
            await one.score(question(), ["a"], ["en"], [])
        return [each.busy_s for each in one.replicas]

    with replica(three[0]), replica(three[1]), replica(three[2]):
        found = client(body, RewardConfig(addresses=three, request_timeout_s=_PATIENCE_S, batch_window_ms=0))
    assert min(found) >= 0.04, found


@pytest.mark.usefixtures("impatient")
def test_a_rendezvous_that_hangs_makes_no_other_replica_silent(tmp_path: Path) -> None:
    """A pipe in the place of the file of a replica that is gone: opening it blocks until somebody writes."""
    run = RunConfig(dir=Path("runs/one"), rendezvous=tmp_path / "rendezvous")
    both = addresses(tmp_path)
    for number, address in enumerate(both):
        rendezvous.announce(run, f"reward-{number}", address)
    routes = [Route(run, f"reward-{number}", "", 1) for number in range(2)]
    file = tmp_path / "rendezvous" / "reward-0.json"
    told = file.read_text()
    file.unlink()
    os.mkfifo(file)

    async def body() -> None:
        context = zmq.asyncio.Context()
        one = Scoring(context, _PATIENCE_S, routes)
        listening = asyncio.create_task(one.listen())
        try:
            while not one.replicas[0].silent:
                await asyncio.sleep(0.05)
            for _ in range(30):
                assert await one.score(question(), ["a"], ["en"], []) == [GOOD]
                assert not one.replicas[1].silent
        finally:
            listening.cancel()
            file.write_text(told)  # which frees the thread
            context.destroy(linger=0)

    with replica(both[1]):
        asyncio.run(body())
