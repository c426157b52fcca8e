"""Every published recipe: it is listed, fits its hardware, and its own part acts in three steps of the real learner."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.config import Config, ConfigError, load
from common.diagnostics import is_right
from common.languages import POLICY_CHOOSES
from learner.train.aggregation import token_weights
from learner.train.outcomes import group_outcome
from learner.train.trainer import make_objective
from reward.gate import ComplianceGate
from router import Router
from scripts.lrpo import main as lrpo
from scripts.ops.dry_run import Machine, ModelShape
from scripts.ops.dry_run import rows as hardware_rows
from scripts.ops.recipes import find_recipe, first_line, recipe_files, recipe_settings
from tests.support import processes, recipe_steps
from tests.support.chat import serving
from tests.support.groups import seeded_generator
from tests.support.train_once import random_batch, run_ranks

ROOT = Path(__file__).parents[2]
FILES = recipe_files()
NAMES = tuple(FILES)


@pytest.fixture(scope="module")
def trained(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of every recipe, what three steps on hand-made answers gave; see tests/support/recipe_steps.py."""
    directory = tmp_path_factory.mktemp("recipes")
    calibration = directory / "pairs.csv"
    pairs = ("French,French,30,0.95,0.02", "English,French,10,0.75,0.05", "English,English,30,0.97,0.02")
    calibration.write_text("\n".join(("lang_a,lang_b,count,mean,std", *pairs)) + "\n")
    out, log = directory / "found.json", directory / "log"
    with serving(recipe_steps.judge) as url:
        codes = run_ranks(1, recipe_steps.train_recipes, out, tiny_policy, url, calibration, NAMES, output=log)
    assert codes == [0], log.read_text()[-4000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


# --- whole runs -------------------------------------------------------------------------------------------------------

WHOLE = "pb-rlsvr"  # the run of the default tests: a function, a judge, columns, and no processes of math-verify
TINY: dict[str, Any] = {
    "learner.steps": 3, "learner.epochs": 0, "learner.groups_per_step": 4, "learner.ranks": 1, "learner.lr": 1e-3,
    "learner.param_dtype": "float32", "learner.activation_checkpointing": "false", "learner.microbatch_tokens": 2048,
    "learner.evaluate": "false", "learner.evaluate_every": 0, "learner.evaluate_samples": 0,
    "learner.evaluate_unseen": "[]", "learner.group_timeout_s": 700, "router.rollouts": 4, "model.dtype": "float32",
    "data.max_prompt_tokens": 400, "sampling.max_new_tokens": 16, "actor.start_timeout_s": 600,
    "actor.request_timeout_s": 600, "sync.timeout_s": 120,
}  # fmt: skip
TINY_OF: dict[str, dict[str, Any]] = {
    "dapo": {"learner.overlong_limit": 16, "learner.overlong_buffer": 8, "learner.refill": 2},
    "hybrid": {"router.free_rollouts": 2},
    "lrpo": {"reward.embedder": "use"},
    "lrpo-paper": {"reward.embedder": "use"},
}


@pytest.mark.e2e
@pytest.mark.parametrize("name", [WHOLE, *(pytest.param(one, marks=pytest.mark.slow) for one in NAMES if one != WHOLE)])
def test_one_command_runs_it(name: str, tiny_policy: Path, tmp_path: Path) -> None:
    """``lrpo train --recipe NAME MODEL DATA`` with all its processes, from a directory that is not this project's."""
    english = {"english_answer": recipe_steps.RIGHT_ENGLISH, "english_reasoning": recipe_steps.ENGLISH}
    rows = [{"question": f"{n} + {n} ?", "answer": str(2 * n), "language": "fr", **english} for n in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config, flags = config_of(name), TINY | TINY_OF.get(name, {})
    flags |= {"learner.address": f"ipc://{tmp_path}/queue", "reward.addresses": f'["ipc://{tmp_path}/reward"]'}
    flags["learner.groups_per_step"] = max(4, config.learner.minibatches)
    if config.reward.calibration is not None:
        flags["reward.calibration"] = tmp_path / "pairs.csv"
        (tmp_path / "pairs.csv").write_text("lang_a,lang_b,count,mean,std\nFrench,French,30,0.95,0.02\n")
    light, calls = ROOT / "tests" / "support" / "light", list[str]()

    def judge(request: dict[str, Any]) -> str:
        calls.append(recipe_steps.judge(request))
        return calls[-1]

    environment = {**os.environ, "PYTHONPATH": f"{light}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    with serving(judge) as url:
        if config.reward.judges:
            flags["reward.judges"] = f'["stand-in@{url}"]'
        command = [sys.executable, "-m", "scripts.lrpo", "train", "--recipe", name, str(tiny_policy), "train.jsonl"]
        command += [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        done = processes.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=800)
    run = tmp_path / "runs" / name
    logs = "\n".join(f"== {path.name}\n{path.read_text()[-1500:]}" for path in run.glob("logs/*"))
    assert done.returncode == 0, f"{done.stdout.decode()[-2000:]}{done.stderr.decode()[-2000:]}\n{logs}"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 3 and summary["config"]["reward"]["function"] == config.reward.function
    assert bool(calls) or name != WHOLE, "the judge was asked"
    assert summary["questions_lost"] == 0 and (run / "model" / "config.json").is_file()


# --- three steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_takes_three_steps(trained: dict[str, Any], name: str) -> None:
    steps = trained[name]
    assert len(steps) == recipe_steps.STEPS and not any(step["problem"] for step in steps)
    assert all(step["grad_norm"] > 0 and step["outcome"] == "trained" for step in steps)
    assert len({step["entropy"] for step in steps}) == len(steps), "the policy has not changed"
    assert all(step["mismatch"] < 1e-4 for step in steps), "the engine has the learner's weights"
    if name == "gspo":  # whose bounds are narrow
        assert max(step["clip_share"] for step in steps) > 0, "several optimizer steps move the ratio past its bounds"


# What each of the four hand-made answers earns. Of one question: right, right with an English thought, wrong, without
# an end; of the routed ones: right, wrong, right in English, right but not in English, which was asked for.
BY_MATH = [1.0, 1.0, 0.0, 0.0]
REWARDS: dict[str, list[float]] = {
    "naive-grpo": BY_MATH, "cispo": BY_MATH, "dapo": BY_MATH, "dr-grpo": BY_MATH, "gspo": BY_MATH,
    "slc-rl": [1.0, 0.9, 0.1, 0.0],
    "strict-lc": [1.0, -1.0, 0.0, -1.0],
    "m-thinker": [1.75, -1.0, 0.0, -1.0],  # the judge finds three quarters of the English results
    "sp3f": [3 + 1 / 3, 3 + 1 / 3, 2.0, 1 + 1 / 3],  # the judge prefers an answer of 42 to another
    "csc": [0.5, 0.0, 0.75, 0.0],  # of the right ones: 0 of 1 in French and 2 of 2 in English; 1 of 2 and 1 of 1
    "gdpo": [1.0, 0.0, 1.0, 0.0],
}  # fmt: skip


@pytest.mark.parametrize("name", REWARDS)
def test_its_reward_is_the_published_one(trained: dict[str, Any], name: str) -> None:
    for step in trained[name]:
        assert step["rewards"] == pytest.approx(REWARDS[name])


@pytest.mark.parametrize("name", ["slc-rl", "strict-lc", "m-thinker"])
def test_its_accuracy_does_not_depend_on_the_language(trained: dict[str, Any], name: str) -> None:
    """Right, right with an English thought, wrong, without an end; charts call what reads this Acc."""
    terms = trained[name][0]["terms"]
    assert [one["accuracy"] for one in terms] == [1, 1, 0, 0] and terms[1]["lc"] < 1
    assert [is_right(0.0, one) for one in terms] == [True, True, False, False]


def test_adamame_falls_from_rarity_to_alignment(trained: dict[str, Any]) -> None:
    """r = acc (1 + (K / n - 1) (1 + cos πx) / 2) (1 + 2 max((1 - cos πx) / 2, 0.1) match): n is 3, and 1 in English."""
    found = [step["rewards"] for step in trained["adamame"]]
    assert found[0] == pytest.approx([4 / 3 * 1.2, 4.0, 0, 0])
    assert found[1] == pytest.approx([1.25 * 1.5, 3.25, 0, 0])  # cos(π/3) = 1/2
    assert found[2] == pytest.approx([(1 + 1 / 12) * 2.5, 1.75, 0, 0])


def test_explang_explores_and_then_exploits(trained: dict[str, Any]) -> None:
    """Correctness, 0.2 for compliance, 0.2 for the header, 0.2 for diversity; then 0.5 for correctness and success."""
    first, *later = [step["rewards"] for step in trained["explang"]]
    assert first == pytest.approx([1.6, 1.6, 0.6, 1.2])
    assert later == [pytest.approx([1.4, 1.4, 0.9, 1.2])] * 2


def test_hybrid_gives_routed_answers_the_mean_of_what_choices_earn(trained: dict[str, Any]) -> None:
    assert trained["hybrid"][0]["rewards"] == pytest.approx([1.0 + 0.2 + 0.3, 0.2 + 0.3, 1.2 + 0.4, 1.0 + 0.2])


@pytest.mark.parametrize("name", ["lrpo", "lrpo-paper"])
def test_lrpo_rewards_calibrated_similarity_in_the_language_asked_for(trained: dict[str, Any], name: str) -> None:
    step = trained[name][0]
    reference = (30 * 0.95 + 10 * 0.75 + 30 * 0.97) / 70
    for number, pair in enumerate((0.95, 0.95, 0.75)):
        calibrated = min(step["similarities"][number] - (pair - reference), 1)
        assert step["rewards"][number] == pytest.approx((calibrated + 1) / 2, abs=1e-6)
    assert step["similarities"][3] == pytest.approx(1, abs=1e-4) and step["rewards"][3] == 0


def test_lrpo_as_published_pays_for_no_near_language() -> None:
    """Its label of lid.176 has to be equal to the language asked for, as in the public code."""
    texts = {
        "id": "Saya tidak boleh datang ke mesyuarat itu kerana kereta saya rosak dan perlu dibaiki di bengkel.",
        "pt": "A capital de Galicia é Santiago de Compostela, onde viven moitas persoas que falan galego nas casas.",
        "zh": "東京都庁第一本庁舎展望室。日本国憲法第九条改正問題。",
    }
    for name, counts in (("lrpo-paper", False), ("lrpo", True)):
        kept = ComplianceGate(config_of(name).reward).in_language([*texts.values()], [*texts])
        assert kept == [counts] * len(texts), name


def test_mcot_and_pb_rlsvr_measure_language_and_meaning(trained: dict[str, Any]) -> None:
    terms = trained["mcot"][0]["terms"]
    assert [(one["acc"], one["format"]) for one in terms] == [(1, 1), (1, 1), (0, 1), (0, 0)]
    assert min(terms[n]["language"] for n in (0, 2, 3)) > 0.9 and terms[1]["language"] < 0.6
    assert trained["mcot"][0]["rewards"][0] == pytest.approx(1.2 + 0.2 * terms[0]["language"])
    terms, rewards = (trained["pb-rlsvr"][0][key] for key in ("terms", "rewards"))
    assert [one["answer"] for one in terms] == [0.8, 0.8, 0.2, 0.0], "the judge's grades"
    assert terms[1]["reasoning"] == pytest.approx(1, abs=1e-4), "the English thought is the reference"
    assert rewards[0] == pytest.approx(0.4 + terms[0]["reasoning"] / 2) and rewards[1] == 0


def expected_advantages(name: str, step: dict[str, Any]) -> list[float]:
    """Written apart from the learner, with the deviation of a sample."""
    rewards = np.array(step["rewards"])
    if name == "gdpo":
        right, kept = ([1.0, 0, 1, 1], [1.0, 1, 1, 0])
        parts = [(np.array(p) - np.mean(p)) / (np.std(p, ddof=1) + 1e-4) for p in (right, kept)]
        whole = np.tile(sum(parts), recipe_steps.GROUPS)
        return list(whole[:4] / (np.std(whole, ddof=1) + 1e-4))
    if name == "dapo":
        limit, buffer = recipe_steps.OVERLONG["limit"], recipe_steps.OVERLONG["buffer"]
        rewards -= 0.5 * np.clip((np.array(step["lengths"]) - (limit - buffer)) / buffer, 0, 1)
    centred = rewards - rewards.mean()
    return list(centred if name in ("dr-grpo", "sp3f") else centred / (rewards.std(ddof=1) + 1e-6))


@pytest.mark.parametrize("name", NAMES)
def test_its_advantage_is_the_published_one(trained: dict[str, Any], name: str) -> None:
    for step in trained[name]:
        assert step["advantages"] == pytest.approx(expected_advantages(name, step), abs=1e-6)
        assert max(step["advantages"]) > 0


# --- what a recipe says of the loss, and of who answers ---------------------------------------------------------------


def config_of(name: str, *flags: str) -> Config:
    return load([str(FILES[name]), *flags])


CLIP_HIGHER, NO_DUAL_CLIP = ("dapo", "mcot", "sp3f"), ("adamame", "dr-grpo", "gspo", "mcot")


@pytest.mark.parametrize("name", NAMES)
def test_its_loss_clips_as_published(name: str) -> None:
    """The loss of a token of ratio 1.5 and advantage 1, and of ratio 5 and advantage -1."""
    objective, found = make_objective(config_of(name).learner), []
    for ratio, advantage in ((1.5, 1.0), (5.0, -1.0)):
        logp = torch.tensor([-2.0])
        old = logp - math.log(ratio)
        loss, _ = objective(
            logp, old, old, torch.tensor([advantage]), None, entropy_R=torch.zeros(1),
            sequence_R=torch.zeros(1, dtype=torch.int64),
        )  # fmt: skip
        found.append(float(loss))
    high = 1.28 if name in CLIP_HIGHER else 1.0004 if name == "gspo" else 1.2
    wanted = [1.2 * 2, -1.2 * 2] if name == "cispo" else [-high, 5.0 if name in NO_DUAL_CLIP else 3.0]
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_its_loss_is_a_mean_over_what_was_published(name: str) -> None:
    learner = config_of(name).learner
    weights = token_weights([10, 30], ["fr", "fr"], learner.aggregation, learner.aggregation_length)
    constant = {"adamame": 4096, "dr-grpo": 3000, "sp3f": 2048, "mcot": 5555}
    if length := constant.get(name):
        wanted = [1 / (2 * length)] * 2
    else:
        wanted = [1 / 20, 1 / 60] if name in ("gspo", "pb-rlsvr") else [1 / 40] * 2
    assert list(weights) == pytest.approx(wanted)
    updates = {"adamame": 2, "explang": 2, "hybrid": 2, "cispo": 4, "gspo": 4, "gdpo": 4, "dr-grpo": 8, "dapo": 16}
    assert learner.minibatches * learner.passes == updates.get(name, 1)
    assert learner.staleness == (1 if name == "lrpo" else 0)


def test_groups_in_which_nothing_differs_are_replaced_in_dapo_alone() -> None:
    equal = random_batch(int(seeded_generator().integers(2**31)))[-1]
    left_out = [name for name in NAMES if group_outcome(equal, config_of(name).learner) == "zero_variance"]
    assert left_out == ["lrpo", "csc", "dapo"]
    assert [name for name in NAMES if config_of(name).learner.refill] == ["dapo"]


def test_dapo_makes_about_as_many_steps_of_its_questions_as_published() -> None:
    """The published file repeats them: 1.79 million rows, of which 1,536 are drawn for each step of one epoch."""
    steps, published = config_of("dapo").learner.steps_with(17_000), 1_790_000 // 1536
    assert 0.9 * published < steps <= published


@pytest.mark.parametrize("name", NAMES)
def test_the_languages_of_a_group_are_drawn_as_published(name: str, seed: int) -> None:
    config = config_of(name, "--run.languages", '["en", "fr", "ja"]', "--learner.evaluate_unseen", "[]")
    drawn = Router(config.router, config.run.languages, seed, 64).draw("fr", ["Reasoning / Logic"], []).languages
    assert len(drawn) == {"dapo": 16, "gspo": 16, "cispo": 5, "mcot": 24, "gdpo": 4}.get(name, 8)
    free = {"explang": 8, "hybrid": 4}.get(name, 0)
    assert drawn.count(POLICY_CHOOSES) == free
    own = {"lrpo": 2, "lrpo-paper": 2, "csc": 2, "hybrid": 2, "explang": 0}.get(name, len(drawn))
    assert drawn[:own] == ["fr"] * own
    assert config.model.prompt_style == {"explang": "select", "hybrid": "select"}.get(
        name, "tag" if name in ("lrpo", "lrpo-paper") else "system"
    )


# --- lengths and hardware ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return ModelShape(str(ROOT / "configs/models/qwen2.5-1.5b.json"))


LENGTHS = {
    "naive-grpo": 14336, "slc-rl": 14336, "strict-lc": 14336, "m-thinker": 14336, "adamame": 4096, "explang": 4096,
    "hybrid": 4096, "mcot": 5555, "dapo": 20480, "gspo": 8192, "sp3f": 2048, "cispo": 2048, "dr-grpo": 3000,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_fits_the_hardware_that_it_names(name: str, shape: ModelShape) -> None:
    text = FILES[name].read_text()
    assert "eight GPUs of 80 GB (configs/gpus-8.toml) for Qwen2.5-1.5B" in " ".join(text.replace("#", " ").split())
    config = config_of(name)
    assert config.sampling.max_new_tokens == LENGTHS.get(name, config.sampling.max_new_tokens)
    found = hardware_rows(shape, load([str(FILES[name]), str(ROOT / "configs/gpus-8.toml")]), Machine(80))
    assert len(found) > 10 and not [row for row in found if row.ok is False]


# --- the list, the command and the page -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    text = FILES[name].read_text()
    lines = text[: text.index("[run]")].splitlines()
    assert all(line.startswith("#") for line in lines) and re.fullmatch(r"[^:]+\(.+\): .+\.", first_line(FILES[name]))
    keys = re.findall(r"^# ([A-Z][^:]+): ", "\n".join(lines[1:]), re.MULTILINE)
    assert keys[:3] == ["What it does", "Deviations", "Data"] and keys[-1] == "Hardware"
    assert config_of(name).data.heldout is None or name == "lrpo", "what is evaluated is given with the data"
    page = (ROOT / "docs" / "papers.md").read_text()
    assert f"`{name}`" in page, "docs/papers.md has no entry for it"


def test_the_command_lists_and_shows_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    lrpo(["recipes"])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(NAMES)
    assert all(line.endswith(first_line(FILES[line.split()[0]])) for line in listed)
    lrpo(["recipes", "csc"])
    assert FILES["csc"].read_text() in capsys.readouterr().out


def test_a_recipe_takes_a_model_and_data(tmp_path: Path) -> None:
    plain = load(recipe_settings("dapo", ["org/model", "train.jsonl", "--learner.lr", "3e-6"]))
    assert (plain.model.path, plain.data.train, plain.data.heldout) == ("org/model", "train.jsonl", None)
    assert plain.run.dir == Path("runs/dapo") and plain.learner.lr == 3e-6 and plain.learner.loss == "ppo"
    model, gpus = (str(ROOT / "configs" / name) for name in ("models/qwen2.5-1.5b.toml", "gpus-8.toml"))
    given = load(recipe_settings("lrpo-paper", [model, "train.jsonl", "test.jsonl", gpus, "--run.dir", "here"]))
    assert given.model.path.endswith("warm-start") and given.data.heldout == "test.jsonl"
    assert given.learner.ranks == 4 and given.run.dir == Path("here") and given.router.credit == "reference"


def test_files_of_the_user_change_a_recipe(tmp_path: Path) -> None:
    mine, other, model = tmp_path / "mine.toml", tmp_path / "other.toml", tmp_path / "model.toml"
    mine.write_text('[data]\nheldout = "mine.jsonl"\n[run]\ndir = "mine"\n')
    other.write_text("[learner]\nlr = 3e-6\n")
    model.write_text('[model]\npath = "org/mine"\n[run]\ndir = "of-my-model"\n')
    shipped = ROOT / "configs" / "models" / "qwen2.5-1.5b.toml"

    def places(*words: object) -> tuple[str | None, str]:
        config = load(recipe_settings("dapo", [str(word) for word in words]))
        return config.data.heldout, str(config.run.dir)

    assert places("org/model", "train.jsonl", mine) == ("mine.jsonl", "mine")
    assert places("org/model", "train.jsonl", "given.jsonl", mine) == ("given.jsonl", "mine")
    assert places("org/model", "train.jsonl", mine, "--run.dir", "flag", "--data.heldout", "") == (None, "flag")
    assert places("org/model", "train.jsonl", other) == (None, "runs/dapo")
    assert places(shipped, "train.jsonl") == (None, "runs/dapo")
    assert places(shipped, "train.jsonl", mine) == ("mine.jsonl", "mine")
    assert places(model, "train.jsonl") == (None, "of-my-model")


def test_a_wrong_name_and_missing_data_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'mthinker'; did you mean m-thinker.* There are: lrpo, adamame, "):
        find_recipe("mthinker")
    with pytest.raises(ConfigError, match=r"no recipe 'xyz'\. There are"):
        find_recipe("xyz")
    gpus = str(ROOT / "configs" / "gpus-8.toml")
    for rest in (["org/model", "train.jsonl"], ["train.jsonl"]):
        with pytest.raises(ConfigError, match=r"gpus-8\.toml comes first and .* sets no model\.path: give the files"):
            recipe_settings("dapo", [gpus, *rest])
    for words in ([], ["model"], ["a.toml"], ["--learner.lr", "1"], ["model", "train", "test", "more"]):
        with pytest.raises(ConfigError, match=r"--recipe gspo needs a model and questions"):
            recipe_settings("gspo", words)
