"""The learner's end of the weight sync in the test process, and actors with the light engine as processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from common import wire
from common.config import SyncConfig
from learner.weights.buckets import cut_into_buckets
from learner.weights.publisher import Published, Publisher
from learner.work.server import WorkServer
from tests.support.processes import Popen

ROOT = Path(__file__).parents[2]
LIGHT = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support" / "light"), "OMP_NUM_THREADS": "1"}
PATIENCE_S = 120  # deadline of what should happen, on a busy machine; what should not happen is given less


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the process and its children, and waits for its end; does nothing if it has ended."""
    if process.poll() is not None:
        return
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):  # it has died with its parent
            each.kill()
    process.wait()


class ActorPool:
    """A learner's server and publisher, a policy, and actors that are processes.

    Args:
        model: directory of the policy that the engines begin with.
        directory: for logs, sockets and the files of weights.
    """

    def __init__(self, model: Path, directory: Path) -> None:
        self.model, self.directory = model, directory
        self.address = f"ipc://{directory}/queue"
        self.sync = SyncConfig(timeout_s=PATIENCE_S, directory=directory, bucket_mb=0.05)
        self.check: Callable[[], None] = lambda: None  # what the publisher calls while it waits
        self.policy: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        shapes = {name: list(value.shape) for name, value in self.policy.named_parameters()}
        self.buckets = cut_into_buckets(shapes, "float32", self.sync.bucket_mb)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.version = 0
        self.listen()

    def listen(self) -> None:
        """Begins to serve with a new server and publisher, as after a restart of the learner."""
        self.server = WorkServer(self.address, lease_timeout_s=PATIENCE_S)
        self.publisher = Publisher(self.server, self.sync, self.buckets, torch.device("cpu"), lambda: self.check())

    def start(self, name: str, *flags: str, model: Path | None = None) -> None:
        command = [sys.executable, "-m", "actor", "--model.path", str(model or self.model), "--model.dtype", "float32"]
        command += ["--run.dir", str(self.directory), "--learner.address", self.address, "--actor.name", name]
        command += ["--reward.addresses", f'["ipc://{self.directory}/reward"]', "--sync.timeout_s", str(PATIENCE_S)]
        with self.log(name).open("ab") as output:
            self.processes[name] = Popen([*command, *flags], env=LIGHT, cwd=ROOT, stdout=output, stderr=output)

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def engine(self, name: str) -> psutil.Process:
        guard = psutil.Process(self.processes[name].pid).children()[0]
        return guard.children()[0]

    def until(self, condition: Callable[[], object], what: str, timeout: float = 600) -> None:
        """Waits for the condition; fails after ``timeout`` seconds with the end of every log."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                logs = {path.name: path.read_text()[-2000:] for path in self.directory.rglob("*.log")}
                raise AssertionError(f"{what}: did not happen\n{logs}")
            time.sleep(0.05)

    def here(self, *names: str) -> None:
        """Waits until the actors are present."""
        self.until(lambda: set(names) <= set(self.server.members()), f"{names} come")

    def proved(self, name: str) -> bool:
        """Whether the actor's engine has proved that it has the newest weights."""
        return f"version {self.version}: " in self.log(name).read_text()

    def publish(self) -> Published:
        """Changes the policy at random and publishes it."""
        self.version += 1
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
            ids = torch.randint(0, 320, (20,))
            logp = self.policy(ids[None]).logits[0].log_softmax(-1)[range(19), ids[1:]]
        weights = [(name, value.detach().clone()) for name, value in self.policy.named_parameters()]
        probe = wire.Probe(ids=ids.numpy().astype(np.int32), logprobs=logp.numpy(), tolerance=1e-4)
        return self.publisher.publish(self.version, lambda _: iter(weights), probe)

    def close(self) -> None:
        for process in self.processes.values():
            kill(process)
        self.server.close()
