"""Messages and peers that mean no good: refused, counted, without effect; and addresses that need keys."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
import zmq.auth

from common import wire
from common.net import sockets
from common.net.ports import reserve_port
from common.process import FatalError
from learner.work.server import Server
from tests.learner.work.test_server import LEASE_S, Client, join, serve, wait_for
from tests.support.groups import random_rollout

MESSAGES = 100_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(f"ipc://{tmp_path}/queue", LEASE_S)
    yield server
    server.close()


def malformed(rng: np.random.Generator, good: list[bytes]) -> bytes:
    """A message that no actor would send: noise, a cut one, a flipped field, a foreign kind, another protocol's."""
    data = good[rng.integers(len(good))]
    match rng.integers(6):
        case 0:
            return rng.bytes(int(rng.integers(0, 60)))
        case 1:
            return data[: rng.integers(0, len(data))]
        case 2:
            fields = msgpack.unpackb(data)
            fields[rng.choice([*fields])] = [None, -1, 3.5, "x", [[]], {"a": 1}, b"\xff"][rng.integers(7)]
            return bytes(msgpack.packb(fields))
        case 3:
            fields = msgpack.unpackb(data)
            fields.pop(rng.choice([*fields]))
            return bytes(msgpack.packb(fields))
        case 4:
            return bytes(msgpack.packb({**msgpack.unpackb(data), "extra": int(rng.integers(9))}))
        case _:
            foreign: list[wire.AnyMessage] = [wire.Welcome(), wire.Stop(error=""), wire.Alive(), wire.Leased(work=[])]
            return wire.encode(foreign[rng.integers(4)])


def refusable(data: bytes) -> bool:
    """Whether the learner must refuse it: what still is a whole message of an actor is none of the fuzzer's."""
    try:
        return isinstance(wire.decode(data), wire.Welcome | wire.Stop | wire.Alive | wire.Leased)
    except wire.WireError:
        return True


def caught_up(server: Server, number: int) -> bool:
    return server.refused >= number


def test_a_hundred_thousand_malformed_messages_change_nothing(server: Server, tmp_path: Path) -> None:
    _, failures = serve(server, groups=3)
    actor, noisy = Client(f"ipc://{tmp_path}/queue", "a"), Client(f"ipc://{tmp_path}/queue", "noisy")
    join(server, actor, noisy, slots=1)
    leased = [client.receive(wire.Leased).work[0] for client in (actor, noisy)]
    rng = np.random.default_rng()
    rollouts = [random_rollout(rng).model_copy(update={"language": code}) for code in leased[1].languages]
    good = [
        wire.encode(message)
        for message in (
            wire.Hello(protocol=wire.PROTOCOL, engine_ranks=1, slots=1, transport="group"),
            wire.Submit(id=leased[1].id, rollouts=rollouts),
            wire.Heartbeat(holding=[leased[1].id], seconds={"generate": 1.0}),
            wire.Release(id=leased[1].id, reason="x"),
            wire.Leave(reason="x"),
            wire.Synced(version=0, stage="done", pause_s=0.0),
        )
    ]
    before = (server.counts(), server.members())
    sent = 0
    while sent < MESSAGES:
        data = malformed(rng, good)
        if not refusable(data):
            continue
        noisy.socket.send(data)
        sent += 1
        if sent % 1000 == 0:
            wait_for(partial(caught_up, server, sent - 1000))
    wait_for(partial(caught_up, server, MESSAGES))
    assert server.refused == MESSAGES
    assert (server.counts(), server.members()) == before and not failures
    assert actor.submit(leased[0]) and noisy.submit(leased[1])


def test_replayed_messages_have_no_second_effect(server: Server, tmp_path: Path) -> None:
    serve(server, groups=4)
    actor = Client(f"ipc://{tmp_path}/queue", "a")
    join(server, actor, slots=2)
    works = actor.leases(2)
    assert actor.submit(works[0])
    before = server.counts()
    rollouts = [random_rollout(np.random.default_rng(1)).model_copy(update={"language": c}) for c in works[0].languages]
    replayed: list[wire.AnyMessage] = [
        wire.Submit(id=works[0].id, rollouts=rollouts), wire.Release(id=works[0].id, reason="replayed"),
        wire.Submit(id="99:train-0", rollouts=rollouts),
    ]  # fmt: skip
    for number in range(1000):
        message = replayed[number % 3]
        actor.send(message)
        assert not actor.receive(wire.Ack).accepted[message.id]  # type: ignore[union-attr]
    assert server.counts() == before and before["finished"] == 1
    assert server.counts()["leased"] == 2, "an actor holds no more than it said it can"


def test_an_oversized_message_ends_its_connection_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server)
    actor, greedy = Client(f"ipc://{tmp_path}/queue", "a"), Client(f"ipc://{tmp_path}/queue", "greedy")
    join(server, actor, slots=1)
    greedy.socket.send(bytes(wire.MAX_MESSAGE_BYTES + 1))
    assert actor.submit(actor.receive(wire.Leased).work[0])


def keys(directory: Path) -> Path:
    subprocess.run(["scripts/make_keys.sh", str(directory)], check=True, capture_output=True)
    return directory


def test_keys_are_needed_beyond_loopback_and_admit_their_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FatalError, match="make_keys"):
        sockets.check_address("tcp://0.0.0.0:45671")
    ours, theirs = keys(tmp_path / "ours"), keys(tmp_path / "theirs")
    (theirs / "server.key").write_bytes(
        (ours / "server.key").read_bytes()
    )  # knows whom to speak to, and is not admitted
    monkeypatch.setenv("LRPO_KEYS", str(ours))
    holder = reserve_port()
    port = holder.getsockname()[1]
    server = Server(f"tcp://0.0.0.0:{port}", LEASE_S)
    try:
        friend = Client(f"tcp://127.0.0.1:{port}", "friend")
        friend.hello()
        monkeypatch.setenv("LRPO_KEYS", str(theirs))
        stranger = Client(f"tcp://127.0.0.1:{port}", "stranger")
        monkeypatch.delenv("LRPO_KEYS")
        plain = Client(f"tcp://127.0.0.1:{port}", "plain")
        for client in (stranger, plain):
            client.socket.setsockopt(zmq.SNDTIMEO, 500)
            with suppress(zmq.Again):
                client.send(wire.Hello(protocol=wire.PROTOCOL, engine_ranks=1, slots=1, transport="group"))
            with pytest.raises(AssertionError, match="no Message"):
                client.receive(timeout=1)
        assert list(server.members()) == ["friend"]
    finally:
        server.close()
        holder.close()


def test_a_missing_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRPO_KEYS", str(tmp_path))
    context: zmq.Context[Any] = zmq.Context()
    with pytest.raises(FatalError, match=r"server\.key_secret"):
        sockets.bind(context, "tcp://127.0.0.1:45672")
    context.destroy()
