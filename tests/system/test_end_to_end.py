"""The demo as its user runs it, with every process real: interrupted, resumed, an actor killed, and bad starts."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.report.trackers.tensorboard_tracker import LINE_RUNS
from scripts.world.demo import prepare
from tests.support import processes

ROOT = Path(__file__).parents[2]
STEPS, GROUPS = 15, 4
SUMMARY = (
    "steps", "groups_trained", "questions_lost", "questions_duplicated", "staleness_max", "staleness_mean",
    "staleness_bound", "reward_before", "reward_after", "heldout_before", "heldout_after", "compliance_before",
    "compliance_after", "reward_by_language", "router_top_by_topic", "tokens_per_second", "bottleneck", "wall_seconds",
)  # fmt: skip

_PATIENCE_S = 900.0  # of what should come, on a busy machine
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2 * _PATIENCE_S)]


SCRIPT = (str(ROOT / "scripts" / "demo.sh"),)
FORKED = (sys.executable, "-m", "scripts.world.demo")  # without the starts of interpreters but for the engines


class Demo:
    """The demo as a child, started by ``launcher``, with its output by lines."""

    def __init__(self, cache: Path, run_dir: Path, *flags: str, launcher: Sequence[str]) -> None:
        self._run_dir = run_dir
        self._out = run_dir.with_suffix(".out")
        small = ["--reward.similarity_range", "[-1.0, 1.0]"]  # so that the answers of a poor policy differ in worth
        small += ["--learner.groups_per_step", str(GROUPS), "--learner.window", "3", "--learner.checkpoint_every", "2"]
        ports = ["--learner.address", f"ipc://{run_dir}.queue", "--reward.addresses", f'["ipc://{run_dir}.reward"]']
        command = [*launcher, "--cache", str(cache), "--run-dir", str(run_dir)]
        command += ["--learner.record", str(run_dir / "record")]
        command += ["--steps", str(STEPS), "--learner.evaluate_questions", "10"]
        patience = str(_PATIENCE_S)
        command += ["--actor.start_timeout_s", patience, "--learner.group_timeout_s", patience]
        with self._out.open("wb") as out:
            self.process = processes.Popen(
                [*command, *small, *ports, *flags], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
            )

    def output(self) -> str:
        return self._out.read_text(errors="replace")

    def log(self, name: str) -> str:
        """What a process of the run has logged so far."""
        path = self._run_dir / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, text: str, log: str = "") -> None:
        """Waits until the text is in the output, or in the log of a process."""
        deadline = time.monotonic() + _PATIENCE_S
        while text not in (self.log(log) if log else self.output()):
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{self.output()}"
            time.sleep(0.1)

    def step(self) -> int:
        """The newest step in the output; 0 before the first."""
        return max([0, *map(int, re.findall(rf" step (\d+)/{STEPS} ", self.output()))])

    def makes_steps(self, count: int) -> None:
        self.until(f" step {self.step() + count}/{STEPS} ")

    def ends(self, timeout: float = _PATIENCE_S) -> int:
        return self.process.wait(timeout)

    def leaves_nothing(self) -> bool:
        """Whether no process is left, a moment later: the children of a killed one die after it."""
        deadline = time.monotonic() + 60
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.processes()

    def processes(self) -> list[psutil.Process]:
        """Whatever runs for this run, engines included."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            words = [*(process.info["cmdline"] or []), (process.info["environ"] or {}).get("PWD", "")]
            if any(str(self._run_dir) in word for word in words):
                found.append(process)
        return found


@contextmanager
def demo(cache: Path, run_dir: Path, *flags: str, launcher: Sequence[str] = FORKED) -> Iterator[Demo]:
    running = Demo(cache, run_dir, *flags, launcher=launcher)
    try:
        yield running
    finally:
        for process in [*running.processes(), running.process]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        running.process.wait()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world and its policy, prepared as the demo does it."""
    cache = tmp_path_factory.mktemp("cache")
    with processes.forked():
        prepare(cache / "world-0", cache / "policy-0", 0, [])
    return cache


@pytest.fixture(scope="module")
def run_dir(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that lost an actor to SIGKILL on the way, was interrupted, and resumed."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    with demo(cache, run_dir, "--actors", "2") as first:
        first.until("actor actor-1 is here", log="learner")
        first.makes_steps(2)
        victims = [p for p in first.processes() if {"actor", "actor-1"} <= {*(p.info["cmdline"] or [])}]
        assert len(victims) == 1
        victims[0].send_signal(signal.SIGKILL)
        first.until("starting actor-1 again")
        first.makes_steps(2)
        first.process.send_signal(signal.SIGINT)
        assert first.ends(timeout=60) == 130  # 10 s on a quiet machine
        assert "the same command resumes" in first.output()
        assert first.leaves_nothing(), "an interrupted run leaves no process behind"
    with demo(cache, run_dir, "--actors", "1", launcher=SCRIPT) as second:
        second.until("resuming after step")
        assert second.ends() == 0, second.output()
        assert second.leaves_nothing(), "a finished run leaves no process behind"
    return run_dir


def test_the_summary_holds_the_promises(run_dir: Path, least: int = 1) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    assert not [key for key in SUMMARY if key not in summary]
    assert summary["steps"] == STEPS
    assert summary["groups_trained"] + summary["groups_zero_variance"] == STEPS * GROUPS
    assert (summary["questions_lost"], summary["questions_duplicated"], summary["groups_failed"]) == (0, 0, 0)
    assert least <= summary["staleness_max"] <= summary["staleness_bound"]
    assert 0 <= summary["reward_after"] <= 1 and 0.3 < summary["compliance_after"] <= 1
    assert len(summary["reward_by_language"]) == 10 and summary["tokens_per_second"] > 0
    shares = summary["time_shares"]
    routed = sum(sum(counts.values()) for counts in summary["routed_by_region"].values())
    assert routed > 0 and min(summary["region_language_bits"], summary["region_language_bits_shuffled"]) > 0
    assert {"learner", "reward", "actor actor-0"} <= set(shares)
    assert all(abs(sum(states.values()) - 1) < 1e-6 for states in shares.values())


def test_the_ledger_has_each_question_once(run_dir: Path) -> None:
    lines = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    assert sorted(line["sequence"] for line in lines) == list(range(STEPS * GROUPS))
    assert [line["step"] for line in lines] == [1 + n // GROUPS for n in range(STEPS * GROUPS)]
    for line in lines:
        assert len(line["languages"]) == len(line["propensities"]) == 8
        assert line["propensities"][:4] == [1.0] * 4, "reserved for the question's language"
        assert all(0 < propensity < 1 for propensity in line["propensities"][4:])


def test_tensorboard_shows_the_run(run_dir: Path) -> None:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    tags, scalars = events.Tags(), set[str]()
    for sub in LINE_RUNS:
        lines = EventAccumulator(str(run_dir / "tensorboard" / sub))
        lines.Reload()
        scalars |= set(lines.Tags()["scalars"])
    by_language = ("reward", "compliance", "length", "staleness", "share", "entropy", "mismatch")
    wanted = {
        "health/staleness_max", "health/staleness_bound", "health/mismatch", "health/probe_error",
        "health/skipped_steps", "learning/reward", "learning/compliance", "flow/tokens_per_second",
        "flow/learner/wait", "flow/actors/generate", "flow/actor_tokens/actor-0", "flow/pool_tokens/actor",
        "flow/kv_use/actor-1", "flow/reward/busy", "flow/bottleneck_cost", "evaluation_train/own",
        "router/region_language_bits", *(f"languages/{name}/ar" for name in by_language),
    }  # fmt: skip
    assert wanted <= scalars, wanted - scalars
    assert tags["histograms"] == ["health/staleness"]
    pictures = {"router/probabilities", "languages_by_step/reward", "actors_by_step/kv_use", "staleness_by_step/tokens"}
    assert pictures <= set(tags["images"])
    points = [point.step for point in events.Scalars("learning/reward")]
    assert points == list(range(1, STEPS + 1)), "the step that was interrupted has its point, too"
    assert {"custom_scalars__config__", "sample/text_summary"} <= set(tags["tensors"])
    first = events.Scalars("health/mismatch")[0].value
    assert first < 1e-4, "tokens of the current weights: engine and learner agree on their log-probabilities"
    assert abs(events.Scalars("learning/importance_weight")[0].value - 1) < 1e-3
    assert abs(events.Scalars("learning/kl")[0].value) < 1e-6


def test_the_recorded_run_replays_to_the_last_bit(run_dir: Path) -> None:
    """Interrupted, resumed and with an actor killed as it was."""
    command = [sys.executable, "-m", "learner.replay", str(run_dir / "record")]
    done = processes.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE_S)
    assert done.stdout.splitlines()[-1:] == [f"{STEPS} steps, 0 of them differ"], done.stdout + done.stderr


def test_the_router_is_in_log_and_checkpoint_and_continues_after_a_resume(run_dir: Path) -> None:
    lines = [json.loads(line) for line in (run_dir / "router.jsonl").read_text().splitlines()]
    assert [line["version"] for line in lines] == [line["step"] for line in lines]
    newest = max((run_dir / "checkpoints").iterdir())
    saved = json.loads((newest / "run.json").read_text())["router"]
    assert (saved["step"], saved["version"]) == (STEPS, STEPS)
    assert sum(map(sum, saved["beliefs"]["counts"])) == STEPS * GROUPS * 8, (
        "each observed once, those of undone steps not"
    )


def test_checkpoint_export_and_logs_are_there(run_dir: Path, cache: Path) -> None:
    assert (run_dir / "checkpoints" / f"step-{STEPS:06d}" / "run.json").exists()
    assert not list((run_dir / "checkpoints").glob("*.partial"))
    for name in ("learner", "reward", "actor-0", "actor-1", "engine-actor-0", "engine-actor-1"):
        assert (run_dir / "logs" / f"{name}.log").stat().st_size > 0
    exported, start = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        for path in (run_dir / "model", cache / "policy-0")
    )
    moved = [not torch.equal(a, b) for a, b in zip(exported.parameters(), start.parameters(), strict=True)]
    assert all(moved), "training moves every tensor"
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "model")
    assert len(tokenizer.encode("<|out_lang_zh|>")) == 1
    first = json.loads((run_dir / "router.jsonl").read_text().splitlines()[0])
    assert all(abs(sum(kinds["effective"].values()) - 1) < 1e-6 for kinds in first["probs"].values())


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1])
def test_killed_at_a_random_moment_nothing_is_lost_or_trained_twice(
    staleness: int, cache: Path, tmp_path: Path, seed: int
) -> None:
    run_dir, chance = tmp_path / "run", random.Random(seed)
    for first, last in [(2, 6), (8, 12)]:
        with demo(cache, run_dir, "--learner.staleness", str(staleness)) as broken:
            broken.until(f"step {chance.randint(first, last)}/{STEPS}")
            time.sleep(chance.random())  # leaving kills every process with SIGKILL
    with demo(cache, run_dir, "--learner.staleness", str(staleness)) as resumed:
        assert resumed.ends() == 0, resumed.output()
        assert "resuming after step" in resumed.output()
    test_the_summary_holds_the_promises(run_dir, staleness)
    test_the_ledger_has_each_question_once(run_dir)
    test_the_recorded_run_replays_to_the_last_bit(run_dir)


def complains(output: str, complaint: str) -> None:
    assert re.search(complaint, output), output


@contextmanager
def taken_port() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield str(taken.getsockname()[1])


def test_an_actor_that_cannot_start_ends_the_command(run_dir: Path, cache: Path, tmp_path: Path) -> None:
    """And with it the learner and the reward process, which start meanwhile."""
    with taken_port() as port, demo(cache, tmp_path / "run", "--actor.engine_port", port) as failing:
        assert failing.ends() == 1
    complains(failing.output(), r"error: .*engine_port = \d+ is taken")
    assert failing.leaves_nothing()


@pytest.mark.parametrize(
    ("role", "flags", "complaint"),
    [
        ("learner.launch", ["--model.path", "/nowhere/model"], r"error: .*/nowhere/model"),
        ("actor", ["--model.path", "/nowhere/model"], r"error: .*/nowhere/model"),
        ("reward", ["--reward.embedder", "/nowhere/embedder"], r"error: .*/nowhere/embedder"),
        ("learner.launch", ["--data.train", "/nowhere/train.parquet"], r"error: .*/nowhere/train.parquet"),
        (
            "learner.launch",
            ["--learner.address", "tcp://127.0.0.1:{taken}"],
            r"error: .*cannot listen on tcp://127.0.0.1:\d+",
        ),
        (
            "actor",
            ["--actor.engine_args.max_running_requests", "nonsense"],
            r"error: (.|\n)*engine(.|\n)*nonsense",
        ),
    ],
    ids=["model of learner", "model of actor", "embedder", "data", "queue port", "engine"],
)
def test_a_process_that_cannot_start_says_why_and_leaves_nothing(
    role: str, flags: list[str], complaint: str, run_dir: Path, cache: Path, tmp_path: Path
) -> None:
    own = ["--run.dir", str(tmp_path / "run"), "--model.path", str(cache / "policy-0")]
    own += ["--data.train", str(cache / "world-0" / "train.parquet"), "--learner.address", f"ipc://{tmp_path}/queue"]
    own += ["--reward.addresses", f'["ipc://{tmp_path}/reward"]', "--learner.evaluate", "false"]
    with taken_port() as port:
        flags = [flag.replace("{taken}", port) for flag in flags]
        command = [sys.executable, "-m", role, str(ROOT / "configs" / "demo.toml"), *own, *flags]
        failing = processes.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_PATIENCE_S
        )
    assert failing.returncode == 1, failing.stdout
    complains(failing.stdout, complaint)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]


def test_a_wrong_flag_is_refused_before_anything_starts(tmp_path: Path, cache: Path) -> None:
    with demo(cache, tmp_path / "run", "--learner.stalenes", "2", launcher=SCRIPT) as failing:
        assert failing.ends() == 2, "as every wrong configuration"
    assert "did you mean 'learner.staleness'" in failing.output()
    assert not os.path.exists(tmp_path / "run")
