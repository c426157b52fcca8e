"""Weights on their way: real actors with the light engine, stopped, wrong, of another model, left in a pause."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import unittest.mock
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from common import wire
from common.config import SyncConfig
from common.net.ports import reserve_port
from learner.train.policy import full_weights, published_shapes
from learner.train.trainer import Trainer
from learner.weights.buckets import plan
from learner.weights.publisher import Published, Publisher, _Belt, _Cargo
from learner.work.actors import ActorState
from learner.work.server import WorkServer
from tests.support.train_once import configuration, run_ranks

ROOT = Path(__file__).parents[3]
LIGHT = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support" / "light"), "OMP_NUM_THREADS": "1"}


_PATIENCE_S = 120  # of everything that should come; what should not is given less


def start_actor(model: Path, directory: Path, address: str, name: str, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "actor", "--model.path", str(model), "--model.dtype", "float32"]
    command += ["--run.dir", str(directory), "--learner.address", address, "--actor.name", name]
    command += ["--sync.timeout_s", str(_PATIENCE_S), "--reward.addresses", f'["ipc://{directory}/reward"]', *flags]
    with (directory / f"{name}.log").open("ab") as output:
        return subprocess.Popen(command, env=LIGHT, cwd=ROOT, stdout=output, stderr=output)


def kill(process: subprocess.Popen[bytes]) -> None:
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):  # it has died with its parent
            each.kill()
    process.wait()


class Pool:
    """The learner's end, and actors that are processes."""

    def __init__(self, model: Path, directory: Path) -> None:
        self.model, self.directory = model, directory
        self.address = f"ipc://{directory}/queue"
        self.server = WorkServer(self.address, lease_timeout_s=_PATIENCE_S)
        self.sync = SyncConfig(timeout_s=_PATIENCE_S, directory=directory, bucket_mb=0.05)
        self.policy: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        shapes = {name: list(value.shape) for name, value in self.policy.named_parameters()}
        self.buckets = plan(shapes, "float32", self.sync.bucket_mb)
        self.publisher = Publisher(self.server, self.sync, self.buckets, torch.device("cpu"), lambda: None)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.version = 0

    def start(self, name: str, *flags: str) -> None:
        self.processes[name] = start_actor(self.model, self.directory, self.address, name, *flags)

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def engine(self, name: str) -> psutil.Process:
        return psutil.Process(self.processes[name].pid).children()[0]

    def until(self, condition: Callable[[], object], what: str, timeout: float = 600) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            told = {path.name: path.read_text()[-2000:] for path in self.directory.rglob("*.log")}
            assert time.monotonic() < deadline, f"{what}: did not happen\n{told}"
            time.sleep(0.05)

    def here(self, *names: str) -> None:
        self.until(lambda: set(names) <= set(self.server.members()), f"{names} come")

    def proved(self, name: str) -> bool:
        return f"version {self.version}: " in self.log(name).read_text()

    def publish(self, harm: Callable[[list[tuple[str, torch.Tensor]]], object] | None = None) -> Published:
        """New random weights."""
        self.version += 1
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
            ids = torch.randint(0, 320, (20,))
            logp = self.policy(ids[None]).logits[0].log_softmax(-1)[range(19), ids[1:]]
        weights = [(name, value.detach().clone()) for name, value in self.policy.named_parameters()]
        if harm is not None:
            harm(weights)
        probe = wire.Probe(ids=ids.numpy().astype(np.int32), logprobs=logp.numpy(), tolerance=1e-4)
        return self.publisher.publish(self.version, iter(weights), probe)

    def close(self) -> None:
        for process in self.processes.values():
            kill(process)
        self.server.close()


@pytest.fixture(scope="module")
def pool(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tiny_policy, tmp_path_factory.mktemp("pool"))
    for name in ("one", "two"):
        pool.start(name)
    pool.start("reader", "--sync.transport", "disk")
    pool.start("borrower", "--sync.transport", "shared")
    pool.here("one", "two", "reader", "borrower")
    yield pool
    pool.close()


def test_every_engine_gets_the_weights_and_proves_it(pool: Pool) -> None:
    for _ in range(2):
        done = pool.publish()
        assert set(done.members) == {"one", "two", "reader", "borrower"}
        for name in done.members:
            pool.until(lambda name=name: pool.proved(name), f"{name} proves version {pool.version}")  # type: ignore[misc]
        assert done.pause_s <= done.seconds
    assert not list(pool.directory.glob("lrpo-*")), "the file is gone"


def test_one_that_stops_in_the_middle_of_a_broadcast_is_named_and_costs_its_deadline_alone(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped between pause and weights: the learner is in the broadcast when its deadline passes."""
    pool.here("one", "two", "reader", "borrower")
    before, stopped = pool.publisher._send, pool.engine("one")

    def stop_first(name: str, peer: ActorState, group: Any, cargo: _Cargo) -> None:
        if name == "one":
            stopped.send_signal(signal.SIGSTOP)
            cargo = replace(cargo, order=cargo.order.model_copy(update={"timeout_s": 3.0}))
        before(name, peer, group, cargo)

    pool.publisher._send = stop_first  # type: ignore
    with caplog.at_level(logging.WARNING):
        done = pool.publish()
    assert "giving up actor one: the weights did not reach its engine" in caplog.text
    pool.publisher._send = before  # type: ignore[method-assign]
    assert set(done.members) == {"two", "reader", "borrower"}
    pool.here("one", "two", "reader", "borrower")
    assert set(pool.publish().members) == {"one", "two", "reader", "borrower"}, "caught up"
    assert "starting the engine again" in pool.log("one").read_text()


def test_an_engine_with_other_weights_is_started_again(pool: Pool) -> None:
    """A tensor that was harmed on the way is found by the probe, and no answer made with it is sent."""
    pool.here("one", "two", "reader", "borrower")
    peers = pool.server.members()
    pool.publish(harm=lambda weights: weights[3][1].mul_(1.01))
    for name in ("one", "two", "reader", "borrower"):
        words = f"after the update to version {pool.version} the engine's log-probabilities"
        pool.until(lambda name=name, words=words: words in pool.log(name).read_text(), words)  # type: ignore[misc]
    pool.until(lambda: not any(pool.server.is_present(n, p) for n, p in peers.items()), "all leave")
    pool.here("one", "two", "reader", "borrower")
    assert set(pool.publish().members) == {"one", "two", "reader", "borrower"}


@contextmanager
def engine(pool: Pool, model: Path) -> Iterator[str]:
    """The address of one that is nobody's child."""
    with reserve_port() as holder:
        port = str(holder.getsockname()[1])
        command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), "--port", port]
        process = subprocess.Popen(command, env=LIGHT)
        try:
            pool.until(lambda: answers(f"http://127.0.0.1:{port}"), "the engine answers")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def test_an_engine_of_another_model_is_refused(pool: Pool, tmp_path: Path) -> None:
    other = AutoModelForCausalLM.from_pretrained(pool.model)
    other.resize_token_embeddings(336)
    other.save_pretrained(tmp_path)
    with engine(pool, tmp_path) as url:
        pool.start("stranger", "--actor.engine_url", url)
        pool.here("stranger")
        assert "stranger" not in pool.publish().members
        assert pool.processes.pop("stranger").wait(_PATIENCE_S) == 1
    told = pool.log("stranger").read_text()
    assert "serves another model" in told and "model.embed_tokens.weight is [320, 64], the engine's [336, 64]" in told


def test_an_engine_left_paused_by_a_killed_actor_goes_on_with_the_next(pool: Pool) -> None:
    with engine(pool, pool.model) as url:
        for route in ("pause_generation", "begin_weight_update"):
            post(f"{url}/{route}", {"mode": "retract"})
        pool.start("next", "--actor.engine_url", url)
        pool.here("next")
        assert "next" in pool.publish().members
        pool.until(lambda: pool.proved("next"), "it generates")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["", *filter(None, os.environ.get("SGLANG_DIRS", "").split(":"))])
def test_both_ranks_of_a_real_engine_take_the_weights(
    version: str, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang, tensor-parallel; with ``SGLANG_DIRS`` also others, as in ``tests/actor/engine/test_client.py``."""
    monkeypatch.setitem(LIGHT, "PYTHONPATH", version)
    monkeypatch.setitem(LIGHT, "SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    pool = Pool(tiny_policy, tmp_path)
    try:
        pool.start("wide", "--actor.engine_args", "{tp = 2}")
        pool.until(pool.server.members, "the engine starts", 240)
        assert pool.server.members()["wide"].engine_ranks == 2
        for _ in range(2):
            assert "wide" in pool.publish().members
            pool.until(lambda: pool.proved("wide"), "it has them")
    finally:
        pool.close()


def test_an_interrupt_while_a_group_forms_waits_for_nobody(pool: Pool) -> None:
    """An engine that is stopped does not enter its group; the learner's threads end all the same, long before."""
    pool.start("late")
    pool.here("one", "late")
    pool.engine("late").send_signal(signal.SIGSTOP)
    begin = time.monotonic()

    def interrupt() -> None:
        if time.monotonic() > begin + 2:
            raise InterruptedError

    publisher, patient = pool.publisher, pool.sync.model_copy(update={"timeout_s": 3600.0})
    pool.publisher = Publisher(pool.server, patient, pool.buckets, torch.device("cpu"), interrupt)
    with pytest.raises(InterruptedError):
        pool.publish()
    pool.publisher = publisher
    for thread in threading.enumerate():
        if thread.name.startswith("weights of"):
            thread.join(_PATIENCE_S)
            assert not thread.is_alive(), thread.name
    kill(pool.processes.pop("late"))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.randoms(use_true_random=True))
def test_no_more_is_gathered_ahead_than_one_bucket_and_all_get_everything_in_order(
    count: int, number: int, chance: random.Random
) -> None:
    """Senders of any speed, of which some give up."""
    senders = ["a", "b", "c"][:number]
    belt, got, put, fastest = _Belt(senders, []), dict.fromkeys(senders, 0), 0, 0
    with unittest.mock.patch("learner.weights.publisher._TURN_S", 0):
        while put < count or got:
            mover = chance.choice(["gather", "give up", *got])
            if mover == "gather" and put < count and belt.has_room(put):
                assert not got or put <= max(got.values()) + 1
                belt.put(put, torch.tensor(put))
                put += 1
            elif mover == "give up" and got and chance.random() < 0.1:
                belt.leave(gone := chance.choice(sorted(got)))
                del got[gone]
            elif mover in got:
                buffer = belt.get(mover, got[mover])
                assert (buffer is None) == (got[mover] >= put)
                if buffer is not None:
                    assert int(buffer) == got[mover]
                    got[mover] += 1
                    if got[mover] == count:
                        belt.leave(mover)
                        del got[mover]
            fastest = max([fastest, *belt._sent.values()])
            assert len(belt._kept) <= 2 + fastest - min(belt._sent.values(), default=fastest + 2)


def test_what_two_ranks_gather_reaches_both_engines(tiny_policy: Path, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/queue"
    actors = [start_actor(tiny_policy, tmp_path, address, name) for name in ("one", "two")]
    try:
        assert run_ranks(2, publish_from_ranks, tiny_policy, address, tmp_path) == [0, 0]
    finally:
        for actor in actors:
            kill(actor)


def publish_from_ranks(model: Path, address: str, directory: Path) -> None:
    """Two versions; returns when both engines have shown that their weights are those of the sharded policy."""
    trainer = Trainer(configuration(model, "--model.dtype", "float32"))
    server = WorkServer(address, lease_timeout_s=60) if dist.get_rank() == 0 else None
    if server is not None:
        buckets = plan(published_shapes(trainer.policy), "float32", 0.05)
        publisher = Publisher(server, SyncConfig(timeout_s=60), buckets, torch.device("cpu"), lambda: None)
    for version in (1, 2):
        with torch.no_grad():
            for parameter in trainer.policy.parameters():
                parameter.mul_(1 + 0.1 * version)
        probe, weights = trainer.probe(), full_weights(trainer.policy)
        if server is None:
            deque(weights, maxlen=0)
            continue
        while len(server.members()) < 2:
            time.sleep(0.1)
        assert len(publisher.publish(version, weights, probe).members) == 2
        for name in ("one", "two"):
            while f"version {version}: " not in (directory / f"{name}.log").read_text():
                time.sleep(0.1)
                assert len(server.members()) == 2, "an engine with other weights leaves"
    if server is not None:
        server.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=1) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def post(url: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=_PATIENCE_S).close()
