"""Weights on their way: real actors with the light engine, stopped, wrong, of another model, left in a pause."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from common import wire
from common.config import Sync
from learner.publisher import Published, Publisher
from learner.server import Server

ROOT = Path(__file__).parents[1]
LIGHT = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "light"), "OMP_NUM_THREADS": "1"}


class Pool:
    """The learner's end, and actors that are processes."""

    def __init__(self, model: Path, directory: Path, **sync: Any) -> None:
        self.model, self.directory = model, directory
        self.address = f"ipc://{directory}/queue"
        self.server = Server(self.address, lease_timeout_s=5.0)
        self.sync = Sync(timeout_s=5, directory=directory, bucket_mb=0.05, **sync)
        self.publisher = Publisher(self.server, self.sync, torch.device("cpu"), lambda: None)
        self.policy: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.version = 0

    def start(self, name: str, *flags: str) -> None:
        command = [sys.executable, "-m", "actor", "--model.path", str(self.model), "--model.dtype", "float32"]
        command += ["--run.dir", str(self.directory), "--learner.address", self.address, "--actor.name", name]
        command += ["--sync.timeout_s", "5", "--reward.addresses", f'["ipc://{self.directory}/reward"]', *flags]
        with self.log(name).open("ab") as output:
            self.processes[name] = subprocess.Popen(command, env=LIGHT, cwd=ROOT, stdout=output, stderr=output)

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def engine(self, name: str) -> psutil.Process:
        return psutil.Process(self.processes[name].pid).children()[0]

    def until(self, condition: Callable[[], object], what: str, timeout: float = 90) -> None:
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
        return self.publisher.publish(self.version, weights, probe)

    def close(self) -> None:
        for process in self.processes.values():
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
            process.wait()
        self.server.close()


@pytest.fixture(scope="module")
def pool(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tiny_policy, tmp_path_factory.mktemp("pool"))
    for name in ("one", "two"):
        pool.start(name)
    pool.start("reader", "--sync.transport", "disk")
    pool.here("one", "two", "reader")
    yield pool
    pool.close()


def test_every_engine_gets_the_weights_and_proves_it(pool: Pool) -> None:
    for _ in range(2):
        done = pool.publish()
        assert set(done.members) == {"one", "two", "reader"}
        for name in done.members:
            pool.until(lambda name=name: pool.proved(name), f"{name} proves version {pool.version}")  # type: ignore[misc]
        assert done.pause_s <= done.seconds
    assert not list(pool.directory.glob("lrpo-*")), "the file is gone"


def test_one_that_stops_in_the_middle_of_a_broadcast_is_named_and_costs_its_deadline_alone(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped between pause and weights: the learner is in the broadcast when its deadline passes."""
    pool.here("one", "two", "reader")
    before, stopped = pool.publisher._send, pool.engine("one")

    def stop_first(name: str, *rest: Any) -> None:
        if name == "one":
            stopped.send_signal(signal.SIGSTOP)
        before(name, *rest)

    pool.publisher._send = stop_first  # type: ignore
    with caplog.at_level(logging.WARNING):
        done = pool.publish()
    assert "giving up actor one: the weights did not reach its engine" in caplog.text
    pool.publisher._send = before  # type: ignore[method-assign]
    assert set(done.members) == {"two", "reader"}
    assert done.seconds < 2 * pool.sync.timeout_s
    pool.here("one", "two", "reader")
    assert set(pool.publish().members) == {"one", "two", "reader"}, "caught up"
    assert "starting the engine again" in pool.log("one").read_text()


def test_an_engine_with_other_weights_is_started_again(pool: Pool) -> None:
    """A tensor that was harmed on the way is found by the probe, and no answer made with it is sent."""
    pool.here("one", "two", "reader")
    peers = pool.server.members()
    pool.publish(harm=lambda weights: weights[3][1].mul_(1.01))
    for name in ("one", "two", "reader"):
        words = f"after the update to version {pool.version} the engine's log-probabilities"
        pool.until(lambda name=name, words=words: words in pool.log(name).read_text(), words)  # type: ignore[misc]
    pool.until(lambda: not any(pool.server.peers.get(n) is p for n, p in peers.items()), "all leave")
    pool.here("one", "two", "reader")
    assert set(pool.publish().members) == {"one", "two", "reader"}


def test_an_engine_of_another_model_is_refused(pool: Pool, tmp_path: Path) -> None:
    other = AutoModelForCausalLM.from_pretrained(pool.model)
    other.resize_token_embeddings(336)
    other.save_pretrained(tmp_path)
    port = "23817"
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(tmp_path), "--port", port]
    engine = subprocess.Popen(command, env=LIGHT)
    try:
        pool.until(lambda: answers(f"http://127.0.0.1:{port}"), "the engine answers")
        pool.start("stranger", "--actor.engine_url", f"http://127.0.0.1:{port}")
        pool.here("stranger")
        assert "stranger" not in pool.publish().members
        assert pool.processes["stranger"].wait(60) == 1
        told = pool.log("stranger").read_text()
        assert (
            "serves another model" in told and "model.embed_tokens.weight is [320, 64], the engine's [336, 64]" in told
        )
    finally:
        engine.kill()
        engine.wait()
        del pool.processes["stranger"]


def test_an_engine_left_paused_by_a_killed_actor_goes_on_with_the_next(pool: Pool) -> None:
    port = "23818"
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(pool.model), "--port", port]
    engine = subprocess.Popen(command, env=LIGHT)
    try:
        pool.until(lambda: answers(url), "the engine answers")
        for route in ("pause_generation", "begin_weight_update"):
            post(f"{url}/{route}", {"mode": "retract"})
        pool.start("next", "--actor.engine_url", url)
        pool.here("next")
        assert "next" in pool.publish().members
        pool.until(lambda: pool.proved("next"), "it generates")
    finally:
        engine.kill()
        engine.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=1) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def post(url: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=5).close()
