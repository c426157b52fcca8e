"""Whole runs over several hosts, which are network namespaces of this one. ``pytest -m slow``

Every process is started by its launch script, as the launchers of a cluster do.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from zmq.auth import create_certificates

from learner import recording
from scripts.bench.chaos.world import prepare
from tests.support.hosts import ROOT, Host, network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_PATIENCE_S = 240.0  # for anything, on a busy machine


class Run:
    """A run's directory, which all hosts see, and its processes."""

    def __init__(self, directory: Path, world: Path, steps: int, **settings: object) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        if not (world / "model").exists():
            prepare(world, 0)
        keys = directory / "keys"
        (keys / "clients").mkdir(parents=True, exist_ok=True)
        create_certificates(keys, "server")
        create_certificates(keys / "clients", "actor")
        self.environment = {"LRPO_KEYS": str(keys), "PYTHONPATH": str(ROOT / "tests" / "support" / "light")}
        self.environment["LRPO_DEVICE"] = os.environ.get("LRPO_DEVICE", "cpu")  # of hosts whose GPUs are pretended
        values: dict[str, object] = {
            "run.dir": directory / "run", "run.rendezvous": directory / "rendezvous",
            "run.languages": '["de", "en", "zh"]', "model.path": world / "model", "model.dtype": "float32",
            "data.train": world / "train.parquet", "router.rollouts": 3, "router.own_language": 1,
            "sampling.max_new_tokens": 12, "actor.groups_in_flight": 2, "actor.request_timeout_s": 30,
            "actor.restarts": 1000, "actor.start_timeout_s": 200, "reward.addresses": '["tcp://*:5701"]',
            "reward.request_timeout_s": 20, "learner.address": "tcp://*:5700", "learner.steps": steps,
            "learner.groups_per_step": 4, "learner.window": 3, "learner.lr": 1e-3, "learner.kl": 0.0,
            "learner.param_dtype": "float32", "learner.checkpoint_every": 2, "learner.evaluate": "false",
            "learner.lease_timeout_s": 6, "learner.group_attempts": 1000, "sync.timeout_s": 6, "sync.bucket_mb": 0.1,
            "learner.record": directory / "record", **{k.replace("__", "."): v for k, v in settings.items()},
        }  # fmt: skip
        self.flags = [part for key, value in values.items() for part in (f"--{key}", str(value))]

    def start(self, host: Host, role: str, name: str = "", *flags: str) -> Any:
        command = [str(ROOT / "scripts" / f"launch_{role}.sh"), *self.flags, *flags]
        command += ["--actor.name", name] if role == "actor" else []
        return host.start(command, self.log(name or role), self.environment)

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def told(self, name: str, pattern: str) -> list[str]:
        path = self.log(name)
        return re.findall(pattern, path.read_text(errors="replace")) if path.exists() else []

    def step(self) -> int:
        return max([0, *map(int, self.told("learner", r" step (\d+)/")[-1:])])

    def until(self, condition: Callable[[], object], what: str) -> float:
        began = time.monotonic()
        while not condition():
            logs = {log.name: log.read_text(errors="replace")[-1500:] for log in self.directory.glob("*.log")}
            assert time.monotonic() < began + _PATIENCE_S, f"not {what}: {json.dumps(logs, indent=1)}"
            time.sleep(0.1)
        return time.monotonic() - began

    def goes_on(self, steps: int) -> float:
        goal = self.step() + steps
        return self.until(lambda: self.step() >= goal, f"at step {goal}")

    def summary(self) -> dict[str, Any]:
        path = self.directory / "run" / "summary.json"
        self.until(path.exists, "finished")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def ledger(self) -> list[int]:
        """Numbers of the groups of which it says what became of them; 0, 1, 2, … if none is lost and none doubled."""
        lines = (self.directory / "run" / "ledger.jsonl").read_text().splitlines()
        return sorted(json.loads(line)["sequence"] for line in lines)

    def steps(self) -> list[recording.Step]:
        self.summary()
        return list(recording.read(self.directory / "record")[1])


def tokens(steps: list[recording.Step]) -> list[list[int]]:
    return [r.response_ids.tolist() for step in steps for group in step.groups for r in group.rollouts]


def test_links_and_hosts_fail_and_nothing_is_lost(tmp_path: Path) -> None:
    """Learner, reward and three actors on hosts of their own; a link goes and comes, the learner's host dies."""
    run = Run(tmp_path, tmp_path, steps=10_000)
    run.environment["LIGHT_TOKEN_S"] = "0.05"  # the step waits for the engines, so each holds groups when its link goes
    took: dict[str, float] = {}
    with network(6) as (first, reward, *others, spare):
        learner = run.start(first, "learner")
        run.start(reward, "reward")
        for n, host in enumerate(others):
            run.start(host, "actor", f"actor-{n}")
        run.until(lambda: run.step() >= 3, "training")
        here = len(run.told("learner", "actor actor-1 is here"))
        others[1].link("down")
        gone = "(?:actor-1 was silent|giving up actor actor-1)"
        took["link down to leases back"] = run.until(lambda: run.told("learner", gone), "noticed")
        took["5 steps without it"] = run.goes_on(5)
        others[1].link("up")
        back = r"actor actor-1 is here"
        took["link up to hello"] = run.until(lambda: len(run.told("learner", back)) > here, "back")
        proved = len(run.told("actor-1", "nats from the learner"))
        took["caught up"] = run.until(
            lambda: len(run.told("actor-1", "nats from the learner")) > proved, "with new weights"
        )
        run.goes_on(2)
        reissued = sum(map(int, run.told("actor-1", r"dropping (\d+) groups")))
        first.kill()
        first.link("down")
        assert learner.poll() is not None
        before = run.step()
        run.log("learner").rename(run.log("learner-first"))
        last = before + 6
        run.start(spare, "learner", "", "--learner.steps", str(last))
        took["host lost to first step"] = run.until(lambda: run.step() > 0, "resumed")
        summary = run.summary()
    place = json.loads((tmp_path / "rendezvous" / "learner.json").read_text())
    assert place["address"] == f"tcp://{spare.address}:5700" and place["life"] == 2 and place["key"]
    print({name: round(seconds, 1) for name, seconds in took.items()}, before, summary["steps"], reissued, flush=True)
    resumed = run.told("learner", r"resuming after step (\d+)")
    assert resumed and before - 3 <= int(resumed[0]) <= before
    assert len(run.told("learner", r"actor actor-\d is here")) == 3, "all of them have found it"
    assert reissued > 0 and run.ledger() == [*range(4 * last)], "what it held is trained, and all else, once"
    assert (summary["steps"], summary["questions_lost"], summary["questions_duplicated"]) == (last, 0, 0)
    assert summary["groups_failed"] == 0 and summary["staleness_max"] <= summary["staleness_bound"]


def synchronous(directory: Path, delay_s: float = 0.0, loss: float = 0.0, nodes: int = 1) -> Run:
    """A finished run of which every step is determined: S = 0, one actor, one group at a time."""
    run = Run(
        directory, directory.parent, steps=6, learner__staleness=0, learner__window=1, actor__groups_in_flight=1,
        learner__nodes=nodes,
        learner__torchrun="10.77.0.1:29400", learner__lease_timeout_s=60, sync__timeout_s=60,
    )  # fmt: skip
    with network(nodes + 2, delay_s, loss) as hosts:
        for host in hosts[:nodes]:
            run.start(host, "learner")
        run.start(hosts[-1], "reward")
        run.start(hosts[-2], "actor", "actor")
        run.summary()
    return run


def test_latency_and_loss_change_throughput_and_no_result(tmp_path: Path) -> None:
    near, far = synchronous(tmp_path / "near"), synchronous(tmp_path / "far", delay_s=0.05, loss=0.01)
    rates = [run.summary()["tokens_per_second"] for run in (near, far)]
    print("tokens/s near and far", rates, flush=True)
    here, there = near.steps(), far.steps()
    assert tokens(here) == tokens(there)
    assert [(step.loss, step.grad_norm) for step in here] == [(step.loss, step.grad_norm) for step in there]
    assert len({step.grad_norm for step in here}) == 6 and rates[1] < rates[0]


def test_two_nodes_train_as_one(tmp_path: Path) -> None:
    one, two = synchronous(tmp_path / "one").steps(), synchronous(tmp_path / "two", nodes=2).steps()
    assert tokens(one) == tokens(two)
    norms = [step.grad_norm for step in one]
    print("gradient norms", norms, [step.grad_norm for step in two], flush=True)
    assert len(set(norms)) == 6 and min(norms) > 1e-3
    assert [step.grad_norm for step in two] == pytest.approx(norms, rel=1e-4)
    assert [step.loss for step in two] == pytest.approx([step.loss for step in one], abs=1e-6)


def test_a_failed_rank_restarts_all_from_the_newest_checkpoint(tmp_path: Path) -> None:
    """On two nodes, and by torchrun alone: nobody starts anything again. A SIGTERM to both saves and ends them."""
    run = Run(
        tmp_path, tmp_path, steps=10_000, learner__nodes=2, learner__torchrun="10.77.0.1:29400", learner__restarts=2,
        learner__checkpoint_every=1,
    )  # fmt: skip
    with network(4) as hosts:
        launched = [run.start(host, "learner") for host in hosts[:2]]
        run.start(hosts[2], "reward")
        run.start(hosts[3], "actor", "actor")
        run.until(lambda: run.step() >= 3, "training")
        [victim] = ranks(hosts[1])
        os.kill(victim, signal.SIGKILL)
        took = run.until(lambda: run.told("learner", r"resuming after step \d+"), "resumed")
        run.goes_on(3)
        print(f"a rank lost to resumed: {took:.1f} s", flush=True)
        for process in launched:
            process.terminate()
        run.until(lambda: all(process.poll() is not None for process in launched), "ended")
    saved = run.told("learner", r"interrupted after step (\d+); the same command resumes")
    assert saved and (tmp_path / "run" / "checkpoints" / f"step-{int(saved[0]):06d}" / "manifest.json").exists()


def ranks(host: Host) -> list[int]:
    """The learner's processes there, without torchrun's own."""
    commands = {pid: psutil.Process(pid).cmdline() for pid in host.pids()}
    return [pid for pid, command in commands.items() if command[1:4] == ["-u", "-m", "learner"]]
