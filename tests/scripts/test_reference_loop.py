"""The reference loop: the same losses and weights as the system from the same groups, and a real run on its own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from common.config import Config, load
from common.process import FatalError
from common.prompts import ChatTemplate
from common.tokenizer import load_tokenizer
from common.wire import Score
from learner import recording
from learner.groups import Group
from learner.train.outcomes import group_outcome
from learner.train.trainer import Trainer
from router import Observation, Router
from scripts.study import reference_loop
from tests.support.groups import LANGUAGES, random_rollout, work
from tests.support.train_once import configuration, copied_weights, run_ranks

STEPS, GROUPS, ANSWERS = 3, 3, 4
_ROUNDING = 3e-5  # by which the ratios of the two programs may differ
_DRAWS = 5  # at most; the first that comes so near to no bound is compared
# KL, clipping by norm, warm-up, weight decay, a temperature and several micro-batches: all that may differ does.
FLAGS = [
    "--learner.staleness", "0", "--learner.kl", "0.05", "--learner.lr", "1e-4", "--learner.weight_decay", "0.1",
    "--learner.warmup_steps", "2", "--learner.max_grad_norm", "0.5", "--learner.microbatch_tokens", "90",
    "--sampling.temperature", "0.8", "--learner.steps", str(STEPS), "--learner.groups_per_step", str(GROUPS + 2),
]  # fmt: skip


def groups_of_step(rng: np.random.Generator) -> list[Group]:
    """Random groups, some of whose answers are not compliant, or have no similarity, and one of which has no score.

    In one more all rewards are equal, and in another no answer could be scored.
    """
    batch = []
    for number in range(GROUPS + 2):
        equal = 0.5 if number == GROUPS else None
        rollouts = [random_rollout(rng, reward=equal) for _ in range(ANSWERS)]
        for place, one in enumerate(rollouts):
            if number < GROUPS and place:
                one.score.terms = {"similarity": float(rng.random())}
            if number > GROUPS or (number, place) == (0, 2):
                one.score = Score(
                    reward=0, quality=0, similarity=0, compliant=one.score.compliant, detected="en", scored=False
                )
        batch.append(Group(work=work(number, [r.language for r in rollouts]), actor="a", rollouts=rollouts))
    return batch


LOSSES: dict[str, list[str]] = {
    "LRPO": [],
    "PPO, mini-batches and passes": [
        "--learner.minibatches", "2", "--learner.passes", "2", "--learner.clip_low", "0.01",
    ],
    "PPO against the behaviour, k2, linear": [
        "--learner.proximal", "behaviour", "--learner.minibatches", "2", "--learner.kl_form", "k2",
        "--learner.lr_schedule", "linear", "--learner.min_lr", "1e-5", "--learner.warmup_steps", "1",
    ],
    "DAPO": [
        "--learner.clip_high", "0.28", "--learner.overlong_limit", "25", "--learner.overlong_buffer", "15",
        "--sampling.max_new_tokens", "30", "--learner.entropy_bonus", "0.01", "--learner.minibatches", "2",
    ],
    "Dr. GRPO, cosine": [
        "--learner.advantage_std", "false", "--learner.aggregation", "constant", "--learner.aggregation_length", "30",
        "--learner.lr_schedule", "cosine", "--learner.warmup_steps", "1", "--learner.dual_clip", "0",
    ],
    "GSPO": [
        "--learner.loss", "gspo", "--learner.aggregation", "sequence", "--learner.minibatches", "2",
        "--learner.clip_low", "3e-4", "--learner.clip_high", "4e-4",
    ],
    "CISPO": [
        "--learner.loss", "cispo", "--learner.clip_low", "1", "--learner.clip_high", "0.02", "--learner.passes", "2",
    ],
    "split, masked weights, fertility": [
        "--learner.advantage", "split", "--learner.importance", "mask", "--learner.importance_cap", "1.1",
        "--learner.aggregation", "fertility", "--learner.minibatches", "2",
    ],
    "GDPO": [
        "--learner.advantage", "decoupled",
        "--learner.decoupled_parts", '{"reward" = 1.0, "compliance" = 0.5, "similarity" = 0.3}',
        "--learner.overlong_limit", "25", "--learner.overlong_buffer", "15", "--learner.overlong_penalty", "0.4",
        "--sampling.max_new_tokens", "30",
        "--learner.kl_importance", "true", "--learner.minibatches", "2",
    ],
}  # fmt: skip


def record(directory: Path, model: Path, seed: int, names: Sequence[str]) -> None:
    """Trains random groups with the system's trainer and each of some losses, on all ranks.

    Records every step, and writes the weights before and after.
    """
    for name in names:
        config = configuration(model, *FLAGS, *LOSSES[name])
        trainer, rng, out = Trainer(config), np.random.default_rng(seed), directory / name
        before = copied_weights(trainer)
        leads = dist.get_rank() == 0
        if leads:
            recording.begin(out, config, 0)
        for number in range(STEPS):
            batch = groups_of_step(rng)
            result = trainer.step(batch, number)
            if leads:
                recording.write(out, number + 1, batch, result)
        after = copied_weights(trainer)
        if leads:
            save_file(before, out / "before.safetensors")
            save_file(after, out / "after.safetensors")


@dataclass(frozen=True)
class Recorded:
    directory: Path
    config: Config
    steps: list[recording.Step]
    change: dict[str, Tensor]  # of every weight, from the first step to the last


def read(directory: Path) -> Recorded:
    config, steps = recording.read(directory)
    before, after = (load_file(directory / f"{name}.safetensors") for name in ("before", "after"))
    return Recorded(directory, config, list(steps), {name: after[name] - before[name] for name in before})


@pytest.fixture(scope="module")
def systems(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory, module_seed: int) -> dict[str, Recorded]:
    """Of each loss, what two ranks trained."""
    return draw(tmp_path_factory.mktemp("record"), tiny_policy, module_seed, list(LOSSES))


def draw(directory: Path, model: Path, seed: int, names: Sequence[str]) -> dict[str, Recorded]:
    assert run_ranks(2, record, directory, model, seed, names) == [0, 0]
    return {name: read(directory / name) for name in names}


@pytest.fixture(scope="module")
def system(systems: dict[str, Recorded]) -> Recorded:
    return systems["LRPO"]


class NearABoundError(Exception):
    """A ratio of this draw is so near to a bound that it may lie within for one program and beyond for the other."""


def kink_distances(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list that gets, for every batch of the reference loop, how near a ratio comes to a bound.

    There the gradient jumps, so that programs which round differently may differ by a whole token. CISPO has none.
    """
    found, surrogate, weigh = list[float](), reference_loop.surrogate, reference_loop.importance_weight

    def watched(learner: Any, logp: Tensor, old_logp: Tensor, of_response: Tensor, advantage: Tensor) -> Tensor:
        log_ratio = (logp - old_logp).detach()
        if learner.loss == "gspo":
            log_ratio = (log_ratio * of_response).sum(1, keepdim=True) / of_response.sum(1, keepdim=True)
        ratio = torch.exp(log_ratio).expand(of_response.shape)[of_response > 0]
        bounds = [1 - learner.clip_low, 1 + learner.clip_high, *([learner.dual_clip] if learner.dual_clip else [])]
        found.append(min(float((ratio - bound).abs().min()) for bound in bounds) if learner.loss != "cispo" else 1.0)
        return surrogate(learner, logp, old_logp, of_response, advantage)

    def weighed(learner: Any, old_logp: Tensor, behaviour_logp: Tensor) -> Tensor:
        if learner.importance == "mask":
            ratio = torch.exp(old_logp - behaviour_logp)
            found.extend(float((ratio - one).abs().min()) for one in (learner.importance_floor, learner.importance_cap))
        return weigh(learner, old_logp, behaviour_logp)

    monkeypatch.setattr(reference_loop, "surrogate", watched)
    monkeypatch.setattr(reference_loop, "importance_weight", weighed)
    return found


def assert_same_training(
    system: Recorded, config: Config, micro_batch: int, monkeypatch: pytest.MonkeyPatch | None = None
) -> None:
    """Trains the recorded groups with the reference loop and compares every step and the final weights.

    Raises:
        NearABoundError: with ``monkeypatch``, where nothing can be compared.
    """
    distances = kink_distances(monkeypatch) if monkeypatch is not None else [1.0]
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    found = list(reference_loop.train(config, model, reference_loop.recorded(system.directory), micro_batch))
    assert len(found) == len(system.steps) == STEPS
    if min(distances) <= _ROUNDING:
        raise NearABoundError
    updates = config.learner.minibatches * config.learner.passes
    for number, (ours, theirs) in enumerate(zip(found, system.steps, strict=True), start=1):
        rounding = 1e-5 * number * updates  # it adds up over the optimizer steps
        assert ours.loss == pytest.approx(theirs.loss, rel=rounding, abs=1e-6)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=rounding)
    after = dict(model.named_parameters())
    assert after.keys() == system.change.keys()
    for name, change in system.change.items():
        # Where a gradient consists of rounding errors, Adam moves a weight by the sign of these: hence norms.
        difference = (after[name].detach() - before[name] - change).norm()
        assert difference < 1e-3 * change.norm(), name


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_recorded_groups_as_the_system_does(
    systems: dict[str, Recorded], name: str, tiny_policy: Path, tmp_path: Path, seed: int
) -> None:
    drawn = systems[name]
    reference_loop.check(drawn.config)
    for number in range(_DRAWS):
        with pytest.MonkeyPatch.context() as patch, suppress(NearABoundError):
            assert_same_training(drawn, drawn.config, 5, patch)
            return
        print(f"draw {number} comes within {_ROUNDING} of a bound")
        drawn = draw(tmp_path / str(number), tiny_policy, seed + number, [name])[name]
    pytest.fail(f"{_DRAWS} draws in a row come within {_ROUNDING} of a bound")


def test_micro_batches_of_the_reference_loop_change_nothing(system: Recorded) -> None:
    outcomes = {group_outcome(group, system.config.learner) for step in system.steps for group in step.groups}
    assert outcomes == {"trained", "zero_variance", "masked"}
    assert_same_training(system, system.config, 16)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("kl", 0.0), ("importance_cap", 1.5), ("importance", "none"), ("weight_decay", 0.0), ("max_grad_norm", 1e9),
        ("warmup_steps", 0), ("std_ddof", 0), ("drop_zero_variance", False), ("advantage_std", False),
        ("aggregation", "sequence"), ("minibatches", 2), ("proximal", "behaviour"), ("loss", "cispo"),
        ("kl_form", "k1"), ("entropy_bonus", 0.01),
    ],
)  # fmt: skip
def test_the_comparison_notices_a_changed_setting(system: Recorded, setting: str, value: object) -> None:
    learner = system.config.learner.model_copy(update={setting: value})
    with pytest.raises(AssertionError):
        assert_same_training(system, system.config.model_copy(update={"learner": learner}), 16)


def questions_file(path: Path, count: int = 3) -> Path:
    """Rows of questions, with a further column."""
    question: dict[str, Any] = {"ability": "Chat", "hint": "a city"}
    question["reward_model"] = {"ground_truth": "Berlin.", "style": "rule"}
    question["extra_info"] = {"language": "de", "topic": "Chat", "region": "Europe", "index": 0}
    rows = [
        {"prompt": [{"role": "user", "content": f"{n}: Wie heißt die Hauptstadt?"}], **question} for n in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_the_command_generates_scores_and_trains(
    tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path / "model"), "--model.path", str(tiny_policy)]
    arguments += [
        "--data.train",
        str(questions_file(tmp_path / "train.parquet")),
        "--run.languages",
        str(list(LANGUAGES)),
    ]
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


REWARD = '''
import dataclasses, json, pathlib

def first_missing(group, tools):
    """Keeps what it has seen; the first answer cannot be scored."""
    seen = dataclasses.asdict(dataclasses.replace(group, messages=[turn.content for turn in group.messages]))
    with (pathlib.Path(__file__).parent / "seen.jsonl").open("a") as file:
        print(json.dumps(seen), file=file)
    return [{"good": 0.25 * number} if number else None for number in range(len(group.answers))]

def all_missing(group, tools):
    return [None for _ in group.answers]
'''


def rewarded_by(function: str, model: Path, directory: Path) -> list[str]:
    """Flags of a small run with a reward function, whose chat template begins an answer inside a thought."""
    (directory / "mine.py").write_text(REWARD)
    thinking = directory / "thinking"
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(thinking)
    tokenizer = load_tokenizer(str(model))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>"
    )
    tokenizer.save_pretrained(thinking)
    return [
        "--model.path", str(thinking), "--data.train", str(questions_file(directory / "train.parquet")),
        "--data.columns", '{"hint" = "hint"}',
        "--run.languages", str(list(LANGUAGES)), "--learner.steps", "1", "--learner.groups_per_step", "2",
        "--router.rollouts", "4", "--router.mode", "uniform", "--sampling.max_new_tokens", "6",
        "--reward.function", f"{directory / 'mine.py'}:{function}", "--reward.parts", '{"good" = 1.0}',
    ]  # fmt: skip


def test_a_reward_sees_what_it_sees_in_the_system_and_unscored_answers_teach_nothing(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[Observation] = []
    monkeypatch.setattr(Router, "observe", lambda _, observations: learned.extend(observations))
    config = load(rewarded_by("first_missing", tiny_policy, tmp_path))
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    (batch,) = reference_loop.generated(config, model)
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert len(seen) == len(batch) == len(learned) == 2
    for group, given, observed in zip(batch, seen, learned, strict=True):
        assert given["messages"] == [f"{given['row']}: Wie heißt die Hauptstadt?"]
        assert given["extra"]["hint"] == "a city" and given["reference"] == "Berlin."
        assert [one["tokens"] for one in given["answers"]] == [len(answer.response) for answer in group]
        assert all(not one["final"] and one["thinking"] == one["text"].strip() for one in given["answers"])
        assert [answer.scored for answer in group] == [False, True, True, True]
        assert list(observed.languages) == [answer.language for answer in group[1:]]
        assert observed.rewards == (0.25, 0.5, 0.75) and all(observed.compliant), "a function is not gated"
        rewards = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        wanted = ((rewards - rewards.mean()) / (rewards.std() + 1e-6)).tolist()
        assert reference_loop.advantages([group], config.learner) == [[0.0, *map(pytest.approx, wanted)]]


def test_answers_of_which_too_few_are_scored_are_an_error(tiny_policy: Path, tmp_path: Path) -> None:
    flags = rewarded_by("all_missing", tiny_policy, tmp_path)
    with pytest.raises(
        SystemExit, match=r"error: the answers to question \d of .*train\.parquet cannot be scored: 4 of 4"
    ):
        reference_loop.main(flags)


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
            table, _ = reference_loop.log_probabilities(model, ids, torch.ones_like(ids), 0.7)
        wanted = table[0, len(prompt) - 1 :]
        assert logp == pytest.approx(wanted.tolist(), abs=1e-4)


def test_an_answer_ends_with_the_token_that_ends_a_turn(tiny_policy: Path) -> None:
    """As the engines end it, also where the tokenizer's end-of-sequence token is another one."""
    config = configuration(tiny_policy, "--sampling.max_new_tokens", "30")
    tokenizer, model = load_tokenizer(str(tiny_policy)), AutoModelForCausalLM.from_pretrained(tiny_policy)
    turn_end = ChatTemplate(tokenizer, config.model).turn_end
    assert turn_end == tokenizer.eos_token_id
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(7)
    likely = torch.zeros(model.get_output_embeddings().weight.shape[0])
    likely[turn_end] = 5.0
    model.get_output_embeddings().bias = torch.nn.Parameter(likely)
    answers = reference_loop.generate(config, model, tokenizer, [[5, 6], [8]] * 8)
    assert any(len(response) > 1 for response, _, _ in answers)
    for response, logp, truncated in answers:
        assert not {turn_end, 7} & set(response[:-1]) and len(logp) == len(response)
        assert truncated == (response[-1] not in (turn_end, 7))
    assert sum(response[-1] == turn_end for response, _, _ in answers) > 8


@pytest.mark.parametrize(
    "flags",
    [
        ["--learner.mask_truncated", "true"],
        ["--learner.refill", "1"],
        ["--learner.stages", "[{}]"],
        ["--data.curriculum", "0.5", "--data.curriculum_right", "0.5"],
    ],
)
def test_settings_that_the_file_does_not_implement_are_refused(flags: list[str]) -> None:
    with pytest.raises(FatalError, match=re.escape(flags[0].removeprefix("--"))):
        reference_loop.check(load(flags))
    with pytest.raises(SystemExit, match=r"error: .*implements"):
        reference_loop.main(flags)
