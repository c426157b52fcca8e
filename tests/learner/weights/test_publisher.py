"""Rounds with real actors and the light engine: engines that stop, get wrong weights, or have another model.

All tests share the same actors, because to start one takes seconds. A test that needs another state of an actor makes
it, and ``present`` starts what an earlier test has killed, so the order of the tests does not matter.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from common.config import SyncConfig
from common.net.ports import reserve_port
from learner.train.policy import full_weights, published_shapes
from learner.train.trainer import Trainer
from learner.weights.bucket_queue import BucketQueue
from learner.weights.buckets import bytes_of, cut_into_buckets
from learner.weights.leader import _LeaderRound as LeaderRound
from learner.weights.publisher import Publisher
from learner.weights.transports import GroupTransport
from learner.work.server import WorkServer
from tests.support.actor_pool import LIGHT, PATIENCE_S, ActorPool, kill
from tests.support.processes import Popen
from tests.support.train_once import configuration, run_ranks

ACTORS = {
    "one": [],
    "two": [],
    "disk": ["--sync.transport", "disk"],
    "shared": ["--sync.transport", "shared"],
}


@pytest.fixture(scope="module")
def pool(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ActorPool]:
    pool = ActorPool(tiny_policy, tmp_path_factory.mktemp("pool"))
    yield pool
    pool.close()


@pytest.fixture
def present(pool: ActorPool) -> ActorPool:
    """The pool when all actors are there, started where they were not."""
    for name, flags in ACTORS.items():
        if name not in pool.processes:
            pool.start(name, *flags)
    pool.here(*ACTORS)
    return pool


@pytest.fixture(scope="module")
def engine_url(pool: ActorPool) -> Iterator[str]:
    """The address of an engine that no actor has started."""
    with reserve_port() as holder:
        port = str(holder.getsockname()[1])
        command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(pool.model), "--port", port]
        process = Popen(command, env=LIGHT)
        try:
            pool.until(lambda: answers(f"http://127.0.0.1:{port}"), "the engine answers")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def test_every_engine_gets_the_weights_and_proves_it(present: ActorPool) -> None:
    """The first round forms the groups, and the second uses them again."""
    for _ in range(2):
        published = present.publish()
        assert set(published.members) == set(ACTORS)
        for name in published.members:
            present.until(lambda name=name: present.proved(name), f"{name} proves version {present.version}")  # type: ignore[misc]
        assert published.pause_s <= published.seconds
    assert not list(present.directory.glob("lrpo-*")), "the files are gone"


def test_an_engine_that_stops_in_a_broadcast_is_named_and_costs_nothing_but_its_deadline(
    present: ActorPool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine stops after its pause, so the learner is in the broadcast when the deadline passes."""
    stopped = present.engine("one")

    def stop_first(round_: LeaderRound) -> LeaderRound:
        stopped.send_signal(signal.SIGSTOP)
        deadlines = replace(round_.plan.deadlines, bucket_s=1.0)
        return replace(round_, plan=msgspec.structs.replace(round_.plan, deadlines=deadlines))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        change_round(present, "one", stop_first, patch)
        published = present.publish()
    assert "giving up actor one: the weights did not reach its engine" in caplog.text
    assert set(published.members) == {"two", "disk", "shared"}
    present.here(*ACTORS)
    assert set(present.publish().members) == set(ACTORS), "it caught up"
    assert "starting the engine again" in present.log("one").read_text()


class ChangedOnTheWay:
    """The round's queue for one sender, with weights of one bucket that are off by 1%."""

    def __init__(self, inner: BucketQueue, number: int, size: int) -> None:
        self._inner, self._number, self._size = inner, number, size

    def get(self, sender: str, number: int) -> torch.Tensor | None:
        buffer = self._inner.get(sender, number)
        if buffer is None or number != self._number:
            return buffer
        changed = buffer.clone()
        changed[: self._size].view(torch.float32).mul_(1.01)
        return changed

    def leave(self, sender: str) -> None:
        self._inner.leave(sender)


def change_round(
    pool: ActorPool, name: str, change: Callable[[LeaderRound], LeaderRound], patch: pytest.MonkeyPatch
) -> None:
    """What the leader does for one actor's engine, it does with a changed round."""
    leader, groups = pool.publisher.leader, cast(GroupTransport, pool.publisher.transports["group"])
    wait_for_round = leader._wait_for_round

    def changed(group: Any, number: int) -> LeaderRound:
        round_ = wait_for_round(group, number)
        return change(round_) if groups._groups[name].name == group.name else round_

    patch.setattr(leader, "_wait_for_round", changed)


def test_an_engine_with_other_weights_is_found_by_the_probe_and_started_again(
    present: ActorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = present.server.members()

    def harm(round_: LeaderRound) -> LeaderRound:
        changed = ChangedOnTheWay(round_.queue, 1, bytes_of(present.buckets[1]))
        return replace(round_, queue=cast(BucketQueue, changed))

    with monkeypatch.context() as patch:
        change_round(present, "two", harm, patch)
        assert set(present.publish().members) == set(ACTORS)
    words = f"with the weights of version {present.version} the engine's log-probabilities"
    present.until(lambda: words in present.log("two").read_text(), words)
    for name in ("one", "disk", "shared"):
        present.until(lambda name=name: present.proved(name), f"{name} proves version {present.version}")  # type: ignore[misc]
    assert not present.proved("two")
    present.until(lambda: not present.server.is_present("two", before["two"]), "it leaves")
    present.here(*ACTORS)
    assert all(present.server.is_present(name, before[name]) for name in ("one", "disk", "shared"))
    assert set(present.publish().members) == set(ACTORS)


def test_an_engine_of_another_model_is_refused_and_its_actor_says_so(
    pool: ActorPool, engine_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The learner of another model publishes to it, and waits no longer than the actor lives."""
    model = AutoModelForCausalLM.from_pretrained(pool.model)
    model.resize_token_embeddings(336)
    model.save_pretrained(tmp_path / "model")
    other = ActorPool(tmp_path / "model", tmp_path)

    try:
        # From files, because a broadcast that was begun to a lost engine ends only at its deadline.
        flags = ["--actor.engine_url", engine_url, "--sync.transport", "disk"]
        other.start("stranger", *flags, model=pool.model)
        other.here("stranger")
        assert not other.publish().members
        assert "was silent" not in caplog.text, "its lease would last for minutes"
        assert "actor stranger leaves: the engine at" in caplog.text and "serves another model" in caplog.text
        assert other.processes["stranger"].wait(PATIENCE_S) == 1
    finally:
        with suppress(Exception):
            other.processes["stranger"].kill()
        other.processes.clear()
        other.close()
    log = other.log("stranger").read_text()
    assert "serves another model" in log and "model.embed_tokens.weight is [336, 64], the engine's [320, 64]" in log


def test_an_engine_left_paused_by_a_killed_actor_goes_on_with_the_next(present: ActorPool, engine_url: str) -> None:
    for route in ("pause_generation", "begin_weight_update"):
        post(f"{engine_url}/{route}", {"mode": "retract"})
    # It waits for twice this time, as another actor might be in its weight update.
    present.start("next", "--actor.engine_url", engine_url, "--sync.timeout_s", "5")
    try:
        present.here("next")
        assert "next" in present.publish().members
        present.until(lambda: present.proved("next"), "it generates")
    finally:
        kill_and_forget(present, "next")


def test_what_two_ranks_gather_reaches_all_engines_and_actors_follow_to_another_learner(present: ActorPool) -> None:
    """The actors change from the learner of this process to one of two ranks at the same address, and back."""
    present.server.close(over=False)
    log = present.directory / "ranks.log"
    arguments = present.model, present.address, present.directory, present.version + 1
    try:
        assert run_ranks(2, publish_from_ranks, *arguments, output=log) == [0, 0], log.read_text()[-3000:]
    finally:
        present.version += 2
        present.listen()
    present.here(*ACTORS)
    assert set(present.publish().members) == set(ACTORS)


def publish_from_ranks(model: Path, address: str, directory: Path, first: int) -> None:
    """Publishes two versions; returns when all engines have proved that they have the weights of the sharded policy."""
    trainer = Trainer(configuration(model, "--model.dtype", "float32"))
    server = WorkServer(address, lease_timeout_s=60) if dist.get_rank() == 0 else None
    if server is not None:
        buckets = cut_into_buckets(published_shapes(trainer.policy), "float32", 0.05)
        sync = SyncConfig(timeout_s=PATIENCE_S, directory=directory)
        publisher = Publisher(server, sync, buckets, torch.device("cpu"), lambda: None)
    for version in (first, first + 1):
        with torch.no_grad():
            for parameter in trainer.policy.parameters():
                parameter.mul_(1.1)
        probe, weights = trainer.probe(), full_weights(trainer.policy)
        if server is None:
            deque(weights, maxlen=0)
            continue
        while len(server.members()) < len(ACTORS):
            time.sleep(0.1)
        published = publisher.publish(version, lambda _, weights=weights: weights, probe)  # type: ignore[misc]
        assert set(published.members) == set(ACTORS)
        for name in ACTORS:
            while f"version {version}: " not in (directory / f"{name}.log").read_text():
                time.sleep(0.1)
                assert len(server.members()) == len(ACTORS), "an engine with other weights leaves"
    if server is not None:
        server.close(over=False)


def test_an_interrupt_while_a_group_forms_waits_for_nobody(present: ActorPool) -> None:
    """An engine that is stopped does not join its group; the learner's threads end all the same, long before."""
    present.engine("two").send_signal(signal.SIGSTOP)
    begin = time.monotonic()

    def interrupt() -> None:
        if time.monotonic() > begin + 1:
            raise InterruptedError

    publisher, patient = present.publisher, present.sync.model_copy(update={"timeout_s": 3600.0})
    present.publisher = Publisher(present.server, patient, present.buckets, torch.device("cpu"), interrupt)
    try:
        with pytest.raises(InterruptedError):
            present.publish()
    finally:
        present.publisher = publisher
    for thread in threading.enumerate():
        if thread.name.startswith("weights of"):
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), thread.name
    for name in ("one", "two"):  # their engines wait for a group that no longer forms
        kill_and_forget(present, name)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["", *filter(None, os.environ.get("SGLANG_DIRS", "").split(":"))])
def test_both_ranks_of_a_real_engine_take_the_weights(
    version: str, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang, tensor-parallel; with ``SGLANG_DIRS`` also others, as in ``tests/actor/engine/test_client.py``."""
    monkeypatch.setitem(LIGHT, "PYTHONPATH", version)
    monkeypatch.setitem(LIGHT, "SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    pool = ActorPool(tiny_policy, tmp_path)
    try:
        pool.start("wide", "--actor.engine_args", "{tp = 2}")
        pool.until(pool.server.members, "the engine starts", 240)
        assert pool.server.members()["wide"].engine_ranks == 2
        for _ in range(2):
            assert "wide" in pool.publish().members
            pool.until(lambda: pool.proved("wide"), "it has them")
    finally:
        pool.close()


def kill_and_forget(pool: ActorPool, name: str) -> None:
    """Kills an actor and its engine, so that ``present`` starts it anew where it is needed."""
    kill(pool.processes.pop(name))
    if actor := pool.server.members().get(name):
        pool.server.eject(name, actor, "killed by the test")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=1) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def post(url: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=PATIENCE_S).close()
