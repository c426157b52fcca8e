"""Differences that are more than chance; and the whole way from raw rows to a comparison of two trained models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.config import load
from learner.data.problems import Place
from learner.data.rows import Rules, parse_row
from scripts.data import label, sft, warm_start_data
from scripts.data import prepare as prepare_data
from scripts.study import compare, coverage, evaluate
from scripts.study.statistics import (
    crossed_interval,
    holm,
    mean_interval,
    paired_test,
    seed_interval,
    translated_interval,
)
from tests.scripts.test_evaluate import judge
from tests.support.chat import serving
from tests.support.processes import forked

ROOT = Path(__file__).parents[2]
LANGUAGES = ("de", "en", "es", "fr")
SETTINGS = {
    "model.dtype": "float32", "run.languages": json.dumps(LANGUAGES), "router.rollouts": 4, "router.own_language": 1,
    "sampling.max_new_tokens": 12, "learner.steps": 3, "learner.groups_per_step": 4, "learner.lr": 1e-4,
    "learner.kl": 0.0, "learner.param_dtype": "float32", "learner.evaluate_every": 1, "learner.evaluate_questions": 4,
    "learner.group_timeout_s": 700, "actor.start_timeout_s": 400,
}  # fmt: skip


def scores(path: Path, values: np.ndarray[Any, Any], first: int = 0) -> str:
    """A file of scores, whose questions are numbered from ``first`` on."""
    items = [
        {"score": None if np.isnan(v) else v, "question": str(number)}
        for number, v in enumerate(values.tolist(), first)
    ]
    path.write_text(json.dumps({"items": {"CARE": items}}))
    return str(path)


@pytest.mark.parametrize("seeds", coverage.SEEDS)
@pytest.mark.parametrize("effects", [(0.1, 0.3), (0.3, 0.1)])
def test_intervals_contain_the_truth_as_often_as_they_say(
    seeds: int, effects: tuple[float, float], rng: np.random.Generator
) -> None:
    trials, random = 400, rng
    found = coverage.coverage(seeds, effects, trials, random)
    spread = 4 * (0.95 * 0.05 / trials) ** 0.5  # four standard deviations of a share of 0.95
    assert 0.95 - spread <= found["ours"].share
    if seeds == 2:
        assert found["bootstrap"].share < 0.9, "two seeds drawn again do not show how far seeds differ"


@pytest.mark.parametrize("seeds", [1, 3])
def test_translations_are_one_question(seeds: int, rng: np.random.Generator) -> None:
    """40 questions in six languages, some of which lack some; a question is as hard in all."""
    trials, ids = 300, [f"{n}" for language in range(6) for n in range(40) if (n + language) % 5]
    number = np.array([int(one) for one in ids])
    together, apart, drawn = list[bool](), list[bool](), list[bool]()
    for _ in range(trials):
        values = rng.normal(0, 1, 40)[number] + rng.normal(0, 0.5, (seeds, len(ids)))
        for kept, (_, low, high) in (
            (together, translated_interval(values, ids)),
            (apart, crossed_interval(values)),
            (drawn, mean_interval(values[0], rng, ids)),
        ):
            kept.append(low <= 0 <= high)
    spread = 4 * (0.95 * 0.05 / trials) ** 0.5  # four standard deviations of a share of 0.95
    assert np.mean(together) >= 0.95 - spread and np.mean(drawn) >= 0.93 - spread and np.mean(apart) < 0.8
    values = rng.normal(0, 1, (seeds, len(ids)))
    assert (
        translated_interval(values, ids)[0] == pytest.approx(values.mean()) == np.mean(translated_interval(values, ids))
    )
    assert translated_interval(values, [*map(str, range(len(ids)))]) == crossed_interval(values)


def test_intervals_are_those_of_textbooks(rng: np.random.Generator) -> None:
    questions = rng.normal(0.3, 1, (1, 40))
    known = stats.ttest_1samp(questions[0], 0).confidence_interval(0.95)
    assert crossed_interval(questions) == pytest.approx((questions.mean(), known.low, known.high))
    runs = rng.normal(0.3, 1, 5)
    known = stats.ttest_1samp(runs, 0).confidence_interval(0.95)
    assert crossed_interval(runs[:, None]) == pytest.approx((runs.mean(), known.low, known.high))
    assert seed_interval(runs) == pytest.approx((runs.mean(), known.low, known.high))
    assert np.isnan(crossed_interval(runs[:1, None])[1:]).all() and np.isnan(seed_interval(runs[:1])[1:]).all()
    _, low, high = crossed_interval(runs[:, None] + np.zeros((5, 400)))
    assert (low, high) == pytest.approx((known.low, known.high)), "what differs between seeds is not averaged away"
    values = rng.normal(0, 1, (4, 50))
    values[1, 3] = np.nan
    assert crossed_interval(values)[0] == pytest.approx(np.nanmean(values)), "an answer without a score is left out"
    ids = [str(number // 2) for number in range(50)]
    for interval in (crossed_interval, partial(translated_interval, ids=ids)):
        assert np.isnan(interval(np.full((2, 50), np.nan))).all(), "nothing was scored"


@pytest.mark.parametrize("interval", [crossed_interval, partial(translated_interval, ids=[*map(str, range(100))])])
def test_what_was_never_scored_is_no_evidence(
    interval: Callable[[np.ndarray[Any, Any]], tuple[float, float, float]], rng: np.random.Generator
) -> None:
    """A question or a seed without any score gives the interval that the others give alone."""
    values = rng.normal(0.5, 1, (1, 100))
    values[:, rng.permutation(100)[:50]] = np.nan
    known = stats.ttest_1samp(values[~np.isnan(values)], 0).confidence_interval(0.95)
    assert interval(values)[1:] == pytest.approx((known.low, known.high))
    values = rng.normal(0.5, 1, (3, 100)) + rng.normal(0, 1, (3, 1))
    missing = values.copy()
    missing[1] = np.nan
    assert interval(missing) == pytest.approx(interval(values[[0, 2]]))


def test_the_level_of_the_scores_does_not_widen_their_interval(rng: np.random.Generator) -> None:
    """Questions with different numbers of translations: their sums differ, and say nothing of how scores vary."""
    ids = [f"often {number // 10}" for number in range(100)] + [f"once {number}" for number in range(100)]
    assert translated_interval(np.full((3, 200), 80.0), ids) == pytest.approx((80.0, 80.0, 80.0))
    values = rng.normal(0, 10, (3, 200))
    mean, low, high = translated_interval(values, ids)
    assert translated_interval(values + 80, ids) == pytest.approx((mean + 80, low + 80, high + 80))


def test_many_comparisons_are_adjusted(rng: np.random.Generator) -> None:
    given = [*rng.random(6).tolist(), float("nan")]
    adjusted = holm(given)
    for p, ours in zip(given[:-1], adjusted[:-1], strict=True):
        others = sum(q >= p for q in given[:-1])
        at_least = min(1.0, others * p)
        assert ours >= at_least - 1e-12 and ours <= 1
    assert min(adjusted[:-1]) == pytest.approx(min(1.0, 6 * min(given[:-1]))) and np.isnan(adjusted[-1])
    assert sorted(adjusted[:-1]) == [adjusted[n] for n in np.argsort(given[:-1])], "the order of the p-values is kept"
    differences = rng.normal(0.5, 1, 5)
    p, effect = paired_test(differences)
    assert p == pytest.approx(stats.ttest_rel(differences + 3, np.full(5, 3.0)).pvalue)
    exact = (2 / np.pi) ** 0.5  # Gamma(2) / (sqrt(2) Gamma(3 / 2))
    assert effect == pytest.approx(differences.mean() / differences.std(ddof=1) * exact)
    assert np.isnan(paired_test(differences[:1])).all()
    equal = np.array([0.7 - 0.6, 0.8 - 0.7, 0.9 - 0.8])
    assert len(set(equal)) > 1 and np.isnan(paired_test(equal)).all(), "they differ in the last bits alone"
    two = paired_test(differences[:2])
    assert two[0] == pytest.approx(stats.ttest_1samp(differences[:2], 0).pvalue) and np.isnan(two[1])


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_effect_size_is_right_on_average(seeds: int, rng: np.random.Generator) -> None:
    drawn = rng.normal(0.8, 1, (20_000, seeds))
    effects = [paired_test(row)[1] for row in drawn[:4000]]
    error = 4 * np.std(effects) / len(effects) ** 0.5
    assert np.mean(effects) == pytest.approx(0.8, abs=error)


def test_paired_differences_see_what_unpaired_means_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(7)
    hard = rng.random(200)
    one = np.clip(hard + rng.normal(0, 0.02, (2, 200)), 0, 1)
    better, same = one + np.array([[0.03005], [0.02995]]), one + rng.normal(0, 0.02, one.shape)
    better[0, 0] = np.nan
    files = {
        name: ",".join(scores(tmp_path / f"{name}{n}.json", row) for n, row in enumerate(values))
        for name, values in {"base": one, "better": better, "same": same}.items()
    }
    arms = [f"{name}={some}" for name, some in files.items()]
    compare.main([*arms, "--scores", "--out", str(tmp_path / "out"), "--json"])
    printed = capsys.readouterr().out.splitlines()
    rows = {row["arm"]: row for row in json.loads(printed[-1])["rows"]}
    assert rows["better"]["difference"][0] == pytest.approx(3, abs=0.001) and rows["better"]["difference"][1] > 2.9
    assert rows["same"]["difference"][1] < 0 < rows["same"]["difference"][2]
    assert rows["better"]["mean"][1] < rows["base"]["mean"][2], "unpaired, the intervals overlap"
    assert [line.endswith("more than chance") for line in printed[1:4]] == [False, True, False]
    assert "g " not in printed[2], "two seeds have no effect size"
    short = scores(tmp_path / "short.json", hard[:5])
    with pytest.raises(SystemExit, match="base and short cannot be paired"):
        compare.main([arms[0], f"short={short}", "--scores", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="no finished run"):
        compare.main([f"base={tmp_path}", "--runs", "--out", str(tmp_path / "out")])


def arm(values: Any, **more: Any) -> dict[str, compare.Measured]:
    found = np.atleast_2d(np.asarray(values, np.float64))
    numbers = [str(n) for n in range(found.shape[1])]
    return {"CARE": compare.Measured(found, numbers, numbers, **more)}


def test_a_difference_is_more_than_chance_by_its_adjusted_p_value_alone(rng: np.random.Generator) -> None:
    base = rng.random((3, 50))
    gains = np.array([[0.03], [0.05], [0.08]])  # p is 0.06 of two sides; each below has it smaller or larger
    clear = np.array([[0.050], [0.055], [0.060]])
    arms = {"base": arm(base), "clear": arm(base + clear), "gains": arm(base + gains)}
    arms |= {f"other-{n}": arm(base + 0.3 * gains) for n in range(4)}
    rows = {row["arm"]: row for row in compare.compare(arms)}
    few = {row["arm"]: row for row in compare.compare({name: arms[name] for name in ("base", "clear")})}
    assert few["clear"]["p_adjusted"] < 0.05 and few["clear"]["more_than_chance"]
    assert rows["clear"]["difference"][1] > 0 and rows["clear"]["p"] < 0.05, "by itself it would be"
    assert rows["clear"]["p_adjusted"] == pytest.approx(6 * rows["clear"]["p"])
    for name, row in rows.items():
        if name != "base":
            assert row["more_than_chance"] == (row["p_adjusted"] < 0.05)
    shown = {line.split()[1]: line for line in compare.table([*rows.values()]).splitlines()[1:]}
    assert shown["clear"].endswith("more than chance") == (rows["clear"]["p_adjusted"] < 0.05)


def test_a_seed_without_a_score_takes_no_verdict_from_the_others(rng: np.random.Generator) -> None:
    base = rng.random((4, 50))
    better = base + np.array([[0.30], [0.32], [0.28], [0.31]])
    of_three = compare.compare({"base": arm(base[:3]), "better": arm(better[:3])})[1]
    better[3] = np.nan
    rows = compare.compare({"base": arm(base), "better": arm(better)})
    for key in ("p", "effect", "difference", "more_than_chance"):
        assert rows[1][key] == pytest.approx(of_three[key])
    assert rows[1]["more_than_chance"] and (rows[1]["seeds"], rows[1]["paired_seeds"]) == (4, 3)
    assert compare.table(rows).endswith("more than chance  (of 3 seeds: the others have no score in common)")


def test_one_seed_has_no_verdict(rng: np.random.Generator) -> None:
    base = rng.random((1, 200))
    rows = compare.compare({"base": arm(base), "better": arm(base + 0.1)})
    assert rows[1]["difference"][1] > 0 and rows[1]["more_than_chance"] is None
    shown = compare.table(rows)
    assert "nan" not in shown and "more than chance\n" not in shown and shown.endswith("called more than chance.")


def test_questions_are_paired_with_themselves(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.random(20)
    same, other = scores(tmp_path / "same.json", values), scores(tmp_path / "other.json", values, first=1)
    again = scores(tmp_path / "again.json", values)
    out = ["--scores", "--out", str(tmp_path / "out")]
    compare.main([f"base={same}", f"again={again}", *out])
    with pytest.raises(
        SystemExit, match=r"CARE: base and other cannot be paired: 20 of 20 questions differ, the first"
    ):
        compare.main([f"base={same}", f"other={other}", *out])
    with pytest.raises(SystemExit, match="their questions of CARE are not the same"):
        compare.main([f"base={same},{other}", *out])
    found = json.loads(Path(again).read_text())
    Path(again).write_text(
        json.dumps({"items": {"CARE": [{"score": item["score"]} for item in found["items"]["CARE"]]}})
    )
    with pytest.raises(SystemExit, match=r"an earlier version wrote them.*score again"):
        compare.main([f"base={same}", f"again={again}", *out])
    Path(again).write_text(json.dumps({"items": {**found["items"], "mGSM": []}}))
    with pytest.raises(SystemExit, match="lacks the sets mGSM"):
        compare.main([f"base={same},{again}", *out])
    with pytest.raises(SystemExit, match="is given twice"):
        compare.main([f"base={same},{same}", *out])
    with pytest.raises(SystemExit, match="the arm 'base' is given twice"):
        compare.main([f"base={same}", f"base={again}", *out])


def test_what_the_first_arm_lacks_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some, more = (scores(tmp_path / f"{name}.json", np.array([0.5, 1])) for name in ("some", "more"))
    items = json.loads(Path(more).read_text())["items"]
    Path(more).write_text(json.dumps({"items": {**items, "mGSM": items["CARE"]}}))
    compare.main([f"some={some}", f"more={more}", "--scores", "--out", str(tmp_path / "out"), "--json"])
    *shown, last = capsys.readouterr().out.splitlines()
    rows = {(row["metric"], row["arm"]): row for row in json.loads(last)["rows"]}
    assert list(rows) == [("CARE", "some"), ("CARE", "more"), ("mGSM", "more")]
    assert rows["mGSM", "more"]["mean"][0] == 75 and "difference" not in rows["mGSM", "more"]
    assert shown[3].startswith("mGSM") and shown[3].endswith("the first arm has none")
    with pytest.raises(SystemExit, match="mGSM: more and some cannot be paired"):
        compare.main([f"more={more}", f"some={some}", "--scores", "--out", str(tmp_path / "out")])


def finished(run: Path, words: list[str], reward: float) -> None:
    """What a finished run leaves behind, as far as a comparison reads it."""
    config = load(words)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(config.model_dump_json())
    own = {"reward_after": reward, "heldout_after": None, "compliance_after": reward / 2}
    (run / "summary.json").write_text(json.dumps({**own, "config": config.model_dump(mode="json")}))


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were trained; each leaves behind what a run does. Their questions are where they are
    looked for.
    """
    names: list[str] = []
    (tmp_path / "data").mkdir()
    for name in ("train", "heldout"):
        pq.write_table(pa.table({"question": [f"{name}?"], "answer": ["1"]}), tmp_path / "data" / f"{name}.parquet")
    monkeypatch.chdir(tmp_path)

    def run_all(settings: list[str], run: Path, actors: int) -> None:
        names.append(run.name)
        finished(run, settings, 0.5 + 0.01 * len(names))

    monkeypatch.setattr(compare, "run_all", run_all)
    return names


def test_rewards_of_different_scales_are_not_compared(
    tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["lrpo=", "grpo=--router.mode monolingual", "raw=--reward.similarity_range [0,1]"]
    arms += ["same=--reward.gated true --reward.batch_texts 8"]  # what holds anyway, and what changes no reward
    compare.main([*arms, "--seeds", "0,1", "--out", str(tmp_path), "--json"])
    *shown, last = capsys.readouterr().out.splitlines()
    rows = {(row["metric"], row["arm"]): row for row in json.loads(last)["rows"]}
    raw = rows["reward_after", "raw"]
    assert "difference" not in raw and raw["defined_otherwise"] == ["reward.similarity_range"]
    assert all("difference" in rows["reward_after", arm] for arm in ("grpo", "same"))
    assert "difference" in rows["compliance_after", "raw"], "the same gate tells the languages"
    told = [line for line in shown if line.startswith("reward_after       raw")]
    assert len(told) == 1 and told[0].endswith("not comparable: reward.similarity_range")
    assert (
        shown[-1].startswith("Where the settings that define a run's own figure differ") and "--evaluate" in shown[-1]
    )
    (tmp_path / "own.jsonl").write_text("{}\n")
    own = f"own=--data.train {tmp_path / 'own.jsonl'}"
    compare.main(["lrpo=", own, "--seeds", "0,1", "--out", str(tmp_path / "out"), "--json"])
    rows = {(row["metric"], row["arm"]): row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    assert rows["reward_after", "own"]["defined_otherwise"] == ["data.train"]
    for file in (tmp_path / "out" / run / "summary.json" for run in ("lrpo-0", "lrpo-1")):
        file.write_text(json.dumps({**json.loads(file.read_text()), "heldout_after": 0.5}))
    both = [f"{arm}={','.join(str(tmp_path / 'out' / f'{arm}-{seed}') for seed in (0, 1))}" for arm in ("lrpo", "own")]
    compare.main([*both, "--runs", "--out", str(tmp_path / "out"), "--json"])
    rows = {(row["metric"], row["arm"]): row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    assert ("heldout_after", "lrpo") in rows and ("heldout_after", "own") not in rows


def test_languages_that_the_command_declares_are_those_of_its_runs(tmp_path: Path, trained: list[str]) -> None:
    base = ["--base", '--run.languages \'["quc", "en"]\' --reward.unchecked pass', "--seeds", "0,1"]
    flag = ["--run.other_languages", "{quc = \"K'iche'\"}"]
    compare.main(["lrpo=", "grpo=--router.mode monolingual", *flag, *base, "--out", str(tmp_path)])
    assert trained == ["lrpo-0", "lrpo-1", "grpo-0", "grpo-1"]
    kept = json.loads((tmp_path / "grpo-1" / "config.json").read_text())["run"]
    assert kept["other_languages"] == {"quc": "K'iche'"} and kept["languages"] == ["quc", "en"]


def test_a_run_of_other_settings_is_not_taken_for_the_present_one(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []

    def evaluated(words: list[str]) -> None:
        if "--check" in words:
            return
        scored.append(Path(words[0]).name)
        item = {"score": 0.5, "question": "one"}
        Path(words[2]).write_text(json.dumps({"items": {"CARE": [item, {**item, "question": "two"}]}}))

    monkeypatch.setattr(evaluate, "main", evaluated)
    base = ["lrpo=", "--seeds", "0,1", "--out", str(tmp_path), "--evaluate", "--care a.jsonl"]
    compare.main([*base, "grpo=--router.mode monolingual"])
    assert trained == scored == ["lrpo-0", "lrpo-1", "grpo-0", "grpo-1"]
    compare.main([*base, "grpo=--router.mode monolingual --actor.request_timeout_s 99"])
    assert len(trained) == len(scored) == 4, "it is done, and what differs changes nothing"
    changed = [*base, "uniform=--router.mode uniform", "grpo=--router.mode monolingual --learner.lr 2e-6"]
    with pytest.raises(
        SystemExit, match=r"(?s)grpo-0 holds a finished run of other settings.*learner\.lr: 1e-06 -> 2e-06"
    ):
        compare.main(changed)
    assert len(trained) == 4, "nothing is trained before that is said"
    with pytest.raises(SystemExit, match=r"learner\.steps: 64 -> 80"):
        compare.main([*base, "--base", "--learner.steps 80"])
    with pytest.raises(SystemExit, match=r"scores\.json was made with the flags --care a\.jsonl"):
        compare.main([*base[:-1], "--care b.jsonl", "grpo=--router.mode monolingual"])
    (tmp_path / "own.jsonl").write_text("{}\n")
    own = ["own=", "--base", f"--data.train {tmp_path / 'own.jsonl'}", "--seeds", "0", "--out", str(tmp_path / "own")]
    compare.main(own)
    compare.main(own)
    (tmp_path / "own.jsonl").write_text("{}\n{}\n")
    with pytest.raises(SystemExit, match=r"own-0 holds a finished run of other rows of data\.train"):
        compare.main(own)
    assert trained.pop() == "own-0"
    (tmp_path / "grpo-1" / "summary.json").write_text('{"steps"')  # killed while it wrote
    (tmp_path / "grpo-1" / "scores.json").unlink()
    compare.main([*base, "grpo=--router.mode monolingual"])
    assert (trained[4:], scored[4:]) == (["grpo-1"], ["grpo-1"])
    with pytest.raises(SystemExit) as wrong:
        compare.main(["new=", "other=--router.mod uniform", "--out", str(tmp_path / "new")])
    assert wrong.value.code == 2 and not (tmp_path / "new").exists(), "before the first arm is trained"


def test_the_flags_of_evaluate_are_read_before_anything_is_trained(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(flags: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            compare.main(["lrpo=", "--seeds", "0", "--out", str(tmp_path), "--evaluate", flags])
        return f"{stopped.value.code}\n{capsys.readouterr().err}"

    data = tmp_path / "care.jsonl"
    data.write_text(json.dumps({"question": "?", "answer": "!", "language": "en"}) + "\n{}\n")
    assert "No such option: --jugde" in refused(f"--care {data} --jugde j@http://127.0.0.1:1")
    assert "--evaluate: CARE needs --judge" in refused(f"--care {data}")
    assert f"{data}, row 1" in refused(f"--care {data} --judge j@http://127.0.0.1:1")
    assert "'j' names no endpoint" in refused(f"--mgsm {tmp_path / 'data' / 'train.parquet'} --language en --judge j")
    assert "nothing to evaluate" in refused("--max-tokens 12") and "leave out --out" in refused("--out=x")
    (tmp_path / "tasks").mkdir()
    assert "no task 'nothing'" in refused(f"--lm-eval nothing --include-path {tmp_path / 'tasks'}")
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert "--evaluate: --lm-eval needs the package lm_eval" in refused("--lm-eval nothing")
    assert not trained


def test_finished_runs_are_paired_by_their_seeds_and_take_no_flags_of_training(
    tmp_path: Path, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)]
    compare.main(["lrpo=", "grpo=--router.mode monolingual", "--seeds", "3,4", *out])
    lrpo, grpo = ([str(tmp_path / f"{arm}-{seed}") for seed in (3, 4)] for arm in ("lrpo", "grpo"))
    compare.main([f"lrpo={','.join(lrpo)}", f"grpo={','.join(grpo)}", "--runs", *out])
    with pytest.raises(SystemExit, match=r"lrpo-3 of lrpo has the seed 3 and .*grpo-4 of grpo, .* the seed 4"):
        compare.main([f"lrpo={','.join(lrpo)}", f"grpo={','.join(grpo[::-1])}", "--runs", *out])
    for flags, told in (
        (["--runs", "--seeds", "0,1,2"], "--runs compares finished runs and trains none: --seeds would have no effect"),
        (["--scores", "--base", "", "--evaluate", "x"], "--scores compares files of scores .*: --base, --evaluate"),
        (["--runs", "--scores"], "either --runs or --scores"),
    ):
        with pytest.raises(SystemExit, match=told):
            compare.main([f"lrpo={','.join(lrpo)}", *flags, *out])


@pytest.mark.e2e
@pytest.mark.timeout(1800)  # every arm is a whole run: half a minute of one core
@pytest.mark.parametrize(
    "arms", [["lrpo="], pytest.param(["lrpo=", "grpo=--router.mode monolingual"], marks=pytest.mark.slow)]
)
def test_from_raw_rows_to_a_comparison(
    arms: list[str], built: Path, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prepare, label, warm start, train with evaluations on the way, evaluate, compare; with a light engine."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support" / "light"))
    truth = {
        row["question"]: label.label_of(parse_row(row, Place("file", 0), Rules()))
        for row in pq.read_table(built / "train.parquet").to_pylist()
    }
    lines = [
        json.dumps({"question": row["question"], "answer": row["answer"], "language": row["extra_info"]["language"]})
        for row in pq.read_table(built / "train.parquet").to_pylist()
        if row["extra_info"]["language"] in ("german", "english", "spanish", "french")
    ]
    (tmp_path / "raw.jsonl").write_text("\n".join(lines))
    prepare_data.main([str(tmp_path / "raw.jsonl"), "--out", str(tmp_path), "--heldout", "0.1", "--strict"])

    def knows(request: dict[str, Any]) -> str:
        topic, regions = truth[request["messages"][1]["content"].removeprefix("user: ")] or ("", [])
        return json.dumps({"topic": topic, "regions": regions})

    with serving(knows) as url:
        for split in ("train", "heldout"):
            path = tmp_path / f"{split}.parquet"
            label.main([str(path), "--out", str(path), "--endpoint", f"m@{url}"])
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    for row in rows:
        assert label.label_of(parse_row(row, Place("file", 0), Rules())) == truth[row["question"]]

    known = [
        {"id": row["fact"], "language": row["language"], "answer": row["answer"], "question": asked["text"]}
        for row in pq.read_table(built / "warm_start.parquet").to_pylist()[:400]
        for asked in row["questions"]
        if asked["language"] == row["language"]
    ]
    pq.write_table(pa.Table.from_pylist(known), tmp_path / "parallel.parquet")
    examples, model = tmp_path / "examples.parquet", tmp_path / "model"
    languages = ["--languages", ",".join(LANGUAGES), "--prompts", "32"]
    warm_start_data.main([str(tmp_path / "parallel.parquet"), "--parallel", *languages, "--out", str(examples)])
    sft.main([str(tiny_policy), str(examples), "--out", str(model), "--epochs", "1", "--lr", "1e-3"])

    flags = SETTINGS | {"model.path": model, "data.train": tmp_path / "train.parquet"}
    flags |= {"learner.address": f"ipc://{tmp_path}/q", "reward.addresses": f'["ipc://{tmp_path}/r"]'}
    base = " ".join(f"--{key} '{value}'" for key, value in flags.items())
    with serving(judge) as url, forked():
        scored = f"--care-pro {tmp_path / 'heldout.parquet'} --judge j@{url} --max-tokens 12"
        compare.main([*arms, "--base", base, "--seeds", "0", "--out", str(tmp_path / "out"), "--evaluate", scored])
        evaluate.main([str(model), "--out", str(tmp_path / "warm.json"), *scored.split()])
    names = [arm.partition("=")[0] for arm in arms]
    compared = json.loads((tmp_path / "out" / "comparison.json").read_text())
    wanted = {(name, metric) for name in names for metric in ("CARE-pro", "reward_after")}
    assert {(row["arm"], row["metric"]) for row in compared} >= wanted
    gained = [f"warm={tmp_path / 'warm.json'}", f"lrpo={tmp_path / 'out' / 'lrpo-0' / 'scores.json'}"]
    compare.main([*gained, "--scores", "--out", str(tmp_path / "gained")])
    assert "difference" in json.loads((tmp_path / "gained" / "comparison.json").read_text())[1]
    for arm in names:
        summary = json.loads((tmp_path / "out" / f"{arm}-0" / "summary.json").read_text())
        assert (summary["questions_lost"], summary["questions_duplicated"], summary["steps"]) == (0, 0, 3)
        assert summary["staleness_max"] <= summary["staleness_bound"]
        assert sum(summary[f"groups_{fate}"] for fate in ("trained", "zero_variance")) == 12
        events = EventAccumulator(str(tmp_path / "out" / f"{arm}-0" / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Scalars("evaluation_train/own")] == [0, 1, 2, 3]
