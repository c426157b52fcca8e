"""The same seed is the same run: with S = 0, one actor, and an engine that samples by seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from learner import recording
from tests.support.measured_run import measured_run

STEPS = 4
REWARD = '''
def vowels(group, tools):
    """The share of vowels, so that the answers of a random policy differ in worth."""
    texts = [answer.final for answer in group.answers]
    return [{"vowels": sum(map(text.count, "aeiou")) / (len(text) + 1)} for text in texts]
'''

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def trained(directory: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """What was trained on in each step, without how long it took, and the weights at the end."""
    steps = []
    for step in recording.read(directory / "record")[1]:
        groups = [
            {
                "sequence": group.work.sequence,
                "languages": group.work.languages,
                "propensities": group.work.propensities,
                "router_version": group.work.router_version,
                "ids": [one.response_ids.tolist() for one in group.rollouts],
                "logprobs": [one.logprobs.tolist() for one in group.rollouts],
                "versions": [one.versions.tolist() for one in group.rollouts],
                "rewards": [one.score.reward for one in group.rollouts],
            }
            for group in step.groups
        ]
        steps.append({"groups": groups, "loss": step.loss, "grad_norm": step.grad_norm})
    return steps, load_file(directory / "run" / "model" / "model.safetensors")


def test_the_same_seed_is_the_same_run_at_whatever_speed_and_after_a_resume(
    tiny_policy: Path, tmp_path: Path, seed: int
) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    flags = [
        "--reward.function", f"{tmp_path}/mine.py:vowels", "--reward.parts", "{vowels = 1.0}",
        "--reward.gated", "false", "--reward.embedder", "/none",
        "--learner.staleness", "0", "--learner.steps", str(STEPS), "--learner.groups_per_step", "4",
        "--learner.lr", "3e-3", "--sampling.max_new_tokens", "24", "--actor.groups_in_flight", "4",
        "--actor.engine_args", "{enable_deterministic_inference = true}",
    ]  # fmt: skip
    found = {}
    for name, speed, own_seed in (("one", (0.0, 0.0), seed), ("two", (0.004, 0.002), seed), ("other", (0.0, 0.0), 1)):
        directory = tmp_path / name
        own = ["--run.seed", str(own_seed % 2**31), "--learner.record", str(directory / "record")]
        if name == "two":  # which is interrupted, and then goes on
            until = directory / "record" / "step-000002.msgpack"
            measured_run(directory, tiny_policy, {"a-0": speed}, *flags, *own, until=until)
            assert not (directory / "run" / "model").exists()
        measured_run(directory, tiny_policy, {"a-0": speed}, *flags, *own)
        found[name] = trained(directory)
    (steps, weights), (again, weights_again) = found["one"], found["two"]
    assert len(steps) == STEPS and any(step["grad_norm"] > 0 for step in steps)
    assert json.dumps(again) == json.dumps(steps)
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    assert json.dumps(found["other"][0]) != json.dumps(steps)
    # Equal prompts of a group have draws of their own.
    answers = [one for step in steps for group in step["groups"] for one in map(str, group["ids"])]
    assert len(set(answers)) > 0.9 * len(answers)
