"""``lrpo study``: its arms, the figures of its runs, its tables, and that it can be stopped and goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats
from torch.utils.tensorboard import SummaryWriter

from common.config import Config, load
from reward.calibration.files import quantile_path
from scripts.study.experiments import __main__ as study
from scripts.study.experiments import figures, results, runner, set_up, transfer
from scripts.study.experiments.arm_tables import compare_arms, draw, overview
from scripts.study.experiments.arms import IN_HINDSIGHT, OURS, arms_of
from scripts.study.experiments.facts_world import FactsWorld, OwnData
from scripts.study.experiments.figures import MEANING, read_figures
from scripts.study.experiments.knowledge import Knowledge, best_language, read_knowledge
from scripts.study.experiments.reasoning_world import ReasoningWorld
from scripts.study.experiments.report import records_of, write_report
from scripts.study.experiments.transfer import measure_transfer
from scripts.world import build as world
from tests.support.processes import forked

LANGUAGES = ("ar", "de", "en", "es", "fr", "ja", "ko", "pt", "ru", "zh")


def evaluation(own: float, by_language: dict[str, float]) -> dict[str, Any]:
    diagnostics = {"consistency/accuracy": own + 0.02, "consistency/fasttext_both_right": own - 0.02}
    found = {"own": own, "routed": own + 0.1, "oracle": 0.9, "compliance": 1.0, "own_by_language": by_language}
    return found | {"uniform": own - 0.1, "diagnostics": diagnostics}


def leave_behind(run: Path, own: float) -> None:
    """What a finished run leaves behind, as far as a study reads it."""
    run.mkdir(parents=True)
    before = {part: evaluation(0.5, {"de": 0.5, "en": 0.6}) for part in ("train", "heldout")}
    after = {part: evaluation(own, {"de": 0.8, "en": 0.4}) for part in ("train", "heldout")}
    summary = {
        "evaluation_before": before, "evaluation_after": after, "groups_trained": 3, "groups_zero_variance": 1,
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    lines = [
        {"row": 0, "outcome": "trained", "languages": ["de", "en"], "lengths": [3, 4]},
        {"row": 1, "outcome": "zero_variance", "languages": ["de", ""], "lengths": [5, 6]},
        {"row": 1, "outcome": "failed"},
    ]
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "checkpoints").mkdir()


def test_figures_of_a_run(tmp_path: Path) -> None:
    leave_behind(tmp_path / "run", 0.7)
    found = read_figures(
        tmp_path / "run", Knowledge({"train": {0: {"en"}, 1: {"de"}}, "heldout": {}}, {0: "a", 1: "b"})
    )
    assert list(found) == list(MEANING)
    assert found["tokens"] == 18 and found["known"] == 2 / 4 and found["zero_variance"] == 1 / 4
    assert found["diversity"] == 2, "of the two answered groups"
    assert (found["accuracy_heldout"], found["both_heldout"]) == pytest.approx((0.72, 0.68))
    assert found["gain_train"] == pytest.approx(0.2) and found["regret_heldout"] == pytest.approx(0.1)
    assert found["forgetting"] == pytest.approx(0.2 / 2), "German gained 0.3, which makes up for nothing"
    assert read_figures(tmp_path / "run", None)["known"] is None and found["gradient_noise"] is None
    with SummaryWriter(str(tmp_path / "run" / "tensorboard")) as writer:
        for step, share in ((1, 0.5), (9, 0.75)):
            writer.add_scalar("learning/gradient_noise", share, step)
    assert read_figures(tmp_path / "run", None)["gradient_noise"] == 0.625
    with SummaryWriter(str(tmp_path / "run" / "tensorboard")) as writer:
        for step, share in ((17, float("nan")), (25, float("inf"))):
            writer.add_scalar("learning/gradient_noise", share, step)
        writer.add_scalar("learning/reward_std", float("nan"), 1)
    found = read_figures(tmp_path / "run", None)
    assert found["gradient_noise"] == 0.625 and found["reward_std"] is None, "a step without a finite number has none"
    before = {part: evaluation(0.6, {"de": 0.5, "en": 0.5}) for part in ("train", "heldout")}
    assert read_figures(tmp_path / "run", None, before)["gain_train"] == pytest.approx(0.1), "evaluated by another run"


def test_what_was_taught_and_what_carried_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FEWEST_PAIRS", 1)
    # Rows 0 and 1 ask for fact a, in two languages; English knows it. Fact b, row 2, is known in German.
    knowledge = Knowledge(
        {"train": {0: {"en"}, 1: {"en"}, 2: {"de"}}, "heldout": {0: {"fr"}, 1: {"de"}}}, {0: "a", 1: "a", 2: "b"}
    )
    zero = {"de": 0.0, "en": 0.0, "fr": 0.0}
    before = {"train": {"0": {**zero, "de": 0.25}, "1": zero, "2": zero}, "heldout": {"0": zero, "1": zero}}
    after: dict[str, Any] = {
        "train": {
            "0": {"de": 0.75, "en": 1.0, "fr": 0.25}, "1": {"de": None, "en": 1.0, "fr": 0.5},
            "2": {"de": 1.0, "en": 1.0, "fr": 0.0},
        },
        "heldout": {"0": {"de": 0.125, "en": 0.375, "fr": 1.0}, "1": {"de": 1.0, "en": 0.125, "fr": 0.0625}},
    }  # fmt: skip
    found = measure_transfer(before, after, {0: {"en"}, 1: {"de"}, 2: {"de", "en"}}, knowledge)
    # Answers were asked for in German to row 1, and so to row 0, which asks for the same; in English to row 2. Held-out
    # questions that they did not know gained 0.125 in German, 0.25 in English and 0.0625 in French.
    assert found["taught"] == pytest.approx(((0.5 - 0.125) + (1.0 - 0.25)) / 2)
    assert found["transfer"] == pytest.approx(((0.25 + 0.5) / 2 + 0.0) / 2 - 0.0625), "a fact counts once in a language"
    alone = measure_transfer(before, after, {0: {"en"}}, None)
    assert alone["taught"] == pytest.approx(1.0 - 0.25), "every language and each row counts for itself"
    assert measure_transfer({}, after, {}, knowledge) == {"taught": None, "transfer": None}

    leave_behind(tmp_path / "run", 0.7)
    for when, rewards in (("before", before), ("after", after)):
        for name, rows in rewards.items():
            lines = [json.dumps({"row": int(row), "language": "de", "rewards": each}) for row, each in rows.items()]
            path = tmp_path / "run" / "evaluations" / f"{when}-{name}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(lines) + "\n")
    with (tmp_path / "run" / "ledger.jsonl").open("a") as ledger:  # which has fact a, in German and English
        ledger.write('{"row": 2, "outcome": "zero_variance", "languages": ["fr"], "lengths": [3]}\n')
    figures = read_figures(tmp_path / "run", knowledge)
    assert figures["taught"] == pytest.approx(((0.5 - 0.125) + (0.0 - 0.0625)) / 2), (
        "fact b was asked for in French, and not trained there, because all answers earned the same"
    )
    assert figures["transfer"] == pytest.approx((((0.25 + 0.5) / 2 - 0.0625) + (1.0 - 0.25)) / 2)


def willing(gains: dict[str, float], rows: int = 8) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rewards before and after a training that made languages more willing by ``gains``, and taught no fact."""
    first = {str(row): dict.fromkeys(gains, 0.25) for row in range(rows)}
    last = {str(row): {language: 0.25 + gain for language, gain in gains.items()} for row in range(rows)}
    return {"train": first, "heldout": first}, {"train": last, "heldout": last}


def test_willingness_of_single_languages_is_neither_taught_nor_transferred() -> None:
    before, after = willing({"de": 0.5, "en": 0.0, "fr": 0.0})
    in_german = {row: {"de"} for row in range(8)}
    nobody = {row: set[str]() for row in range(8)}
    # German knows half of the held-out questions, so few of those that count there are of its language.
    knowledge = Knowledge(
        {"train": nobody, "heldout": {row: {"de"} if row < 4 else set() for row in range(8)}},
        {row: str(row) for row in range(8)},
    )
    found = measure_transfer(before, after, in_german, knowledge)
    assert found == {"taught": None, "transfer": pytest.approx(0.0)}, "8 pairs are too few for a mean, 16 are not"
    before, after = willing({"de": 0.5, "en": 0.0, "fr": 0.0}, 10)
    in_german = {row: {"de"} for row in range(10)}
    assert measure_transfer(before, after, in_german, None) == {"taught": 0.0, "transfer": 0.0}
    unknown = {row: set[str]() for row in range(10)}
    one_fact = Knowledge({"train": unknown, "heldout": unknown}, dict.fromkeys(range(10), "a"))
    assert measure_transfer(before, after, in_german, one_fact) == {"taught": None, "transfer": None}, (
        "ten questions that ask for one fact are one pair in a language"
    )


def test_gains_come_in_order_so_that_their_means_are_the_same_in_every_process() -> None:
    before, after = willing(dict.fromkeys(reversed(LANGUAGES), 0.1), 12)
    found = [(row, language) for row, language, _ in transfer._gains(before, after, "train", None)]
    assert found == [(row, language) for row in range(12) for language in LANGUAGES]


def test_a_pair_counts_whatever_its_answers_earned() -> None:
    """What was asked for and never answered rightly is not trained, and counts as not taught."""
    before, after = willing({"de": 0.0, "en": 0.0}, 40)
    after["train"] = {str(row): {"de": 0.25 if row < 30 else 1.25, "en": 0.25} for row in range(40)}
    everywhere = {row: {"de", "en"} for row in range(40)}
    found = measure_transfer(before, after, everywhere, None)
    assert found == {"taught": pytest.approx(10 / 80), "transfer": None}


def test_where_the_policy_chooses_all_languages_nothing_is_routed(tmp_path: Path) -> None:
    leave_behind(tmp_path / "run", 0.7)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert read_figures(tmp_path / "run", None)["regret_heldout"] == pytest.approx(0.9 - 0.8)
    for part in ("train", "heldout"):
        summary["evaluation_after"][part]["routed"] = None
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    found = read_figures(tmp_path / "run", None)
    assert [found[name] for name in ("routed_heldout", "routed_train", "regret_heldout")] == [None] * 3


@pytest.mark.parametrize("name", ["router", "mechanism"])
def test_every_arm_is_a_configuration_and_differs_from_the_others(name: Any, tmp_path: Path) -> None:
    world.main(["--out", str(tmp_path / "world-region-0"), "--knowledge", "region"])
    place, found = FactsWorld("region", 0, tmp_path, arms_of(name)), dict[str, str]()
    for arm in arms_of(name):
        config = load(place.settings(arm))
        assert (config.router.fixed_language is not None) == (arm in IN_HINDSIGHT)
        settings = config.model_dump_json()
        assert settings not in found, f"{arm} is trained as {found[settings]} is"
        found[settings] = arm
    assert len({place.settings_hash(arm) for arm in arms_of(name)}) == len(arms_of(name))
    elsewhere = FactsWorld("region", 1, tmp_path / "other", arms_of(name))
    assert elsewhere.settings_hash(OURS) == place.settings_hash(OURS)
    shorter = FactsWorld("region", 0, tmp_path, arms_of(name), (), ["--steps", "5"])
    policies = {load([*one.settings(OURS)]).model.path for one in (place, shorter)}
    assert len(policies) == 2, "another warm start does not replace the one that a study is using"


def test_more_rollouts_have_the_same_share_in_their_own_language(tmp_path: Path) -> None:
    place = FactsWorld("region", 0, tmp_path, arms_of("mechanism"))
    for arm, count in (("rollouts-4", 4), (OURS, 8), ("rollouts-16", 16)):
        router = load(place.settings(arm)).router
        assert (router.rollouts, router.own_language) == (count, count / 4)


def test_the_arm_of_the_paper_is_the_public_code(tmp_path: Path) -> None:
    """For which regions count in questions of Regional Knowledge alone (docs/router.md)."""
    router = load(FactsWorld("region", 0, tmp_path, arms_of("router")).settings("paper")).router
    assert router.credit == "reference" and router.region_topics == ("Regional Knowledge",)


def test_regimes_differ_in_who_knows_what(tmp_path: Path) -> None:
    questions = set()
    for regime in ("region", "one-language", "equal"):
        world.main(["--out", str(tmp_path / regime), "--knowledge", regime, "--seed", "3"])
        knowledge = read_knowledge(tmp_path / regime)
        described = json.loads((tmp_path / regime / "world.json").read_text())
        trained = knowledge.languages["train"].values()
        shares = {lang: np.mean([lang in known for known in trained]) for lang in LANGUAGES}
        assert all(trained), "some language knows every trained question"
        assert sorted(Counter(knowledge.facts.values()).values()) == [len(LANGUAGES)] * (len(trained) // len(LANGUAGES))
        questions.add((tmp_path / regime / "train.parquet").read_bytes())
        if regime == "one-language":
            assert best_language(knowledge) == described["best_language"]
            assert [lang for lang, share in shares.items() if share == 1] == [described["best_language"]]
        if regime == "equal":
            assert max(shares.values()) < 0.75 and described["affinity"] == {"region": {}, "topic": {}}
    assert len(questions) == 1, "the regimes ask the same questions"


def test_differences_are_paired_by_seed(rng: np.random.Generator) -> None:
    values = {OURS: rng.random(5), "uniform": rng.random(5), "paper": rng.random(4)}
    records = [
        {"regime": "region", "arm": arm, "seed": int(seed), "figures": {"own_heldout": some[seed], "known": None}}
        for arm, some in values.items()
        for seed in rng.permutation(len(some))  # finished in any order
    ]
    rows = {row["arm"]: row for row in compare_arms(records, "region", OURS, "own_heldout")}
    assert "difference" not in rows[OURS] and rows["paper"]["seeds"] == 4
    for arm, some in values.items():
        if arm == OURS:
            continue
        known = stats.ttest_rel(values[OURS][: len(some)], some)
        interval = known.confidence_interval(0.95)
        wanted = (np.mean(values[OURS][: len(some)] - some), interval.low, interval.high)
        assert rows[arm]["difference"] == pytest.approx(wanted) and rows[arm]["p"] == pytest.approx(known.pvalue)
    assert compare_arms(records, "region", OURS, "known") == []
    head, _, row = overview(records, "region", {"own_heldout": "", "known": ""}).splitlines()
    assert head.split("|")[2:-1] == [" ours (5) ", " uniform (5) ", " paper (4) "]
    assert [float(cell) for cell in row.split("|")[2:-1]] == [
        round(float(np.mean(values[arm])), 3) for arm in (OURS, "uniform", "paper")
    ], "a figure that no run has is no row"
    few = [("uniform", 0), ("uniform", 1)]
    records = [{**one, "figures": {"known": 0.25 if (one["arm"], one["seed"]) in few else None}} for one in records]
    row = overview(records, "region", {"known": ""}).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["", "0.250 (2)", ""], "fewer seeds than the arm has"


def test_a_study_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []
    evaluated: list[str] = []  # runs that evaluate the warm start

    def prepare(place: FactsWorld) -> None:
        world.main(["--out", str(tmp_path / "cache" / f"world-{place.regime}-{place.seed}")])

    def run_all(settings: Sequence[str], run: Path, actors: int | None) -> None:
        if len(trained) == 5:
            raise KeyboardInterrupt
        trained.append(run.name)
        evaluated.extend([run.name] if load(settings).learner.evaluate_before else [])
        leave_behind(run, 0.6 + 0.01 * len(trained))

    monkeypatch.setattr(runner, "run_all", run_all)
    monkeypatch.setattr(FactsWorld, "prepare", prepare)
    words = ["router", "--arms", "ours,uniform,best-fixed", "--regimes", "region", "--seeds", "0,1"]
    words += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    with pytest.raises(SystemExit):
        study.main(words)
    assert trained == ["ours-0", "uniform-0", "best-fixed-0", "ours-1", "uniform-1"]
    assert evaluated == ["ours-0", "ours-1"], "once for each seed"
    trained.clear()
    study.main(words)
    assert trained == ["best-fixed-1"]
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(records) == 6 and {tuple(sorted(one)) for one in records} == {
        ("actors", "arm", "code", "config", "figures", "regime", "seconds", "seed", "starts_from")
    }
    assert not (tmp_path / "out" / "region" / "ours-0" / "checkpoints").exists(), "large files are not kept"
    table = capsys.readouterr().out
    written = (tmp_path / "out" / "tables.md").read_text()
    assert "**region: own_heldout**" in written and table.endswith(written), "what is printed is also written"
    assert (tmp_path / "out" / "differences.png").stat().st_size > 1000
    study.main([*words, "--dry-run"])
    assert "0 of 6 runs are left to do" in capsys.readouterr().out
    study.main([*words, "--report", "--compare-with", "uniform"])
    assert "| arm | seeds | own_heldout | uniform less this |" in capsys.readouterr().out
    study.main([*words[:2], "ours,uniform", *words[5:], "--report", "--seeds", "1"])
    shown = capsys.readouterr().out
    assert "| ours (1) | uniform (1) |" in shown and "best-fixed" not in shown, "tables of what was chosen alone"
    with pytest.raises(SystemExit, match="--compare-with hybrid: there is no finished run of it"):
        study.main([*words, "--report", "--compare-with", "hybrid"])
    with pytest.raises(SystemExit, match="--report, --measure-again and --dry-run do different things"):
        study.main([*words, "--report", "--measure-again"])
    with pytest.raises(SystemExit, match="--compare-with unifor: there are ours, paper"):
        study.main([*words, "--report", "--compare-with", "unifor"])
    shutil.rmtree(tmp_path / "out" / "region" / "uniform-1")
    (tmp_path / "out" / "region" / "ours-1" / "ledger.jsonl").unlink()
    monkeypatch.setattr(figures, "_mean_of_metric", lambda run, tag: 0.125)  # as if a figure meant something else now
    monkeypatch.setattr(results, "code_version", lambda: "later")
    trained.clear()
    study.main([*words, "--measure-again"])
    printed, warned = capsys.readouterr()
    assert not trained and "uniform-1 holds no finished run; its record keeps the figures" in warned
    assert "ours-1 holds no finished and evaluated run" in warned and "ledger.jsonl" in warned
    assert "that trained the runs" not in printed and "that read the figures" in printed
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    for was, now in zip(records, again, strict=True):
        kept = f"{was['arm']}-{was['seed']}" in ("uniform-1", "ours-1")
        changed = {} if kept else {"reward_std": 0.125, "gradient_noise": 0.125}
        assert now == {**was, "figures": {**was["figures"], **changed}} | ({} if kept else {"measured": "later"})
    monkeypatch.setattr(figures, "_mean_of_metric", lambda run, tag: None)  # as if tensorboard/ were gone
    study.main([*words, "--measure-again"])
    assert "uniform-0 has no reward_std, gradient_noise any more; its record keeps them" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == again
    with pytest.raises(SystemExit, match=r"has ours, region, seed 0 with other settings: choose another --out"):
        study.main([*words, "--learner.lr", "1e-3"])
    with pytest.raises(SystemExit, match="seed 0 with 1 actors, and these runs would have 2: give --actors 1"):
        study.main([*words, "--seeds", "2", "--actors", "2"])
    for record in records:  # as the records of earlier versions
        del record["actors"], record["starts_from"]
    (tmp_path / "out" / "results.json").write_text(json.dumps(records))
    study.main([*words, "--dry-run"])
    assert "0 of 6 runs are left to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--arms monolingua: there are ours, paper"):
        study.main(["router", "--arms", "monolingua", "--out", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="needs --best-language"):
        study.main(["router", "--arms", "best-fixed", "--base", "--model.path x", "--out", str(tmp_path / "none")])


def test_what_sets_an_arm_apart_cannot_be_given_for_all(
    own_data: list[str], trained: list[tuple[str, Config]], tmp_path: Path
) -> None:
    """Else arms would all be trained alike, each under its own name."""
    world = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--dry-run"]
    (tmp_path / "stale.toml").write_text("[learner]\nstaleness = 2\n")
    apart = pytest.raises(
        SystemExit, match=r"learner\.staleness is what sets the arm staleness-0 apart.*leave out stal"
    )
    for given in (["--learner.staleness", "2"], ["--learner", "{staleness = 2}"], [str(tmp_path / "stale.toml")]):
        with apart:
            study.main(["mechanism", *world, *given])
        with apart:
            study.main(["mechanism", *own_data[1:], "--arms", "ours,staleness-0", *given])
    with pytest.raises(SystemExit, match=r"reward\.terms is what sets the arm similarity apart"):
        study.main(["mechanism", *world, "--arms", "similarity", "--reward.terms.default.exact", "1"])
    with pytest.raises(SystemExit, match=r"router\.fixed_language is what sets the arm best-fixed apart"):
        study.main(["router", *world, "--router.fixed_language", "en"])
    with pytest.raises(SystemExit, match=r"data\.columns is what sets the arm m-thinker apart"):
        study.main(["recipes", *world, "--recipes", "m-thinker", "--data.columns.english_question", "question"])
    study.main(["mechanism", *world, "--arms", "ours,own-0", "--learner.staleness", "2"])
    place = FactsWorld("region", 0, tmp_path, arms_of("mechanism"), ["--learner.staleness", "2"])
    assert load(place.settings("staleness-8")).learner.staleness == 8
    assert load(place.settings("own-0")).learner.staleness == 2
    assert not trained


def test_what_a_study_sets_or_leaves_out_is_refused_by_name(
    own_data: list[str], trained: list[tuple[str, Config]], tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text('[data]\ntrain = "mine.parquet"\n')
    for name in ("router", "recipes"):
        words = [name, "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--dry-run"]
        for key in ("data.train", "data.heldout", "model.path", "run.seed", "run.dir"):
            with pytest.raises(SystemExit, match=rf"{key} is set by the study: leave it out"):
                study.main([*words, f"--{key}", "1"])
        with pytest.raises(SystemExit, match=r"data\.train is set by the study: .* with --base, lrpo study router"):
            study.main([*words, str(tmp_path / "mine.toml")])
    for key, remedy in (("run.seed", "--seeds"), ("run.dir", "--out")):
        with pytest.raises(SystemExit, match=rf"{key} is set by the study: leave it out; give {remedy}"):
            study.main([*own_data, f"--{key}", "1"])
    with pytest.raises(SystemExit, match="--best-language goes with --base"):
        study.main(["router", "--out", str(tmp_path / "out"), "--best-language", "de", "--dry-run"])
    for option in (["--regimes", "equal"], ["--warm-start-steps", "5"]):
        with pytest.raises(SystemExit, match="--regimes and --warm-start-steps are of the offline worlds"):
            study.main([*own_data, *option])
    assert not trained


@pytest.fixture
def small_worlds(monkeypatch: pytest.MonkeyPatch, trained: list[tuple[str, Config]]) -> None:
    """Worlds whose policies are files of a few bytes."""

    def prepare(place: FactsWorld) -> None:
        settings = load(place.settings(OURS))
        built, policy = Path(settings.data.train).parent, Path(settings.model.path)
        if not built.exists():
            world.main(["--out", str(built), "--seed", str(place.seed)])
        if not policy.exists():
            policy.mkdir(parents=True)
            (policy / "model.safetensors").write_text("trained here")

    monkeypatch.setattr(FactsWorld, "prepare", prepare)
    set_up.digest_of_model.cache_clear()


def test_all_runs_of_a_seed_start_from_the_same_policy_in_the_same_world(
    small_worlds: None, trained: list[tuple[str, Config]], tmp_path: Path
) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    words = ["router", "--regimes", "region", "--out", str(out), "--cache", str(cache), "--seeds"]
    study.main([*words, "0", "--arms", "ours"])
    (record,) = json.loads((out / "results.json").read_text())
    assert record["starts_from"].keys() == {"policy", "world"} and record["actors"] == 1
    study.main([*words, "0", "--arms", "uniform"])
    assert [config.learner.evaluate_before for _, config in trained] == [True, False]
    weights = cache / "policy-select-region-0" / "model.safetensors"
    weights.write_text("trained elsewhere")
    set_up.digest_of_model.cache_clear()  # as in another process
    refused = r"has (ours|uniform), region, seed 0, which started from another policy than is there now\. Put back"
    with pytest.raises(SystemExit, match=refused):
        study.main([*words, "0", "--arms", "monolingual"])
    (out / "results.json").unlink()
    with pytest.raises(SystemExit, match=r"warm-start-0\.json is of another policy than these runs would start from"):
        study.main([*words, "0", "--arms", "monolingual"])
    assert len(trained) == 2
    study.main([*words, "1", "--arms", "ours"])  # another seed has a policy of its own
    table = pq.read_table(cache / "world-region-1" / "heldout.parquet")
    pq.write_table(table.slice(1), cache / "world-region-1" / "heldout.parquet")
    with pytest.raises(SystemExit, match="has ours, region, seed 1, which started from another world than"):
        study.main([*words, "1", "--arms", "monolingual"])
    kept = json.loads((out / "region" / "warm-start-1.json").read_text())
    assert kept.pop("starts_from") == json.loads((out / "results.json").read_text())[0]["starts_from"]
    (out / "region" / "warm-start-1.json").write_text(json.dumps(kept))  # as earlier versions wrote it
    records = json.loads((out / "results.json").read_text())
    del records[0]["starts_from"]
    (out / "results.json").write_text(json.dumps(records))
    study.main([*words, "1", "--arms", "monolingual"])
    assert [name for name, _ in trained] == ["ours-0", "uniform-0", "ours-1", "monolingual-1"]


def test_versions_of_the_code_are_told(
    own_data: list[str], trained: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for version, arm in (("aaaa", "ours"), ("aaaa", "uniform"), ("bbbb", "monolingual")):
        monkeypatch.setattr(runner, "code_version", lambda now=version: now)
        study.main([*own_data, "--arms", arm])
        printed, warned = capsys.readouterr()
        assert ("Versions of the code" in printed) == ("warning" in warned) == (version == "bbbb")
    assert "has runs of other versions of the code (aaaa); these are of bbbb" in warned
    study.main([*own_data, "--seeds", "0,1", "--arms", "ours"])
    capsys.readouterr()
    study.main([*own_data, "--arms", "ours,monolingual"])
    printed, warned = capsys.readouterr()
    assert not warned, "nothing is trained"
    assert "\n* data, `ours`: `aaaa` (seeds 0); `bbbb` (seeds 1)\n* data, `uniform`: `aaaa` (seeds 0)\n" in printed
    assert printed.endswith((tmp_path / "out" / "tables.md").read_text())


def test_a_run_that_has_diverged_does_not_block_the_study(
    own_data: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_all(settings: Sequence[str], run: Path, actors: int | None) -> None:
        leave_behind(run, float("nan") if run.name == "ours-0" else 0.6)
        (run / "config.json").write_text(load(settings).model_dump_json())

    monkeypatch.setattr(runner, "run_all", run_all)
    study.main([*own_data, "--arms", "ours,uniform"])
    first, second = json.loads((tmp_path / "out" / "results.json").read_text())
    assert first["figures"]["own_heldout"] is None and second["figures"]["own_heldout"] == 0.6
    assert first["figures"]["forgetting"] is not None
    assert "ours-0 has no finite own_heldout, own_train, routed_heldout" in capsys.readouterr().err


def test_quantile_tables_are_part_of_the_set_up(own_data: list[str], trained: list[Any], tmp_path: Path) -> None:
    calibration = tmp_path / "pairs.csv"
    calibration.write_text("lang_a,lang_b,count,mean,std\n")
    quantile_path(calibration).write_text("{}")
    words = [*own_data, "--arms", "ours", "--reward.calibration", str(calibration), "--reward.calibration_mode"]
    study.main([*words, "quantile"])
    quantile_path(calibration).write_text('{"knots": []}')
    with pytest.raises(SystemExit, match="has ours, data, seed 0 with other settings"):
        study.main([*words, "quantile"])
    words[words.index("--out") + 1] = str(tmp_path / "mean")
    study.main([*words, "mean"])
    quantile_path(calibration).unlink()
    study.main([*words, "mean"])  # which reads none
    assert len(trained) == 2


@pytest.fixture
def own_data(tmp_path: Path) -> list[str]:
    """Words of a study of one's own model and data, which is told by its directory OUT."""
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": f"{name}?", "answer": "1"}) + "\n")
    (tmp_path / "own.toml").write_text('[model]\npath = "some/model"\n[run]\nlanguages = ["de", "en"]\n')
    base = f"--data.train {tmp_path}/train.jsonl --data.heldout {tmp_path}/heldout.jsonl {tmp_path}/own.toml"
    return ["router", "--base", base, "--seeds", "0", "--out", str(tmp_path / "out")]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Config]]:
    """The runs that were trained, and their settings; each leaves behind what a run does."""
    runs: list[tuple[str, Config]] = []

    def run_all(settings: Sequence[str], run: Path, actors: int | None) -> None:
        config = load(settings)
        runs.append((run.name, config))
        shutil.rmtree(run, ignore_errors=True)
        leave_behind(run, 0.6)
        (run / "config.json").write_text(config.model_dump_json())

    monkeypatch.setattr(runner, "run_all", run_all)
    return runs


def test_nothing_is_trained_before_all_arms_are_known_to_run(
    own_data: list[str], trained: list[tuple[str, Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="the arm best-fixed needs --best-language"):
        study.main(own_data)  # all arms, of which ours, paper and uniform come first
    with pytest.raises(SystemExit, match=r"learner\.evaluate = false: the figures of this study are evaluations"):
        study.main([*own_data, "--arms", "ours", "--learner.evaluate", "false"])
    with pytest.raises(SystemExit, match=r"data\.heldout is empty"):
        study.main([*own_data, "--arms", "ours", "--data.heldout", ""])
    with pytest.raises(SystemExit, match="the arm similarity is for the offline world"):
        study.main(["mechanism", *own_data[1:], "--arms", "ours,similarity"])
    with pytest.raises(SystemExit):
        study.main(["router", "--arms", "ours", "--out", own_data[-1], "--learner.step", "3"])
    assert "did you mean 'learner.steps'" in capsys.readouterr().err
    for wrong in ("-1", "0,", "one"):
        with pytest.raises(SystemExit, match=f"--seeds {wrong}: whole numbers, separated by commas"):
            study.main([*own_data, "--seeds", wrong])
    assert not trained
    study.main([*own_data, "--arms", "ours,ours,best-fixed", "--seeds", "0,0,1", "--best-language", "de"])
    assert [name for name, _ in trained] == ["ours-0", "best-fixed-0", "ours-1", "best-fixed-1"], "each of them once"
    assert trained[1][1].router.fixed_language == "de"
    trained.clear()
    study.main(["mechanism", *own_data[1:-1], f"{own_data[-1]}-mechanism", "--best-language", "de"])
    assert "left out, as they are for the offline world: similarity, similarity-raw" in capsys.readouterr().out
    assert [name.removesuffix("-0") for name, _ in trained] == [
        arm for arm in arms_of("mechanism") if not arm.startswith("similarity")
    ]


def test_own_data_of_another_content_are_another_study(
    own_data: list[str], trained: list[tuple[str, Config]], tmp_path: Path
) -> None:
    words = [*own_data, "--arms", "ours,best-fixed", "--best-language", "de"]
    study.main(words)
    study.main([*words, "--data.train", f"{tmp_path}/../{tmp_path.name}/train.jsonl"])
    assert len(trained) == 2, "wherever they lie"
    refused = pytest.raises(SystemExit, match="seed 0 with other settings: choose another --out")
    with refused:
        study.main([*words[:-1], "en"])
    with refused:
        study.main([*words, "--model.path", "another/model"])
    before = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(before + before.replace("train?", "more?"))
    with refused:
        study.main(words)
    (tmp_path / "out" / "results.json").unlink()  # as the message says: the record and the runs
    shutil.rmtree(tmp_path / "out" / "data" / "ours-0")
    shutil.rmtree(tmp_path / "out" / "data" / "best-fixed-0")
    study.main(words)
    assert [config.learner.evaluate_before for _, config in trained] == [True, False, True, False], (
        "the evaluation of the warm start is kept, but not that of other questions"
    )


def test_a_run_that_was_stopped_before_its_record_is_told_from_others(
    own_data: list[str], trained: list[tuple[str, Config]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    words = [*own_data, "--arms", "ours"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(OwnData, "figures", interrupted)
        study.main(words)
    assert len(trained) == 1 and not (tmp_path / "out" / "results.json").exists()
    with pytest.raises(SystemExit, match=r"(?s)ours-0 holds a finished run of other settings.*learner\.lr"):
        study.main([*words, "--learner.lr", "3e-6"])
    study.main(words)
    assert len(trained) == 1 and len(json.loads((tmp_path / "out" / "results.json").read_text())) == 1
    (tmp_path / "out" / "results.json").unlink()
    (tmp_path / "out" / "data" / "ours-0" / "summary.json").write_text('{"evaluation_')  # killed while it wrote
    study.main(words)
    assert len(trained) == 2


def test_one_study_at_a_time_writes_to_a_directory(own_data: list[str], trained: list[Any], tmp_path: Path) -> None:
    with (
        results.sole_user(tmp_path / "out"),
        pytest.raises(SystemExit, match=r"another study is under way in .*out: wait for its end"),
    ):
        study.main([*own_data, "--arms", "ours"])
    assert not trained
    study.main([*own_data, "--arms", "ours"])
    (tmp_path / "out" / "results.json").write_text('[{"arm": "ours"}]')
    with pytest.raises(SystemExit, match=r"results\.json, record 0 \(from 0\) lacks config, figures, regime, seed"):
        study.main([*own_data, "--report"])


def test_rewards_of_different_scales_are_not_subtracted(tmp_path: Path, rng: np.random.Generator) -> None:
    """Of a file that holds the arms of two studies."""
    arms = (OURS, "split", "no-gate", "similarity-raw", "uniform")
    records = [
        {"regime": "region", "arm": arm, "seed": seed, "figures": dict.fromkeys(MEANING, float(value))}
        for seed in (0, 1)
        for arm, value in zip(arms, rng.random(len(arms)), strict=True)
    ]
    text = write_report("mechanism", records_of("mechanism", records), tmp_path)
    assert "| uniform |" not in text and "Rewards of `no-gate`, `similarity-raw` are on scales of their own" in text
    for figure in ("own_heldout", "gain_train", "forgetting", "accuracy_heldout", "both_heldout", "compliance"):
        table = text.partition(f"**region: {figure}**")[2].partition("**region")[0]
        lines = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("|")]
        rows = {cells[1]: cells[4] for cells in lines}
        assert rows["split"], "its reward is that of the others"
        told = figure in ("accuracy_heldout", "both_heldout")
        assert bool(rows["no-gate"]) == bool(rows["similarity-raw"]) == told, figure
    text = write_report("mechanism", records_of("mechanism", records), tmp_path, "no-gate")
    for figure, told in (("own_heldout", False), ("accuracy_heldout", True)):
        table = text.partition(f"**region: {figure}**")[2].partition("**region")[0]
        cells = [line.split("|")[4].strip() for line in table.splitlines() if line.startswith("| split |")]
        assert bool(cells[0]) == told, "rewards of another scale, whichever arm they are compared with"
    router = write_report("router", records_of("router", records), tmp_path)
    assert "scales of their own" not in router and "| uniform |" in router and "split" not in router


def test_the_picture_names_each_arm_in_every_regime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study was stopped when one arm had not been run in the second regime."""
    from matplotlib import pyplot

    drawn: list[Any] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    values = {OURS: 0.0, "paper": -1.0, "uniform": -2.0}
    records = [
        {"regime": regime, "arm": arm, "seed": seed, "figures": {"own_heldout": value + 0.01 * seed * value}}
        for regime in ("region", "equal")
        for arm, value in values.items()
        for seed in (0, 1)
        if (regime, arm) != ("equal", "paper")
    ]
    draw(records, OURS, "own_heldout", tmp_path / "drawn.png")
    names = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    for panel, arms in zip(drawn[0].axes, (("paper", "uniform"), ("uniform",)), strict=True):
        dots = [line for line in panel.lines if line.get_marker() == "o"]
        assert {names[int(line.get_ydata()[0])]: round(float(line.get_xdata()[0])) for line in dots} == {
            arm: round(-values[arm]) for arm in arms
        }


def test_the_version_is_that_of_this_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(results, "_ROOT", tmp_path / "site-packages")
    assert results.code_version() == "unknown", "the repository is somebody else's"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert results.code_version() == "unknown", "and there is no git"


def test_one_file_is_of_one_set_up_whichever_arms_are_asked_for(
    own_data: list[str], trained: list[tuple[str, Config]], tmp_path: Path
) -> None:
    study.main([*own_data, "--arms", "ours,best-fixed", "--best-language", "de"])
    study.main([*own_data, "--arms", "uniform"])
    assert len(trained) == 3, "whether best-fixed is as it was cannot be told without --best-language"
    with pytest.raises(SystemExit, match=r"has (ours|uniform), data, seed 0 with other settings"):
        study.main([*own_data, "--arms", "monolingual", "--learner.lr", "3e-6"])
    with pytest.raises(SystemExit, match=r"has best-fixed, data, seed 0 with other settings"):
        study.main([*own_data, "--arms", "monolingual", "--best-language", "en"])
    assert len(trained) == 3


def test_a_model_is_told_by_what_its_directory_holds(own_data: list[str], trained: list[Any], tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "model.safetensors").write_text("small")
    words = [*own_data, "--arms", "ours", "--model.path"]
    study.main([*words, str(tmp_path / "small")])
    shutil.copytree(tmp_path / "small", tmp_path / "copied")
    study.main([*words, str(tmp_path / "copied")])
    assert len(trained) == 1
    (tmp_path / "small" / "model.safetensors").write_text("large")
    set_up.digest_of_model.cache_clear()  # as in another process
    with pytest.raises(SystemExit, match="has ours, data, seed 0 with other settings"):
        study.main([*words, str(tmp_path / "small")])


@pytest.mark.parametrize("setting", ["reward.function", "learner.step_reward"])
def test_the_code_of_a_reward_is_part_of_the_set_up(setting: str, tmp_path: Path) -> None:
    hashes = set()
    for text, name in (("a = 1", "a"), ("a = 2", "a"), ("a = 2", "b")):
        (tmp_path / "mine.py").write_text(text)
        settings = [f"--{setting}", f"{tmp_path}/mine.py:{name}"]
        settings += ["--reward.parts", "{a = 1.0}"] if setting == "reward.function" else []
        hashes.add(set_up.settings_hash(settings, []))
    assert len(hashes) == 3


def test_the_records_of_the_published_studies_are_of_these_settings(tmp_path: Path) -> None:
    """Otherwise nobody could go on with them: whoever changes the set-up has to run them again."""
    docs = Path(__file__).parents[2] / "docs" / "study"
    facts, changed = (FactsWorld("region", 0, tmp_path, arms_of(name)) for name in ("router", "mechanism"))
    sums = ReasoningWorld(0, tmp_path)
    for name, place in (("", facts), ("mechanism", changed), ("recipes", sums)):
        file = docs / name / "results.json"
        for record in json.loads(file.read_text()):
            assert place.settings_hash(record["arm"]) == record["config"], record["arm"]


# A user's own file, with their own model and data.
OWN = """
[run]
languages = ["en", "de"]

[data]
train = "{directory}/train.jsonl"
heldout = "{directory}/heldout.jsonl"

[model]
path = "{policy}"
dtype = "float32"

[router]
rollouts = 4
own_language = 1

[sampling]
max_new_tokens = 4

[reward]
addresses = ["ipc://{directory}/r"]
gated = false
terms.default.exact = 1.0

[actor]
start_timeout_s = 400

[learner]
address = "ipc://{directory}/q"
groups_per_step = 2
param_dtype = "float32"
"""


@pytest.mark.e2e
@pytest.mark.timeout(1800)  # two runs
def test_a_small_study_of_own_data_with_real_processes(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "tests" / "support" / "light"))
    for name, numbers in (("train", range(4)), ("heldout", range(4, 6))):
        rows = [
            {"question": f"{language}: what is {n} and one?", "answer": str(n + 1), "language": language}
            for n in numbers
            for language in ("en", "de")
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.toml").write_text(OWN.format(directory=tmp_path, policy=tiny_policy))
    words = ["router", "--base", str(tmp_path / "mine.toml"), "--arms", "ours,best-fixed", "--best-language", "de"]
    words += ["--seeds", "0", "--steps", "1", "--actors", "1", "--out", str(tmp_path / "out")]
    study.main([*words, "--dry-run"])
    assert "2 of 2 runs are left to do; each of them needs:" in (dry := capsys.readouterr().out) and "GB" in dry
    with forked():
        study.main(words)
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(one["regime"], one["arm"]) for one in records] == [("data", "ours"), ("data", "best-fixed")]
    for one in records:
        assert 0 <= one["figures"]["own_heldout"] <= 1 and one["figures"]["tokens"] > 0
        assert one["figures"]["known"] is None, "nobody knows who knows what in somebody's own data"
    ledger = tmp_path / "out" / "data" / "best-fixed-0" / "ledger.jsonl"
    drawn = [language for line in ledger.read_text().splitlines() for language in json.loads(line)["languages"]]
    assert len(drawn) == 2 * 4 and drawn.count("de") >= 2 * 3
    assert "**data: own_heldout**" in capsys.readouterr().out
    study.main([*words, "--dry-run"])
    assert "0 of 2 runs are left to do" in capsys.readouterr().out


@pytest.mark.e2e
@pytest.mark.slow  # a warm start and four runs
@pytest.mark.timeout(3000)
def test_a_small_study_with_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "tests" / "support" / "light"))
    words = [
        "router",
        "--arms",
        "ours,policy",
        "--regimes",
        "one-language",
        "--seeds",
        "0,1",
        "--warm-start-steps",
        "5",
    ]
    words += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--learner.steps", "2"]
    study.main([*words, "--learner.evaluate_questions", "4", "--learner.groups_per_step", "2"])
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(one["arm"], one["seed"]) for one in records] == [("ours", 0), ("policy", 0), ("ours", 1), ("policy", 1)]
    assert all(0 <= one["figures"]["compliance"] <= 1 for one in records)
