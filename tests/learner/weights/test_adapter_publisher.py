"""Adapters on their way: from the ranks of a learner to the engines of real actors, and what becomes of others."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import zmq
from safetensors.torch import load, load_file
from torch.distributed.tensor import DTensor, distribute_tensor

from common import wire
from common.config import SyncConfig
from common.net import sockets
from common.net.ports import reserve_port
from common.process import FatalError
from learner.train.trainer import Trainer
from learner.weights.adapter_publisher import AdapterPublisher
from learner.work.server import WorkServer
from tests.support.actor_pool import LIGHT, PATIENCE_S, ActorPool
from tests.support.train_once import configuration, run_ranks

LORA = ["--lora.rank", "4", "--lora.alpha", "8"]
PROBE = wire.Probe(ids=np.zeros(2, np.int32), logprobs=np.zeros(1, np.float32), tolerance=1.0)
NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


# -- with real actors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["light", pytest.param("sglang", marks=pytest.mark.slow)])
def test_what_two_ranks_gather_reaches_the_engines_by_message_and_by_file(
    engine: str, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "sglang":
        monkeypatch.setitem(LIGHT, "PYTHONPATH", "")
    pool = ActorPool(tiny_policy, tmp_path)
    pool.server.close(over=False)
    log = tmp_path / "ranks.log"
    try:
        pool.start("one", *LORA, "--sync.directory", str(tmp_path / "files"))
        arguments = tiny_policy, pool.address, tmp_path
        assert run_ranks(2, publish_from_ranks, *arguments, output=log) == [0, 0], (
            log.read_text()[-3000:] + pool.log("one").read_text()[-3000:]
        )
    finally:
        pool.close()
    told = pool.log("one").read_text()
    assert all(f"proved the adapter of version {version}:" in told for version in (1, 2, 3))
    assert "starting the engine again" not in told


def publish_from_ranks(model: Path, address: str, directory: Path) -> None:
    """Publishes three versions, the last one from a file; returns when the engine has proved each of them."""
    trainer = Trainer(configuration(model, "--model.dtype", "float32", *LORA))
    adapters = trainer.policy.adapters
    assert adapters is not None
    generator = torch.Generator().manual_seed(dist.get_world_size())
    server = WorkServer(address, lease_timeout_s=PATIENCE_S) if dist.get_rank() == 0 else None
    for version in (1, 2, 3):
        with torch.no_grad():
            for layer in adapters.layers.values():
                part = layer.lora_B
                assert isinstance(part, DTensor)
                whole = 0.2 * torch.randn(part.shape, generator=generator)
                part.copy_(distribute_tensor(whole, part.device_mesh, part.placements))
        probe, weights = trainer.probe(), adapters.gather()
        if server is None:
            deque(weights, maxlen=0)
            continue
        while not server.members():
            time.sleep(0.1)
        transport = "disk" if version == 3 else "group"
        sync = SyncConfig(timeout_s=PATIENCE_S, directory=directory / "files", transport=transport)
        settings = adapters.peft_config(str(model))
        publisher = AdapterPublisher(server, sync, settings, adapters.parameters, "float32", lambda: None)
        published = publisher.publish(version, lambda _, weights=weights: weights, probe)  # type: ignore[misc]
        assert set(published.members) == {"one"} and published.pause_s == 0
        while f"proved the adapter of version {version}:" not in (directory / "one.log").read_text():
            time.sleep(0.1)
            assert server.members(), "an engine with another adapter leaves"
        assert version != 3 or len(list((directory / "files").iterdir())) == 1, "the actor's own directory is left"
    if server is not None:
        server.close()


# -- with an actor that is none ----------------------------------------------------------------------------------------


class Client:
    """The messages of an actor whose engine takes weights by ``transport``."""

    def __init__(self, address: str, name: str, transport: Any = "adapter") -> None:
        self.socket: Any = sockets.connect(zmq.Context.instance(), address, f"{name}/process")
        self.lives = wire.Lives(f"life of {name}", "")
        self.send(wire.Hello(protocol=wire.PROTOCOL, engine_ranks=1, slots=1, transport=transport, name=name))
        self.lives = self.receive(wire.Welcome).lives

    def send(self, message: wire.LifeMessage) -> None:
        self.socket.send(wire.encode(message.of(self.lives)))

    def receive(self, kind: type[wire.Message]) -> Any:
        assert self.socket.poll(1000 * PATIENCE_S), f"no {kind.__name__}"
        message = wire.decode_frames(self.socket.recv_multipart())
        assert isinstance(message, kind), message
        return message


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WorkServer]:
    server = WorkServer(f"ipc://{tmp_path}/queue", lease_timeout_s=PATIENCE_S)
    yield server
    server.close()


def make_publisher(server: WorkServer, directory: Path, parameters: int = 256, **sync: Any) -> AdapterPublisher:
    config = SyncConfig(directory=directory, **sync)
    return AdapterPublisher(server, config, {"r": 4}, parameters, "bfloat16", lambda: None)


@pytest.mark.parametrize("transport", ["group", "disk"])
def test_actors_get_the_adapter_in_the_engines_dtype(transport: str, server: WorkServer, tmp_path: Path) -> None:
    """Who takes weights in another way is given up."""
    client, other = Client(server.address, "one"), Client(server.address, "other", "shared")
    weights = torch.randn(4, 64)
    orders: list[wire.LoadAdapter] = []

    def check() -> None:  # is called while the publisher waits
        if not orders:
            orders.append(client.receive(wire.LoadAdapter))
            if transport == "disk":
                sent = load_file(orders[0].path)
                assert hashlib.sha256(Path(orders[0].path).read_bytes()).hexdigest() == orders[0].sha256
            else:
                sent = load(orders[0].data)
            assert torch.equal(sent[NAME], weights.bfloat16())
            for version, stage in ((6, "done"), (7, "ready"), (7, "done")):
                client.send(wire.Synced(version=version, stage=stage, pause_s=0.0))  # type: ignore[arg-type]

    config = SyncConfig(directory=tmp_path / "files", transport=transport)
    publisher = AdapterPublisher(server, config, {"r": 4}, 256, "bfloat16", check)
    published = publisher.publish(7, lambda _: iter([(NAME, weights)]), PROBE)
    assert set(published.members) == {"one"} == set(server.members())
    assert (orders[0].version, orders[0].config) == (7, '{"r": 4}')
    assert "it takes weights by 'shared'" in other.receive(wire.Eject).reason
    assert not list(tmp_path.glob("files/*"))


def test_only_newcomers_get_an_adapter_that_was_published_before(server: WorkServer, tmp_path: Path) -> None:
    clients = {"one": Client(server.address, "one")}
    told: dict[str, list[int]] = {"one": [], "two": []}

    def check() -> None:  # is called while the publisher waits
        for name, client in clients.items():
            if client.socket.poll(0):
                version = client.receive(wire.LoadAdapter).version
                told[name].append(version)
                client.send(wire.Synced(version=version, stage="done", pause_s=0.0))

    publisher = AdapterPublisher(server, SyncConfig(directory=tmp_path), {"r": 4}, 256, "bfloat16", check)
    for version in (7, 7, 8):
        published = publisher.publish(version, lambda _: iter([(NAME, torch.zeros(4, 64))]), PROBE)
        assert set(published.members) == set(clients)
        server.mark_published(published.members)
        if "two" not in clients:
            clients["two"] = Client(server.address, "two")
    assert told == {"one": [7, 8], "two": [7, 8]}


def test_an_adapter_that_travels_for_longer_than_a_peer_may_be_silent_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 s for 16 MB, where a connection without a sign of life is given up after 3 s."""
    monkeypatch.setattr(sockets, "_PING_MS", 500)
    monkeypatch.setattr(sockets, "_DEAD_MS", 3_000)
    with reserve_port() as holder:
        server = WorkServer(f"tcp://127.0.0.1:{holder.getsockname()[1]}", lease_timeout_s=PATIENCE_S)
    client = Client(slow_way_to(server.address, bytes_per_s=2e6), "one")
    orders: list[wire.LoadAdapter] = []

    def check() -> None:  # is called while the publisher waits
        if not orders and client.socket.poll(0):
            orders.append(client.receive(wire.LoadAdapter))
            client.send(wire.Synced(version=7, stage="done", pause_s=0.0))

    weights = torch.randn(2048, 4096).bfloat16()
    publisher = AdapterPublisher(
        server, SyncConfig(timeout_s=30, directory=tmp_path), {"r": 4}, weights.numel(), "bfloat16", check
    )
    try:
        published = publisher.publish(7, lambda _: iter([(NAME, weights)]), PROBE)
        assert set(published.members) == {"one"} and published.seconds > 6
        assert hashlib.sha256(orders[0].data).hexdigest() == orders[0].sha256
    finally:
        server.close()


def slow_way_to(address: str, bytes_per_s: float) -> str:
    """An address that leads to this one; what comes back from there takes its time."""
    port = int(address.rpartition(":")[2])

    def carry(source: socket.socket, target: socket.socket, rest_s: float) -> None:
        with suppress(OSError):
            while data := source.recv(8192):
                target.sendall(data)
                time.sleep(len(data) * rest_s)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            near, _ = listener.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for ends in ((near, far, 0.0), (far, near, 1 / bytes_per_s)):
                threading.Thread(target=carry, args=ends, daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def test_an_engine_that_does_not_load_in_time_is_given_up(server: WorkServer, tmp_path: Path) -> None:
    client = Client(server.address, "one")
    publisher = make_publisher(server, tmp_path, timeout_s=0.2)
    assert not publisher.publish(7, lambda _: iter([(NAME, torch.zeros(4, 64))]), PROBE).members
    client.receive(wire.LoadAdapter)
    assert "did not load the adapter of version 7" in client.receive(wire.Eject).reason


def test_an_actor_that_leaves_is_not_waited_for(server: WorkServer, tmp_path: Path) -> None:
    client = Client(server.address, "one")
    client.send(wire.Leave(reason="its engine ended"))
    begin = time.monotonic()
    publisher = make_publisher(server, tmp_path, timeout_s=3600)
    assert not publisher.publish(1, lambda _: iter([(NAME, torch.zeros(4, 64))]), PROBE).members
    assert time.monotonic() < begin + PATIENCE_S


def test_adapters_too_large_for_a_message_need_a_directory(server: WorkServer, tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=r"take 381 MiB, and a message at most 255: set sync.transport = 'disk'"):
        make_publisher(server, tmp_path, parameters=200_000_000)
    make_publisher(server, tmp_path, parameters=200_000_000, transport="disk")


def test_a_directory_that_cannot_be_written_is_named(server: WorkServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    publisher = make_publisher(server, tmp_path / "file", transport="disk")
    with pytest.raises(FatalError, match=r"cannot write weights to sync.directory"):
        publisher.publish(1, lambda _: iter([(NAME, torch.zeros(4, 64))]), PROBE)
