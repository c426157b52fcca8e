"""A few disasters in the normal tests; ``pytest -m slow tests/system/test_chaos.py`` for many, and for real SGLang."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgpack
import numpy as np
import pytest
import zmq

from common.net.ports import reserve_port
from scripts.bench.chaos import events as chaos_events
from scripts.bench.chaos.clock import Clocks
from scripts.bench.chaos.cluster import GROUP_ACTORS, LEADER, Cluster
from scripts.bench.chaos.observer import Observed, Observer
from scripts.bench.chaos.tap import HttpReader, Proxies, ZmtpReader
from scripts.bench.chaos.verdict import Bounds, problems
from tests.support import processes

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


def survives(engine: str, events: int, seed: int, directory: Path) -> dict[str, int]:
    """Fails if the run does not survive its events, and returns how many there were of each kind."""
    command = [sys.executable, "-m", "scripts.bench.chaos", "--engine", engine, "--events", str(events)]
    command += ["--seed", str(seed), "--dir", str(directory), "--json"]
    done = processes.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, (found, done.stderr)
    assert not found["wrong"] and found["told"]["lost"] == found["told"]["doubled"] == 0
    assert (found["events"], found["lost"], found["doubled"], found["failed"]) == (events, 0, 0, 0)
    assert found["staleness_max"] <= found["staleness_bound"] and found["leftover_processes"] == 0
    assert found["longest_stall_s"] <= found["stall_bound_s"]
    assert found["groups"] and found["versions_confirmed"], "the observer has seen nothing"
    counts: dict[str, int] = found["kinds"]
    assert sum(counts.values()) == events
    return counts


def test_a_few_disasters(tmp_path: Path) -> None:
    """Which kinds come depends on the moment, too: an event that is not possible then gives way to another."""
    assert len(survives("light", 4, 1230, tmp_path)) >= 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("engine", "events"), [("light", 1000), ("sglang", 60)])
def test_many_disasters(engine: str, events: int, tmp_path: Path) -> None:
    found = survives(engine, events, 0, tmp_path)
    assert len(found) >= 8, found


# -- deaths in the middle of a weight sync -----------------------------------------------------------------------------


def test_a_leader_is_killed_when_a_transfer_begins_and_in_no_other_moment(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    killed = list[str]()

    def process(name: str) -> Any:
        return SimpleNamespace(kill=lambda: killed.append(name))

    monkeypatch.setattr(chaos_events, "_KINDS", {"kill leader": 1})
    events = chaos_events.Events(cast(Cluster, SimpleNamespace(process=process)), seed)
    assert not events.strike(), "it waits for its moment"
    for phase in ("pause", "probe", "continue"):
        for actor in GROUP_ACTORS:
            events.reached(actor, phase)
    events.reached("actor-1", "transfer")  # whose engine reads shared memory
    assert not killed and not events.strike()
    for actor in GROUP_ACTORS:
        events.reached(actor, "transfer")
    assert killed == [LEADER], "once"
    assert events.strike() and events.count == {"kill leader in transfer": 1}


# -- wall clocks that jump -------------------------------------------------------------------------------------------

WATCH = """
import datetime, sys, threading, time
print(time.time(), datetime.datetime.now().timestamp(), time.monotonic(), flush=True)
sys.stdin.readline()
begin = time.monotonic()
threading.Event().wait(0.2)
print(time.time(), datetime.datetime.now().timestamp(), time.monotonic(), time.monotonic() - begin, flush=True)
"""


@pytest.mark.parametrize("jump_s", [7200.0, -7200.0])
def test_a_wall_clock_jumps_and_the_monotonic_one_does_not(jump_s: float, tmp_path: Path) -> None:
    clocks = Clocks(tmp_path)
    if clocks.missing:
        pytest.skip(clocks.missing)
    environment = {**os.environ, **clocks.environment("a"), "PYTHONPATH": ""}
    with subprocess.Popen(
        [sys.executable, "-c", WATCH], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as watcher:
        assert watcher.stdin is not None and watcher.stdout is not None
        wall, day, steady = map(float, watcher.stdout.readline().split())
        assert abs(wall - time.time()) < PATIENCE_S and abs(day - wall) < PATIENCE_S
        assert clocks.holds("a", watcher.pid) and not clocks.holds("b", watcher.pid)
        clocks.jump("a", jump_s)
        watcher.stdin.write("\n")
        watcher.stdin.flush()
        later_wall, later_day, later_steady, waited_s = map(float, watcher.stdout.readline().split())
    passed = later_steady - steady
    assert 0 < passed < PATIENCE_S and 0.2 <= waited_s < PATIENCE_S
    assert abs(later_wall - wall - passed - jump_s) < 1 and abs(later_day - later_wall) < 1


# -- the observer's ears -----------------------------------------------------------------------------------------------


def feed_in_pieces(feed: Callable[[bytes], None], data: bytes, chooser: random.Random) -> None:
    while data:
        size = chooser.choice([1, 2, 7, 64, 1000])
        feed(data[:size])
        data = data[size:]


@pytest.fixture
def proxies() -> Iterator[Proxies]:
    found = Proxies()
    yield found
    found.stop()
    assert found.problem is None


def test_what_passes_between_sockets_is_read_and_unchanged(proxies: Proxies, seed: int) -> None:
    chooser = random.Random(seed)
    recorded: tuple[bytearray, bytearray] = bytearray(), bytearray()

    class Recorder:
        def __init__(self, to: bytearray) -> None:
            self.feed = to.extend

    with reserve_port() as holder, reserve_port() as own, zmq.Context() as context:
        port, far = own.getsockname()[1], holder.getsockname()[1]
        proxies.add(port, far, lambda: (Recorder(recorded[0]), Recorder(recorded[1])))
        messages = [{"kind": "x", "data": chooser.randbytes(size)} for size in (0, 200, 300, 100_000)]
        with context.socket(zmq.ROUTER) as server, context.socket(zmq.DEALER) as client:
            for one in (server, client):
                one.setsockopt(zmq.RCVTIMEO, int(1000 * PATIENCE_S))
                one.setsockopt(zmq.LINGER, 0)
            server.bind(f"tcp://127.0.0.1:{far}")
            client.connect(f"tcp://127.0.0.1:{port}")
            for message in messages:
                client.send(msgpack.packb(message))
                name, sent = server.recv_multipart()
                assert msgpack.unpackb(sent) == message
                server.send_multipart([name, sent])
                assert msgpack.unpackb(client.recv()) == message
    for data in recorded:
        read: list[dict[str, Any]] = []
        feed_in_pieces(ZmtpReader(read.append).feed, bytes(data), chooser)
        assert read == messages


def test_a_client_of_a_server_that_is_gone_is_refused_and_comes_back_with_it(proxies: Proxies) -> None:
    silent = ZmtpReader(lambda message: None), ZmtpReader(lambda message: None)
    with reserve_port() as holder, reserve_port() as own:
        port, far = own.getsockname()[1], holder.getsockname()[1]
        proxies.add(port, far, lambda: silent)
        for _ in range(2):
            until(lambda: not answers(port))
            with socket.create_server(("127.0.0.1", far)):
                until(lambda: answers(port))


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_requests_and_replies_are_read_whole(seed: int) -> None:
    chooser = random.Random(seed)
    body = chooser.randbytes(5000)
    whole = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + body
    empty = b"GET /model_info HTTP/1.1\r\nHost: x\r\n\r\n"
    chunks = [body[:10], body[10:4000], body[4000:]]
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    read: list[tuple[str, bytes]] = []
    feed_in_pieces(
        HttpReader(lambda line, content: read.append((line, content))).feed, whole + empty + chunked, chooser
    )
    assert read == [("POST /generate HTTP/1.1", body), ("GET /model_info HTTP/1.1", b""), ("HTTP/1.1 200 OK", body)]


# -- the observer's books ----------------------------------------------------------------------------------------------

LIVES = {"actor_life": "a1", "learner_life": "l1"}


class Play:
    """An actor, its engine and the learner, as the observer sees them."""

    def __init__(self, name: str = "other") -> None:
        self.phases: list[tuple[str, str]] = []
        self.observer = Observer("watched", lambda actor, phase: self.phases.append((actor, phase)))
        self.connect()
        self.asked, self.answered = self.observer.read_engine()
        self.from_actor(kind="hello", name=name, actor_life=LIVES["actor_life"])

    def connect(self) -> None:
        self.actor_reader, self.learner_reader = self.observer.read_learner()
        for reader in (self.actor_reader, self.learner_reader):
            reader.feed(bytes(64))

    def from_actor(self, **message: Any) -> None:
        self.actor_reader.feed(frame(message))

    def from_learner(self, **message: Any) -> None:
        self.learner_reader.feed(frame(message))

    def call(self, route: str, content: dict[str, Any], reply: Any = None) -> None:
        body, answer = json.dumps(content).encode(), json.dumps(reply).encode()
        self.asked.feed(f"POST {route} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        self.answered.feed(f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)

    def update(self, version: int) -> None:
        self.from_learner(kind="pause", version=version, **LIVES)
        self.from_learner(kind="receive", version=version, **LIVES)
        self.from_actor(kind="synced", version=version, stage="done", **LIVES)

    def lease(self, *leases: str) -> None:
        self.from_learner(kind="leased", work=[{"id": lease} for lease in leases], **LIVES)

    def submit(self, lease: str, versions: list[int], accepted: bool = True, ids: tuple[int, ...] = (7, 8)) -> None:
        rollout = {
            "versions": np.array(versions, "<i4").tobytes(), "response_ids": np.array(ids, "<i4").tobytes(),
            "logprobs": np.array([-0.1, -0.2], "<f4").tobytes(),
        }  # fmt: skip
        self.from_actor(kind="submit", id=lease, rollouts=[rollout], **LIVES)
        self.from_learner(kind="ack", accepted={lease: accepted}, **LIVES)

    def conclude(self, directory: Path, *lines: tuple[int, int], name: str = "other") -> Observed:
        ledger = directory / "ledger.jsonl"
        entries = [
            {"sequence": sequence, "outcome": "trained", "step": step, "actor": name, "lengths": [2]}
            for sequence, step in lines
        ]
        ledger.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return self.observer.conclude(ledger, lambda step: 1)


def frame(message: dict[str, Any]) -> bytes:
    body: bytes = msgpack.packb(message)
    return bytes([2]) + len(body).to_bytes(8, "big") + body


def test_the_observer_finds_the_lag_by_itself(tmp_path: Path) -> None:
    play = Play()
    play.update(0)
    play.lease("0:train-0", "1:train-1")
    play.update(1)
    play.connect()  # after a cut, and without a hello
    play.submit("0:train-0", [0, 1])
    play.submit("1:train-1", [1, 1])
    found = play.conclude(tmp_path, (0, 2), (1, 4))
    assert (found.lag_max, found.lost, found.doubled, found.unseen, found.wrong_versions) == (2, [], [], [], 0)
    assert (found.groups, found.tokens, found.over_bound) == (2, 4, [1])
    assert play.phases == [("other", phase) for phase in ("pause", "transfer", "probe")] * 2


@pytest.mark.parametrize("versions", [[0, 1], [1, 2]])
def test_the_observer_sees_versions_that_the_engine_cannot_have_had(versions: list[int], tmp_path: Path) -> None:
    play = Play()
    play.update(0)
    play.update(1)
    play.lease("0:train-0")
    play.submit("0:train-0", versions)
    assert play.conclude(tmp_path, (0, 2)).wrong_versions == 1


@pytest.mark.parametrize(("claimed", "wrong"), [([3, 4], 0), ([3, 3], 2), ([4, 4], 2)])
def test_the_observer_compares_with_what_the_watched_engine_says(
    claimed: list[int], wrong: int, tmp_path: Path
) -> None:
    play = Play("watched")
    for version in (3, 4):
        play.from_learner(kind="receive", version=version, **LIVES)
        play.call("/pause_generation", {})
        play.call("/update_weights_from_distributed", {})
        play.call("/update_weights_from_distributed", {"weight_version": f"label {version}"})
        play.call("/continue_generation", {})
        play.from_actor(kind="synced", version=version, stage="done", **LIVES)
        play.call("/generate", {"logprob_start_len": 0}, {})
        if version == 3:
            play.lease("0:train-0")
    meta = {
        "weight_versions": [{"version": f"label {n}", "start": n - 3, "end": n - 2} for n in (3, 4)],
        "output_token_logprobs": [[-0.1, 7, None], [-0.2, 8, None]],
    }
    play.call("/generate", {}, [{"output_ids": [7, 8], "meta_info": meta}])
    play.submit("0:train-0", claimed)
    found = play.conclude(tmp_path, (0, 5), name="watched")
    assert (found.wrong_versions, found.checked, found.lag_max) == (wrong, 2, 4 - claimed[0])
    assert play.phases == [("watched", phase) for phase in ("pause", "transfer", "continue", "probe")] * 2


def test_the_observer_counts_what_is_lost_doubled_and_from_nowhere(tmp_path: Path) -> None:
    play = Play()
    play.update(0)
    play.lease(*(f"{n}:train-{n}" for n in range(5)))
    for n in (0, 1, 2):
        play.submit(f"{n}:train-{n}", [0, 0], accepted=n != 2)
    found = play.conclude(tmp_path, (0, 1), (1, 1), (1, 2), (2, 2))
    assert (found.lost, found.doubled, found.unseen) == ([3, 4], [1], [2])


def test_every_step_has_the_bound_of_its_own_sizes(tmp_path: Path) -> None:
    for name, sizes in (
        ("config-until-step-000010", (4, 2, 3)), ("config-until-step-000025", (4, 0, 3)), ("config", (2, 1, 1))
    ):  # fmt: skip
        learner = dict(zip(("groups_per_step", "staleness", "window"), sizes, strict=True))
        (tmp_path / f"{name}.json").write_text(json.dumps({"learner": learner}))
    bounds = Bounds(tmp_path)
    assert [bounds.at(step) for step in (1, 10, 11, 25, 26, 99)] == [3, 3, 0, 0, 1, 1] and bounds.largest == 3


def test_the_verdict_names_what_is_wrong() -> None:
    good = {
        "lost": 0, "doubled": 0, "groups_over_bound": 0, "leftover_processes": 0,
        "groups_never_submitted": 0, "wrong_versions": 0,
        "staleness_max": 2, "staleness_bound": 2, "longest_stall_s": 3.0, "stall_bound_s": 4.0,
        "told": {"lost": 0, "doubled": 0, "staleness_max": 2},
    }  # fmt: skip
    assert problems(good) == []
    bad: dict[str, Any] = {
        "lost": 1, "doubled": 1, "groups_over_bound": 1, "leftover_processes": 1,
        "groups_never_submitted": 1, "wrong_versions": 1,
        "staleness_max": 3, "longest_stall_s": 5.0, "told": {"lost": 1, "doubled": 0, "staleness_max": 2},
    }  # fmt: skip
    for name, value in bad.items():
        assert problems(good | {name: value}), name
