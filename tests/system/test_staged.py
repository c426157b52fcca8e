"""Runs that are slow for a known reason: the verdict names it, and its remedy helps by half of its promise at least.

Real processes, in which engine, scorer and the learner's ranks take the time they are told to.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.bench.chaos.world import prepare
from tests.support.processes import Popen

ROOT = Path(__file__).parents[2]
STEPS, SKIPPED = 24, 6  # steps; the first ones, in which processes warm up, are not measured

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Stage:
    """How slow each part is, and how many there are of it."""

    token_s: float = 0.0  # of an engine, for a token
    groups: int = 8  # in flight, of an actor
    text_s: float = 0.0005  # of a reward process, for an answer
    trained_s: float = 0.0  # of a learner rank, for a token it trains on
    actors: int = 2
    replicas: int = 1
    ranks: int = 1


@dataclass(frozen=True)
class Seen:
    bottleneck: str
    remedy: str
    gain: float
    step_s: float


@contextmanager
def processes(directory: Path, stage: Stage) -> Iterator[Popen]:
    made = directory.parent
    rewards = [f"ipc://{directory}/reward-{n}" for n in range(stage.replicas)]
    settings = {
        "run.dir": directory, "model.path": made / "model", "data.train": made / "train.parquet",
        "model.dtype": "float32", "run.languages": '["de", "en", "zh"]', "router.rollouts": 3, "router.own_language": 1,
        "sampling.max_new_tokens": 12, "actor.groups_in_flight": stage.groups, "learner.address": f"ipc://{directory}/q",
        "reward.addresses": json.dumps(rewards), "reward.batch_texts": 12, "learner.groups_per_step": 8,
        "learner.steps": STEPS, "learner.window": 4, "learner.lr": 1e-4, "learner.kl": 0.01,
        "learner.param_dtype": "float32", "learner.evaluate": "false", "learner.checkpoint_every": 1000,
        "learner.ranks": stage.ranks, "learner.microbatch_tokens": 128, "data.max_prompt_tokens": 116,
    }  # fmt: skip
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={stage.ranks}"]
    commands = {"learner": [*torchrun, "-m", "tests.support.light.slow_learner", *flags]}
    commands |= {f"reward-{n}": ["-m", "tests.support.light.slow_reward", *flags, "--reward.replica", str(n)]
                 for n in range(stage.replicas)}  # fmt: skip
    commands |= {f"pool-{n}": ["-m", "actor", *flags, "--actor.name", f"pool-{n}"] for n in range(stage.actors)}
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'tests' / 'support' / 'light'}:{ROOT}",
        "LIGHT_TOKEN_S": str(stage.token_s), "SLOW_TEXT_S": str(stage.text_s),
        "SLOW_TOKEN_S": str(stage.trained_s),
    }  # fmt: skip
    directory.mkdir()
    running = {}
    for name, command in commands.items():
        with (directory / f"{name}.log").open("wb") as log:
            running[name] = Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        yield running["learner"]
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait(30)


def run(directory: Path, stage: Stage) -> Seen:
    """A whole run; its last verdict and the time of a step."""
    with processes(directory, stage) as learner:
        assert learner.wait(150) == 0, (directory / "learner.log").read_text()[-3000:]
    events, advice = (EventAccumulator(str(directory / "tensorboard" / run), {"scalars": 0}) for run in ("", "line-2"))
    events.Reload()
    advice.Reload()
    when = [point.wall_time for point in events.Scalars("learning/reward")]
    step_s = (when[-1] - when[SKIPPED]) / (len(when) - 1 - SKIPPED)
    line = re.findall(
        rf"step {STEPS}/{STEPS} .* tokens/s  (\w+) cost \d+%: (.*) \(saves", (directory / "learner.log").read_text()
    )
    bottleneck, remedy = line[-1]
    return Seen(bottleneck, remedy, advice.Scalars("flow/bottleneck_saving")[-1].value, step_s)


@pytest.mark.parametrize(
    ("bottleneck", "slow", "remedy", "part"),
    [
        ("actors", Stage(token_s=0.01, groups=1, actors=1), r"add ([\d.]+) actors like pool-0", "actors"),
        ("reward", Stage(text_s=0.05), r"add ([\d.]+) reward processes \(reward.addresses\)", "replicas"),
        ("learner", Stage(trained_s=0.0015), r"add ([\d.]+) learner ranks \(learner.ranks\)", "ranks"),
    ],
    ids=["slow actors", "slow reward", "slow learner"],
)
def test_the_verdict_is_right_and_its_remedy_keeps_half_of_its_promise(
    bottleneck: str, slow: Stage, remedy: str, part: str, tmp_path: Path
) -> None:
    prepare(tmp_path, 0)
    before = run(tmp_path / "before", slow)
    print(before)
    assert before.bottleneck == bottleneck
    wanted = re.fullmatch(remedy, before.remedy)
    assert wanted, before.remedy
    more = getattr(slow, part) + math.ceil(float(wanted[1]))
    after = run(tmp_path / "after", Stage(**{**vars(slow), part: more}))
    saved = 1 - after.step_s / before.step_s
    print(f"{bottleneck}: {before.remedy!r} promised {before.gain:.0%}, saved {saved:.0%}; then {after}")
    assert saved >= before.gain / 2 > 0.05
