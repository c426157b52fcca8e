"""Malformed, replayed and oversized messages have no effect, and only the owner of a key is admitted."""

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
from zmq.utils.monitor import recv_monitor_message

from common import wire
from common.net import sockets
from common.net.ports import reserve_port
from common.process import FatalError
from learner.work.server import WorkServer
from tests.learner.work.test_server import LEASE_S, PATIENCE_S, Client, join, serve, wait_for
from tests.support.groups import random_rollout

OPTIONAL = {
    "slots", "seconds", "gauges", "drain_s", "timing", "generating", "cause",
    "actor_life", "learner_life", "name", "process", "settings", "waited_s", "replaces",
}  # fmt: skip  # some kinds of messages may lack these
HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WorkServer]:
    server = WorkServer(f"ipc://{tmp_path}/queue", LEASE_S)
    yield server
    server.close()


def malformed(rng: np.random.Generator, good: list[bytes]) -> bytes | None:
    """A message that no actor would send: noise, or a good message that was cut, changed or taken from the learner.

    None if the change happens to make another good message. That must never be so where the test itself knows better
    than the decoder: a field that is unknown or missing, and a message that only a learner sends.
    """
    data = good[rng.integers(len(good))]
    fields = msgpack.unpackb(data)
    certain = False
    match rng.integers(6):
        case 0:
            data = rng.bytes(int(rng.integers(0, 60)))
        case 1:
            data = data[: rng.integers(0, len(data))]
        case 2:
            fields[rng.choice([*fields])] = [None, -1, 3.5, "x", [[]], {"a": 1}, b"\xff"][rng.integers(7)]
            data = bytes(msgpack.packb(fields))
        case 3:
            field = rng.choice([*fields])
            fields.pop(field)
            data, certain = bytes(msgpack.packb(fields)), field not in OPTIONAL
        case 4:
            data, certain = bytes(msgpack.packb({**fields, "extra": int(rng.integers(9))})), True
        case _:
            foreign: list[wire.AnyMessage] = [wire.Welcome(), wire.Stop(error=""), wire.Alive(), wire.Leased(work=[])]
            data, certain = wire.encode(foreign[rng.integers(4)]), True
    try:
        acceptable = not isinstance(wire.decode(data), wire.Welcome | wire.Stop | wire.Alive | wire.Leased)
    except wire.WireError:
        acceptable = False
    assert not (certain and acceptable), f"{data!r} must be refused"
    return None if acceptable else data


def caught_up(server: WorkServer, number: int) -> bool:
    return server.refused_messages >= number


@pytest.mark.parametrize("messages", [5000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_flood_of_malformed_messages_changes_nothing(
    messages: int, server: WorkServer, tmp_path: Path, rng: np.random.Generator
) -> None:
    _, failures = serve(server, groups=3)
    actor, noisy = Client(f"ipc://{tmp_path}/queue", "a"), Client(f"ipc://{tmp_path}/queue", "noisy")
    join(server, actor, noisy, slots=1)
    leased = [client.receive(wire.Leased).work[0] for client in (actor, noisy)]
    rollouts = [random_rollout(rng).model_copy(update={"language": code}) for code in leased[1].languages]
    good = [
        wire.encode(message.of(noisy.lives))
        for message in (
            wire.Hello(protocol=wire.PROTOCOL, engine_ranks=1, slots=1, transport="group", name="noisy"),
            wire.Submit(id=leased[1].id, rollouts=rollouts),
            wire.Heartbeat(holding=[leased[1].id], seconds={"generate": 1.0}),
            wire.Release(id=leased[1].id, reason="x"),
            wire.Leave(reason="x"),
            wire.Synced(version=0, stage="done", pause_s=0.0),
        )
    ]
    before = (server.counts(), server.members())
    sent = 0
    while sent < messages:
        data = malformed(rng, good)
        if data is None:
            continue
        noisy.socket.send(data)
        sent += 1
        if sent % 1000 == 0:
            wait_for(partial(caught_up, server, sent - 1000))
    wait_for(partial(caught_up, server, messages))
    assert server.refused_messages == messages
    assert (server.counts(), server.members()) == before and not failures
    assert actor.submit(leased[0]) and noisy.submit(leased[1])


def test_replayed_messages_have_no_second_effect(server: WorkServer, tmp_path: Path) -> None:
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
    for number in range(300):
        message = replayed[number % 3]
        actor.send(message)
        assert not actor.receive(wire.Ack).accepted[message.id]  # type: ignore[union-attr]
    assert server.counts() == before and before["waiting"] == 1
    assert server.counts()["leased"] == 2, "an actor holds no more than it said it can"


def wait_for_handshake(client: Client, address: str) -> int:
    """Connects anew, and returns the event by which a handshake ends.

    A refused client may have given up already, and libzmq ignores a second connection to the same address.
    """
    ends = HANDSHAKE_FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED
    monitor = client.socket.get_monitor_socket(ends)
    client.socket.setsockopt(zmq.SNDTIMEO, 500)
    with suppress(zmq.ZMQError):  # where it has given up, it is not connected
        client.socket.disconnect(address)
    client.socket.connect(address)
    with suppress(zmq.Again):
        client.say_hello(slots=1)
    assert monitor.poll(1000 * PATIENCE_S), "no handshake ended"
    event = int(recv_monitor_message(monitor)["event"])
    client.socket.disable_monitor()
    return event


def heartbeat_of(size: int, lives: wire.Lives) -> bytes:
    """An encoded heartbeat of this many bytes, at least 100,000."""
    empty = len(wire.encode(wire.Heartbeat(holding=["x" * 70_000], seconds={}).of(lives))) - 70_000
    data = wire.encode(wire.Heartbeat(holding=["x" * (size - empty)], seconds={}).of(lives))
    assert len(data) == size
    return data


def test_an_oversized_message_ends_its_connection_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, address = 1 << 20, f"ipc://{tmp_path}/queue"
    monkeypatch.setattr(sockets, "MAX_MESSAGE_BYTES", limit)
    server = WorkServer(address, LEASE_S)
    try:
        serve(server)
        actor, greedy = Client(address, "a"), Client(address, "greedy")
        join(server, actor, slots=1)
        greedy.hello()
        greedy.socket.send(heartbeat_of(limit, greedy.lives))
        greedy.receive(wire.Alive)
        monitor = greedy.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        greedy.socket.send(heartbeat_of(limit + 1, greedy.lives))
        assert monitor.poll(1000 * PATIENCE_S), "the connection was not cut"
        greedy.socket.disable_monitor()
        greedy.hello()  # ZeroMQ connects again by itself
        greedy.send(wire.Health())
        assert isinstance(greedy.receive(), wire.Status), "the oversized heartbeat was never answered"
        assert actor.submit(actor.receive(wire.Leased).work[0])
    finally:
        server.close()


def test_every_socket_has_the_size_limit_of_the_protocol(tmp_path: Path) -> None:
    context: zmq.Context[Any] = zmq.Context()
    server = sockets.bind(context, f"ipc://{tmp_path}/queue")
    client = sockets.connect(context, f"ipc://{tmp_path}/queue")
    assert server.getsockopt(zmq.MAXMSGSIZE) == client.getsockopt(zmq.MAXMSGSIZE) == wire.MAX_MESSAGE_BYTES
    context.destroy()


def keys(directory: Path) -> Path:
    subprocess.run(["scripts/make_keys.sh", str(directory)], check=True, capture_output=True)
    return directory


def test_keys_admit_their_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = keys(tmp_path / "ours"), keys(tmp_path / "theirs")
    # The stranger knows the server's public key, but the server does not know the stranger's.
    (theirs / "server.key").write_bytes((ours / "server.key").read_bytes())
    monkeypatch.setenv("LRPO_KEYS", str(ours))
    holder = reserve_port()
    port = holder.getsockname()[1]
    server = WorkServer(f"tcp://0.0.0.0:{port}", LEASE_S)
    try:
        friend = Client(f"tcp://127.0.0.1:{port}", "friend")
        friend.hello()
        monkeypatch.setenv("LRPO_KEYS", str(theirs))
        stranger = Client(f"tcp://127.0.0.1:{port}", "stranger")
        monkeypatch.delenv("LRPO_KEYS")
        plain = Client(f"tcp://127.0.0.1:{port}", "plain")
        for client in (stranger, plain):
            assert wait_for_handshake(client, f"tcp://127.0.0.1:{port}") & HANDSHAKE_FAILED
        assert list(server.members()) == ["friend"]
    finally:
        server.close()
        holder.close()


def test_a_missing_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRPO_KEYS", str(tmp_path / "keys"))
    context: zmq.Context[Any] = zmq.Context()
    with pytest.raises(FatalError, match=r"server\.key_secret"):
        sockets.bind(context, f"ipc://{tmp_path}/queue")
    keys(tmp_path / "keys")
    (tmp_path / "keys" / "server.key_secret").write_bytes((tmp_path / "keys" / "server.key").read_bytes())
    with pytest.raises(FatalError, match=r"server\.key_secret of LRPO_KEYS: it holds no secret key"):
        sockets.bind(context, f"ipc://{tmp_path}/queue")
    context.destroy()


@pytest.mark.parametrize(
    "address",
    [
        "tcp://0.0.0.0:5700", "tcp://10.0.0.1:5700", "tcp://127.0.0.1", "localhost:5700",
        "tcp://localhost.example.com:5700", "tcp://127.0.0.1.example.com:5700",
    ],
)  # fmt: skip
def test_addresses_beyond_loopback_need_keys(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LRPO_KEYS", raising=False)
    with pytest.raises(FatalError, match=r"make_keys|not of the form"):
        sockets.check_address(address)
