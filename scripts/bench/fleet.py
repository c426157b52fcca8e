"""Runs the learner's loop with real actors and a reward process, and engines that replay lengths and latencies.

The engines and the training steps wait instead of computing, so that a few cores suffice to measure how they overlap.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist

from common.config import load
from common.tokenizer import load_tokenizer
from learner.build import build_run
from learner.checkpoint import Checkpoints
from learner.groups import StepResult
from learner.loop.interrupts import Interrupts
from learner.rank_links import RankLinks
from learner.ranks import Command, Ranks
from learner.train.distributed import set_up_distributed
from learner.train.policy import full_weights
from learner.train.trainer import Trainer
from learner.work.questions import read_questions
from learner.work.server import WorkServer
from scripts.bench.chaos.world import prepare, settings
from scripts.bench.support.light_engine import light_engine
from scripts.ops.supervise import Children

_ROOT = Path(__file__).parents[2]
_START_S = 120.0  # of an actor with its engine, on a busy machine
_ENDS = 2  # steps at the beginning and at the end that do not count, because the queue fills and empties there


class Fleet:
    """A reward process and actors, which serve one run after the other.

    Args:
        directory: for logs, runs and the model.
        flags: settings by their dotted keys.
    """

    def __init__(self, directory: Path, flags: Mapping[str, object]) -> None:
        prepare(directory, seed=0)
        own = {
            "learner.address": f"ipc://{directory}/queue", "reward.addresses": [f"ipc://{directory}/scores"],
            "run.dir": directory, "learner.lease_timeout_s": 60, "sync.timeout_s": 60,
        }  # fmt: skip
        self._directory, self._runs = directory, 0
        self._flags = [*settings(directory), *_flags({**own, **flags})]
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        os.environ["PYTHONPATH"] = os.pathsep.join([str(light_engine()), str(_ROOT)])
        torch.set_num_threads(1)
        set_up_distributed(600)
        config = load(self._flags)
        self.server = WorkServer(config.learner.address, config.learner.lease_timeout_s)
        self._trainer, self._tokenizer = Trainer(config), load_tokenizer(config.model.path)
        self._processes: dict[str, Children] = {}
        self._start("reward", "reward")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        for process in self._processes.values():
            process.stop()
        dist.destroy_process_group()

    def start(self, name: str, trace: str) -> None:
        """Starts an actor whose engine replays ``trace``. Blocks until it has joined."""
        self.trace(name, trace)
        os.environ["LIGHT_TRACE"] = str(self._directory / f"{name}.jsonl")
        self._start(name, "actor", "--actor.name", name)
        deadline = time.monotonic() + _START_S
        while name not in self.server.members():
            if time.monotonic() > deadline:
                raise SystemExit(f"error: no actor within {_START_S} s; see {self._processes[name].log(name)}")
            time.sleep(0.1)

    def trace(self, name: str, trace: str) -> None:
        """Replaces the trace that the engine of an actor replays."""
        (self._directory / f"{name}.jsonl").write_text(trace)

    def stop(self, name: str) -> None:
        """Ends an actor."""
        self.server.eject(name, self.server.members()[name], "it is not needed any more")
        self._processes[name].stop()

    def _start(self, name: str, package: str, *flags: str) -> None:
        self._processes[name] = Children(self._directory / "logs")
        self._processes[name].start(name, [sys.executable, "-m", package, *self._flags, *flags])

    def run(self, steps: int, train_s: float = 0.0, **learner: object) -> tuple[float, dict[str, float]]:
        """Runs the learner's own loop, with training steps that take ``train_s``. Blocks until the run has ended.

        Returns:
            Seconds per step in the middle of the run, and by actor the share of that time in which it had work.
        """
        self._runs += 1
        own = {"run.dir": self._directory / f"run-{self._runs}", "learner.steps": steps}
        config = load([*self._flags, *_flags({**own, **{f"learner.{k}": v for k, v in learner.items()}})])
        begun: list[float] = []  # when each training step began
        reported: list[dict[str, dict[str, float]]] = []

        def train(command: Command) -> StepResult:
            begun.append(time.monotonic())
            reported.append({name: peer.seconds for name, peer in self.server.members().items()})
            result = self._trainer.step(command.batch, command.number)
            time.sleep(max(0.0, begun[-1] + train_s - time.monotonic()))
            return result

        actions = {
            "train": train, "probe": lambda _: self._trainer.probe(),
            "gather": lambda _: full_weights(self._trainer.policy), "save": lambda _: None, "export": lambda _: None,
        }  # fmt: skip
        ranks, links = Ranks(actions), RankLinks("127.0.0.1")
        checkpoints = Checkpoints(config.run.dir / "checkpoints", 1)
        parts = self.server, self._trainer, read_questions(config, self._tokenizer), ranks, links, checkpoints
        build_run(config, *parts, None, None, Interrupts()).train()
        busy = {}
        for name, after in reported[-1 - _ENDS].items():
            spent = {s: v - reported[_ENDS][name].get(s, 0.0) for s, v in after.items() if not s.startswith("reward_")}
            busy[name] = 1 - spent.get("wait_work", 0.0) / max(sum(spent.values()), 1e-9)
        return (begun[-1 - _ENDS] - begun[_ENDS]) / (steps - 1 - 2 * _ENDS), busy


def _flags(settings: Mapping[str, object]) -> list[str]:
    return [part for key, value in settings.items() for part in (f"--{key}", str(value).replace("'", '"'))]
