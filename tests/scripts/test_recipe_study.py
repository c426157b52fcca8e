"""``lrpo study recipes``: what is of the recipe and what of the world; the judge, the figures, and that it goes on."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Config, load
from common.process import FatalError
from common.user_code import load_user_object
from scripts.ops.recipes import find_recipe, recipe_files
from scripts.study.experiments import __main__ as study
from scripts.study.experiments import runner, set_up
from scripts.study.experiments.reasoning_figures import MEANING, measure_warm_start, read_figures
from scripts.study.experiments.reasoning_world import ReasoningWorld
from scripts.study.experiments.recipe_table import recipe_table
from scripts.study.experiments.recipes import BASE, LEFT_OUT, runnable
from scripts.world.reasoning import build, demo, judge, measure, warm_start
from scripts.world.reasoning.stories import LANGUAGES, every_sum

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"


def config_of(recipe: str, tmp_path: Path, *given: str) -> Config:
    return load(ReasoningWorld(0, tmp_path, given).settings(recipe))


# --- settings ---------------------------------------------------------------------------------------------------------


def test_every_recipe_runs_or_is_left_out_for_a_reason() -> None:
    assert sorted([*runnable(), *LEFT_OUT]) == sorted(recipe_files()) and runnable()[0] == BASE


@pytest.mark.parametrize("recipe", runnable())
def test_sizes_are_of_the_world_and_all_else_is_of_the_recipe(recipe: str, tmp_path: Path) -> None:
    own, published = config_of(recipe, tmp_path), load([str(find_recipe(recipe))])
    world = load(list(map(str, demo.CONFIGS)))
    for config in (own, world):
        learner = config.learner
        assert (learner.steps, learner.epochs, learner.groups_per_step, config.router.rollouts) == (100, 0, 16, 8)
        assert config.sampling.max_new_tokens == 64 and config.run.languages == world.run.languages
        assert config.model.prompt_style == "tag" and not learner.evaluate
    for key in ("loss", "advantage", "advantage_std", "clip_low", "clip_high", "kl", "staleness", "step_reward",
                "drop_zero_variance", "aggregation", "minibatches", "weight_decay", "importance"):  # fmt: skip
        assert getattr(own.learner, key) == getattr(published.learner, key), key
    for key in ("terms", "parts", "gated", "gate_span"):
        assert getattr(own.reward, key) == getattr(published.reward, key), key
    shares = [one.router.own_language / one.router.rollouts for one in (own, published)]
    assert own.router.mode == published.router.mode and shares[0] == shares[1]
    assert own.lora == published.lora and own.sampling.temperature == world.sampling.temperature == 1
    rate = world.learner.lr * (10 if own.lora.rank else 1)
    assert own.learner.lr == pytest.approx(rate / own.learner.minibatches / own.learner.passes)


def test_lengths_keep_their_share_of_the_longest_answer(tmp_path: Path) -> None:
    dapo = config_of("dapo", tmp_path).learner  # 20,480 tokens of which the last 4,096 cost; 14,848 for 512 questions
    assert (dapo.overlong_limit, dapo.overlong_buffer, dapo.refill) == (64, 13, 29 * 16)
    assert {
        config_of(name, tmp_path).learner.aggregation_length for name in ("adamame", "dr-grpo", "sp3f", "mcot")
    } == {64}


def test_settings_have_hashes_of_their_own(tmp_path: Path) -> None:
    place = ReasoningWorld(0, tmp_path)
    hashes = {recipe: place.settings_hash(recipe) for recipe in runnable()}
    assert len(set(hashes.values())) == len(hashes)
    assert ReasoningWorld(7, tmp_path / "elsewhere").settings_hash(BASE) == hashes[BASE]
    for other in (ReasoningWorld(0, tmp_path, ["--learner.steps", "5"]), ReasoningWorld(0, tmp_path, (), 30)):
        assert other.settings_hash(BASE) != hashes[BASE]
    assert other.policy != place.policy, "another warm start does not replace the one that a study is using"


def test_what_cannot_run_is_refused_with_the_reason(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "none")]
    with pytest.raises(SystemExit, match=r"the recipe csc cannot run on the reasoning world: answers must agree"):
        study.main(["recipes", "--recipes", "naive-grpo,csc", *out])
    with pytest.raises(SystemExit, match=r"--recipes m_thinker: there are naive-grpo, adamame"):
        study.main(["recipes", "--recipes", "m_thinker", *out])
    with pytest.raises(SystemExit, match=r"has one world: --base, --regimes and --best-language"):
        study.main(["recipes", "--regimes", "equal", *out])
    with pytest.raises(SystemExit, match=r"--seeds 0;1: whole numbers, separated by commas"):
        study.main(["recipes", "--seeds", "0;1", *out])


# --- the judge --------------------------------------------------------------------------------------------------------


def prompt(recipe: str, name: str, **values: str) -> str:
    return str(load_user_object(f"{RECIPES / recipe}.py:{name}", "test").format(**values))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_judge_reads_number_words(language: str) -> None:
    for one in every_sum():
        wanted = [one.first, one.second, one.total, one.total, one.third, one.result, one.result]
        assert judge.numbers(one.thought(language)[0], language) == wanted


@pytest.mark.parametrize(("slips", "share"), [((0, 0), 1.0), ((1, 0), 0.0), ((0, 1), 1 / 3), ((1, -1), 1 / 3)])
def test_the_judge_counts_the_results_of_the_english_thought(
    slips: tuple[int, int], share: float, rng: np.random.Generator
) -> None:
    """Of a wrong first step nothing is left, unless the second one is wrong, too, and makes up for it."""
    one = every_sum()[rng.integers(len(every_sum()))]
    asked = prompt("m_thinker", "ALIGNMENT", language="German", question="?", english=one.thought("en")[0],
                   thought=one.thought("de", *slips)[0])  # fmt: skip
    read_share = load_user_object(f"{RECIPES}/m_thinker.py:read_share", "test")
    assert read_share(judge.answer(asked)) == pytest.approx(share, abs=0.01)


def test_the_judge_compares_steps_and_results_and_not_places(rng: np.random.Generator) -> None:
    first_wins = load_user_object(f"{RECIPES}/sp3f.py:read_first_wins", "test")
    chance = []
    for one in every_sum():
        good, near, bad = (
            warm_start.written(thought, str(result))
            for thought, result in (one.thought("ja"), one.thought("en", 0, 1), one.thought("de", 1, 1))
        )
        for better, worse in ((good, near), (near, bad), (good, bad), (good, good.removesuffix(str(one.result)))):
            for pair in ((better, worse), (worse, better)):
                asked = prompt(
                    "sp3f", "COMPARISON", question="?", solution=one.thought("en")[0], first=pair[0], second=pair[1]
                )
                assert first_wins(judge.answer(asked)) == (pair[0] == better)
        equal = prompt("sp3f", "COMPARISON", question="?", solution=one.thought("en")[0], first=good, second=good)
        chance.append(first_wins(judge.answer(equal)))
    assert 0.3 < np.mean(chance) < 0.7


def test_the_judge_answers_over_http() -> None:
    asked = prompt("pb_rlsvr", "TRANSLATION", english="5", text=" 5\n")
    with judge.serve_judge() as served:
        model, _, url = served.partition("@")

        def ask(text: str) -> str:
            body = json.dumps({"model": model, "messages": [{"role": "user", "content": text}]}).encode()
            with urllib.request.urlopen(f"{url}/chat/completions", body, timeout=20) as response:
                return str(json.load(response)["choices"][0]["message"]["content"])

        assert (ask(asked), ask(asked.replace(" 5\n", "6"))) == ("100", "0")
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask("Is it raining?")
        assert refused.value.code == 400 and b"knows the prompts of m-thinker" in refused.value.read()


# --- figures, and the runner ------------------------------------------------------------------------------------------

# What a policy is like: the language that it thinks in where the question is not English, and whether it is right.
STYLES = {"own": (False, True), "english": (True, True), "wrong": (False, False)}
SUM_OF = {one.question(language): one for one in every_sum() for language in LANGUAGES}


def write_model(directory: Path, style: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"style": style}))


def leave_behind(run: Path, style: str) -> None:
    """What a finished run leaves behind, as far as the study reads it."""
    write_model(run / "model", style)
    (run / "summary.json").write_text(json.dumps({"wall_seconds": 12.5}))
    lines = [{"row": 0, "lengths": [3, 4]}, {"row": 1, "lengths": [5]}, {"row": 1, "outcome": "failed"}]
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that answers were sampled from; these are written by hand in the style of each, and really judged."""
    models: list[str] = []

    def sample(model: Path, asked: Sequence[measure.Question], samples: int, seed: int) -> list[measure.Written]:
        models.append(model.parent.name if model.name == "model" else model.name)
        in_english, right = STYLES[json.loads((model / "config.json").read_text())["style"]]
        thoughts = [SUM_OF[one.text].thought("en" if in_english else one.language, int(not right)) for one in asked]
        texts = [warm_start.written(text, str(result)) for text, result in thoughts]
        return [measure.Written(text, 30) for text in texts for _ in range(samples)]

    monkeypatch.setattr(measure, "sample", sample)
    return models


def prepare(place: ReasoningWorld) -> None:
    """A small world and what stands for its policy, whose answers are all wrong."""
    world, policy = place.world, place.policy
    if not world.exists():
        build.main(["--out", str(world), "--seed", str(place.seed), "--examples", "10", "--heldout-sums", "2"])
        write_model(policy, "wrong")


def test_figures_of_a_run(tmp_path: Path, sampled: list[str]) -> None:
    place = ReasoningWorld(0, tmp_path)
    prepare(place)
    leave_behind(tmp_path / "run", "english")
    found = place.figures(BASE, tmp_path / "run")
    assert set(found) == set(MEANING)
    assert (found["lc"], found["acc"], found["both"], found["english"]) == (0, 1, 0, 1)
    assert (found["lc_all"], found["acc_all"], found["both_all"]) == (0.1, 1, 0.1), "one language of ten is English"
    assert found["lc_before"] is not None and found["lc_before"] > 0.9 and found["acc_before"] == 0
    assert (found["answers"], found["training_seconds"], found["tokens"]) == (3, 12.5, 30)
    with pytest.raises(FatalError, match=r"no-run holds no finished run: .*No such file"):
        read_figures(tmp_path / "no-run", {}, {})
    with pytest.raises(FatalError, match=r"no-run.model holds no model to measure, as a run keeps only with --keep"):
        place.figures(BASE, tmp_path / "no-run")


def test_the_warm_start_is_measured_once_and_again_if_it_is_another(tmp_path: Path, sampled: list[str]) -> None:
    place = ReasoningWorld(0, tmp_path)
    prepare(place)
    first, again = (measure_warm_start(place.policy, place.world, 0) for _ in range(2))
    assert first == again and first["acc"] == 0 and len(sampled) == 1
    write_model(place.policy, "own")  # with the same settings; another CPU has trained other weights
    set_up.digest_of_model.cache_clear()  # as in another process
    assert measure_warm_start(place.policy, place.world, 0)["acc"] == 1 and len(sampled) == 2


def test_a_table_has_the_warm_start_and_means_over_seeds() -> None:
    def figures(value: float) -> dict[str, float]:
        return {name: value - (0.25 if name.endswith("_before") else 0.0) for name in MEANING}

    runs = (("strict-lc", 0, 0.5), ("naive-grpo", 0, 0.3), ("strict-lc", 1, 0.7), ("strict-lc", 2, 0.6))
    found = [figures(value) for _, _, value in runs]
    found[3]["lc_before"] = 0.45  # in place of 0.35
    records = [{"arm": arm, "seed": seed, "figures": one} for (arm, seed, _), one in zip(runs, found, strict=True)]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in recipe_table(records).splitlines()
    ]
    assert head[:7] == ["recipe", "seeds", "LC", "Acc", "LC&Acc", "English", "LC, change"]
    assert [row[0] for row in rows] == ["warm start", "strict-lc", "naive-grpo"]
    assert rows[0][2:4] == ["0.317", "0.283"]  # 0.05, 0.45 and 0.45 (or 0.35) of the seeds 0, 1 and 2
    # Changes 0.25, 0.25, 0.15: t of two degrees of freedom, 4.303, times the deviation 0.0333 of their mean.
    assert rows[1][1:3] == ["3", "0.600"] and rows[1][6:8] == ["+0.217 ± 0.143", "+0.250 ± 0.000"]
    assert rows[2][1:3] == ["1", "0.300"] and rows[2][6] == "+0.250"


def test_a_study_of_recipes_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sampled: list[str]
) -> None:
    trained: list[tuple[str, Config]] = []

    def run_all(settings: Sequence[str], run: Path, actors: int | None) -> None:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append((run.name, load(settings)))
        leave_behind(run, "english" if run.name.startswith("naive") else "own")

    monkeypatch.setattr(runner, "run_all", run_all)
    monkeypatch.setattr(ReasoningWorld, "prepare", prepare)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the command sets it
    words = ["recipes", "--recipes", "naive-grpo,m-thinker", "--seeds", "0,1", "--steps", "7"]
    words += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    with pytest.raises(SystemExit):
        study.main(words)
    assert [name for name, _ in trained] == ["naive-grpo-0", "m-thinker-0", "naive-grpo-1"], "seeds are outermost"
    naive, thinker = trained[0][1], trained[1][1]
    assert naive.learner.steps == 7 and naive.run.seed == 0 and not naive.reward.judges
    assert naive.learner.address.startswith("ipc:") and naive.learner.address != thinker.learner.address
    assert thinker.reward.judges[0].startswith("number-words@http://127.0.0.1:")
    trained.clear()
    study.main(words)
    assert [name for name, _ in trained] == ["m-thinker-1"]
    assert sorted(sampled) == sorted(
        ["reasoning-policy-0", "naive-grpo-0", "m-thinker-0", "reasoning-policy-1", "naive-grpo-1", "m-thinker-1"]
    ), "each policy is measured once, and the warm start of a seed for all arms"
    out = tmp_path / "out"
    records: list[dict[str, Any]] = json.loads((out / "results.json").read_text())
    assert {tuple(sorted(one)) for one in records} == {
        ("actors", "arm", "code", "config", "figures", "regime", "seconds", "seed", "starts_from")
    }
    assert not (out / "reasoning" / "naive-grpo-0" / "model").exists(), "models are not kept"
    printed, written = capsys.readouterr().out, (out / "tables.md").read_text()
    assert printed.endswith(written) and "| warm start | 2 |" in written and "* `csc`: answers must agree" in written
    assert (out / "differences.png").stat().st_size > 1000
    study.main([*words, "--dry-run"])
    assert "0 of 4 runs are left to do" in capsys.readouterr().out
    study.main(["recipes", "--report", "--out", str(out)])
    assert capsys.readouterr().out == written
    with pytest.raises(SystemExit, match=r"has naive-grpo, reasoning, seed 0 with other settings"):
        study.main([*words[:-6], "--steps", "8", *words[-4:]])


@pytest.mark.e2e
@pytest.mark.slow  # a warm start and two runs
@pytest.mark.timeout(3000)
def test_a_small_study_of_recipes_with_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "tests" / "support" / "light"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ["recipes", "--recipes", "naive-grpo,m-thinker", "--seeds", "0", "--steps", "2", "--warm-start-steps", "5"]
    words += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    # The light engine keeps weights in the checkpoint's bfloat16, and the learner has them in float32.
    study.main([*words, "--learner.groups_per_step", "2", "--sync.probe_tolerance", "0.1"])
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["arm"] for one in records] == ["naive-grpo", "m-thinker"]
    assert all(one["figures"]["answers"] >= 2 * 2 * 8 for one in records)
