"""The reference loop: the same losses and weights as the system from the same groups, and a real run on its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from common.config import Config, load
from common.process import FatalError
from common.tokenizer import load_tokenizer
from learner import recording
from learner.groups import Group
from learner.train.samples import group_outcome
from learner.train.trainer import Trainer
from scripts.study import reference_loop
from tests.support.groups import LANGUAGES, random_rollout, work
from tests.support.train_once import configuration, copied_weights, run_ranks

STEPS, GROUPS, ANSWERS = 4, 4, 4
# KL, clipping by norm, warm-up, weight decay, a temperature and several micro-batches: all that may differ does.
FLAGS = [
    "--learner.staleness", "0", "--learner.kl", "0.05", "--learner.lr", "1e-4", "--learner.weight_decay", "0.1",
    "--learner.warmup_steps", "2", "--learner.max_grad_norm", "0.5", "--learner.microbatch_tokens", "90",
    "--sampling.temperature", "0.8", "--learner.steps", str(STEPS), "--learner.groups_per_step", str(GROUPS + 1),
]  # fmt: skip


def groups_of_step(rng: np.random.Generator) -> list[Group]:
    """Random groups, some of whose answers are not compliant, and one group in which all rewards are equal."""
    batch = []
    for number in range(GROUPS + 1):
        equal = 0.5 if number == GROUPS else None
        rollouts = [random_rollout(rng, reward=equal) for _ in range(ANSWERS)]
        batch.append(Group(work=work(number, [r.language for r in rollouts]), actor="a", rollouts=rollouts))
    return batch


def record(directory: Path, model: Path, seed: int) -> None:
    """Trains random groups with the system's trainer, records every step, and writes the weights before and after."""
    config = configuration(model, *FLAGS)
    trainer, rng = Trainer(config), np.random.default_rng(seed)
    recording.begin(directory, config, 0)
    save_file(copied_weights(trainer), directory / "before.safetensors")
    for number in range(STEPS):
        batch = groups_of_step(rng)
        recording.write(directory, number + 1, batch, trainer.step(batch, number))
    save_file(copied_weights(trainer), directory / "after.safetensors")


@dataclass(frozen=True)
class Recorded:
    directory: Path
    config: Config
    steps: list[recording.Step]
    change: dict[str, Tensor]  # of every weight, from the first step to the last


@pytest.fixture(scope="module")
def system(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory, module_seed: int) -> Recorded:
    directory = tmp_path_factory.mktemp("record")
    assert run_ranks(1, record, directory, tiny_policy, module_seed) == [0]
    config, steps = recording.read(directory)
    before, after = (load_file(directory / f"{name}.safetensors") for name in ("before", "after"))
    return Recorded(directory, config, list(steps), {name: after[name] - before[name] for name in before})


def assert_same_training(system: Recorded, config: Config, micro_batch: int) -> None:
    """Trains the recorded groups with the reference loop and compares every step and the final weights."""
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    found = list(reference_loop.train(config, model, reference_loop.recorded(system.directory), micro_batch))
    assert len(found) == len(system.steps) == STEPS
    for ours, theirs in zip(found, system.steps, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5, abs=1e-6)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
    after = dict(model.named_parameters())
    assert after.keys() == system.change.keys()
    for name, change in system.change.items():
        # Where a gradient consists of rounding errors, Adam moves a weight by the sign of these: hence norms.
        difference = (after[name].detach() - before[name] - change).norm()
        assert difference < 1e-5 * before[name].norm() and difference < 1e-3 * change.norm(), name


@pytest.mark.parametrize("micro_batch", [3, 16])
def test_the_reference_loop_trains_recorded_groups_as_the_system_does(system: Recorded, micro_batch: int) -> None:
    outcomes = {group_outcome(group, system.config.learner) for step in system.steps for group in step.groups}
    assert outcomes == {"trained", "zero_variance"}
    assert_same_training(system, system.config, micro_batch)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("kl", 0.0), ("importance_cap", 1.5), ("importance", "none"), ("weight_decay", 0.0), ("max_grad_norm", 1e9),
        ("warmup_steps", 0), ("std_ddof", 0), ("drop_zero_variance", False),
    ],
)  # fmt: skip
def test_the_comparison_notices_a_changed_setting(system: Recorded, setting: str, value: object) -> None:
    learner = system.config.learner.model_copy(update={setting: value})
    with pytest.raises(AssertionError):
        assert_same_training(system, system.config.model_copy(update={"learner": learner}), 16)


def test_the_comparison_notices_advantages_that_are_not_divided_by_the_deviation(
    system: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def centred(rewards: list[float], ddof: int) -> list[float]:
        return [reward - sum(rewards) / len(rewards) for reward in rewards]

    monkeypatch.setattr(reference_loop, "advantages", centred)
    with pytest.raises(AssertionError):
        assert_same_training(system, system.config, 16)


def test_the_comparison_notices_a_mean_over_answers_in_place_of_tokens(
    system: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reference_loop.token_losses

    def by_answer(config: Config, model: Any, reference: Any, some: list[Any]) -> Tensor:
        mean = sum(len(answer.response) for answer, _ in some) / len(some)
        return torch.stack([whole(config, model, reference, [one]) * mean / len(one[0].response) for one in some]).sum()

    monkeypatch.setattr(reference_loop, "token_losses", by_answer)
    with pytest.raises(AssertionError):
        assert_same_training(system, system.config, 64)


def test_the_command_generates_scores_and_trains(
    tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question: dict[str, Any] = {"ability": "Chat"}
    question["reward_model"] = {"ground_truth": "Berlin.", "style": "rule"}
    question["extra_info"] = {"language": "de", "topic": "Chat", "region": "Europe", "index": 0}
    rows = [{"prompt": [{"role": "user", "content": f"{n}: Wie heißt die Hauptstadt?"}], **question} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    arguments = ["--out", str(tmp_path / "model"), "--model.path", str(tiny_policy)]
    arguments += ["--data.train", str(tmp_path / "train.parquet"), "--run.languages", str(list(LANGUAGES))]
    arguments += ["--learner.steps", "2", "--learner.groups_per_step", "2", "--learner.lr", "1e-3"]
    arguments += ["--router.rollouts", "4", "--router.interval", "1", "--sampling.max_new_tokens", "6"]
    # Random weights answer in no language, so the gate is left out: a short text passes, whatever it is in.
    arguments += ["--reward.gate_short_characters", "1000", "--reward.gate_short", "pass"]
    reference_loop.main(arguments)
    lines = re.findall(
        r"step (\d): loss (\S+), gradient norm (\S+), reward (\S+), compliance 1.00", capsys.readouterr().out
    )
    assert [line[0] for line in lines] == ["1", "2"]
    assert all(float(norm) > 0 and float(reward) > 0 for _, _, norm, reward in lines)
    old, new = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tiny_policy, tmp_path / "model"))
    assert any(not torch.equal(old[name], new[name]) for name in old)


def test_generated_log_probabilities_are_those_of_the_policy(tiny_policy: Path) -> None:
    config = configuration(tiny_policy, "--sampling.temperature", "0.7", "--sampling.max_new_tokens", "12")
    model = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13]]
    tokenizer = load_tokenizer(str(tiny_policy))
    for prompt, (response, logp, truncated) in zip(
        prompts, reference_loop.generate(config, model, tokenizer, prompts), strict=True
    ):
        assert 0 < len(response) == len(logp) <= 12 and truncated == (tokenizer.eos_token_id not in response)
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            wanted = reference_loop.log_probabilities(model, ids, torch.ones_like(ids), 0.7)[0, len(prompt) - 1 :]
        assert logp == pytest.approx(wanted.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "flags", [["--learner.aggregation", "sequence"], ["--learner.advantage", "split"], ["--learner.stages", "[{}]"]]
)
def test_settings_that_the_file_does_not_implement_are_refused(flags: list[str]) -> None:
    with pytest.raises(FatalError, match=re.escape(flags[0].removeprefix("--"))):
        reference_loop.check(load(flags))
    with pytest.raises(SystemExit, match=r"error: .*implements"):
        reference_loop.main(flags)
