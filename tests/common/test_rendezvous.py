"""Services say where they are, their clients find them, and find them again when they have moved."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.auth import create_certificates

from common import wire
from common.config import ConfigError, RunConfig, load
from common.net import rendezvous, sockets
from common.net.ports import reserve_port
from common.net.rendezvous import Route
from common.process import FatalError
from learner.work.server import WorkServer


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return RunConfig(dir=Path("runs/one"), rendezvous=tmp_path / "shared")


@pytest.fixture
def context() -> Iterator[Any]:
    context: zmq.Context[Any] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def addresses() -> Iterator[list[str]]:
    """Two, of which none is the other."""
    holders = [reserve_port(), reserve_port()]
    yield [f"tcp://127.0.0.1:{holder.getsockname()[1]}" for holder in holders]
    for holder in holders:
        holder.close()


def answers(route: Route, timeout_s: float = 60) -> bool:
    """Whether a learner's server is at the other end: it says that it does not know us."""
    route.socket.send(wire.encode(wire.Heartbeat(holding=[], seconds={})))
    if not route.socket.poll(int(1000 * timeout_s)):
        return False
    assert isinstance(wire.decode(route.socket.recv()), wire.Unknown)
    return True


def test_without_a_rendezvous_the_configured_address_counts(tmp_path: Path) -> None:
    route = Route(RunConfig(), "learner", "tcp://127.0.0.1:5700", 0)
    assert route.place.address == "tcp://127.0.0.1:5700" and route.look() is None and not route.follow(None)
    assert rendezvous.announce(RunConfig(), "learner", "tcp://127.0.0.1:5700") is None


def test_a_message_that_the_service_would_not_take_is_an_error_of_its_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent all the same it would cut the connection, again and again."""
    monkeypatch.setattr(rendezvous, "MAX_MESSAGE_BYTES", 1000)
    route, sent = Route(RunConfig(), "learner", "tcp://127.0.0.1:5700", 0), list[bytes]()

    class Socket:
        async def send(self, data: bytes) -> None:
            sent.append(data)

    route.socket = Socket()
    asyncio.run(route.send(wire.Release(id="1:train-0", reason="x" * 500)))
    with pytest.raises(wire.WireError, match="and the learner takes"):
        asyncio.run(route.send(wire.Release(id="1:train-0", reason="x" * 1000)))
    assert len(sent) == 1


def test_a_client_waits_for_the_file_and_not_for_ever(run: RunConfig) -> None:
    timer = threading.Timer(0.5, lambda: rendezvous.announce(run, "learner", "tcp://127.0.0.1:5700"))
    timer.start()
    assert Route(run, "learner", "", 60).place.address == "tcp://127.0.0.1:5700"
    timer.join()
    with pytest.raises(FatalError, match=r"reward-0\.json did not appear within actor\.start_timeout_s = 0 s"):
        Route(run, "reward-0", "", 0.3)


def test_lives_are_counted_and_the_former_learner_may_not_write(run: RunConfig) -> None:
    first = rendezvous.announce(run, "learner", "tcp://127.0.0.1:5700")
    rendezvous.confirm(run, "learner", first)
    second = rendezvous.announce(run, "learner", "tcp://127.0.0.1:5800")
    assert first is not None and second is not None and (first.life, second.life) == (1, 2)
    rendezvous.confirm(run, "learner", second)
    rendezvous.confirm(run, "learner", None)  # of a rank that does not lead
    with pytest.raises(FatalError, match="another learner of this run has started"):
        rendezvous.confirm(run, "learner", first)
    assert run.rendezvous is not None
    assert [path.name for path in run.rendezvous.iterdir()] == ["learner.json"], "nothing half-written stays"
    (run.rendezvous / "learner.json").unlink()
    rendezvous.confirm(run, "learner", second)  # a shared file system that is away for a moment is no successor


def is_over(route: Route) -> bool:
    place = route.look()
    assert place is not None
    return place.over


def test_who_comes_late_is_told_that_the_run_is_over(run: RunConfig) -> None:
    first = rendezvous.announce(run, "learner", "tcp://127.0.0.1:5700")
    early = Route(run, "learner", "", 1)
    assert not is_over(early)
    rendezvous.retire(run, "learner", first)
    assert is_over(early) and Route(run, "learner", "", 1).place.over and not early.follow(early.look())
    second = rendezvous.announce(run, "learner", "tcp://127.0.0.1:5800")
    rendezvous.retire(run, "learner", first)
    assert not is_over(early), "a learner that resumes the run is there"
    rendezvous.retire(RunConfig(), "learner", None)
    assert second is not None


def test_a_file_of_another_run_and_a_broken_one_are_named(run: RunConfig) -> None:
    rendezvous.announce(run, "learner", "tcp://127.0.0.1:5700")
    other = run.model_copy(update={"dir": Path("runs/two")})
    with pytest.raises(FatalError, match=r"learner\.json is of run\.dir = runs/one, not runs/two"):
        Route(other, "learner", "", 1)
    assert run.rendezvous is not None
    (run.rendezvous / "learner.json").write_text('{"adress": 1}')
    with pytest.raises(FatalError, match=r"learner\.json is not a rendezvous file"):
        Route(run, "learner", "", 1)


def test_every_interface_is_told_as_this_hosts_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRPO_HOST", "10.1.2.3")
    assert rendezvous.reachable("tcp://*:5700") == rendezvous.reachable("tcp://0.0.0.0:5700") == "tcp://10.1.2.3:5700"
    assert rendezvous.reachable("tcp://127.0.0.1:5700") == "tcp://127.0.0.1:5700"
    assert rendezvous.host_of("tcp://*:5700") == "10.1.2.3" and rendezvous.host_of("ipc://x") == "127.0.0.1"
    monkeypatch.setenv("LRPO_HOST", "localhost")
    with pytest.raises(FatalError, match="Set LRPO_HOST"):
        rendezvous.reachable("tcp://*:5700")


def test_an_ipv6_address_of_this_host_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRPO_HOST", "2001:db8::7")
    with pytest.raises(FatalError, match=r"LRPO_HOST = '2001:db8::7' is an IPv6 address, and lrpo speaks IPv4"):
        rendezvous.reachable("tcp://*:5700")
    with pytest.raises(FatalError, match="is an IPv6 address"):
        sockets.check_address("tcp://[::1]:5700")


def test_several_learner_nodes_need_a_rendezvous() -> None:
    with pytest.raises(ConfigError, match=r"learner\.nodes = 2 needs run\.rendezvous"):
        load(["--learner.nodes", "2"])


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_client_follows_a_service_that_moves(
    encrypted: bool, run: RunConfig, addresses: list[str], context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With keys, the client has its own alone, and takes the server's from the file; the new server has another."""
    servers = []
    for number, address in enumerate(addresses):
        keys = tmp_path / f"keys-{number}"
        (keys / "clients").mkdir(parents=True)
        create_certificates(keys, "server")
        if number == 0:
            create_certificates(keys / "clients", "actor")
            shutil.copytree(keys / "clients", tmp_path / "client" / "clients")
        else:
            shutil.copytree(tmp_path / "client" / "clients", keys / "clients", dirs_exist_ok=True)
        if encrypted:
            monkeypatch.setenv("LRPO_KEYS", str(keys))
        servers.append(WorkServer(address, lease_timeout_s=60))
        rendezvous.announce(run, "learner", address)
        if number == 0:
            if encrypted:
                monkeypatch.setenv("LRPO_KEYS", str(tmp_path / "client"))
            route = Route(run, "learner", "", 1)
            route.connect(context, "actor")
            assert answers(route) and not route.follow(route.look())
            servers[0].close()
    try:
        if encrypted:
            monkeypatch.setenv("LRPO_KEYS", str(tmp_path / "client"))
        assert not answers(route, 0.5)
        assert route.follow(route.look()) and answers(route)
    finally:
        servers[1].close()


def test_a_service_with_keys_tells_a_client_without_them(run: RunConfig, context: Any, monkeypatch: Any) -> None:
    rendezvous.announce(run, "learner", "tcp://127.0.0.1:5700")
    assert run.rendezvous is not None
    path = run.rendezvous / "learner.json"
    path.write_text(path.read_text().replace('"key":""', '"key":"' + "x" * 40 + '"'))
    with pytest.raises(FatalError, match="set LRPO_KEYS"):
        Route(run, "learner", "", 1).connect(context)


def test_a_vanished_host_is_noticed_by_the_sockets(context: Any) -> None:
    """Not by TCP, which waits for a quarter of an hour."""
    socket = sockets.connect(context, "tcp://127.0.0.1:9")
    assert 0 < socket.getsockopt(zmq.HEARTBEAT_TIMEOUT) <= 30_000 and socket.getsockopt(zmq.CONNECT_TIMEOUT) > 0
