"""What summary.json says follows from the run's state, the audit of its ledger and what was measured."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from common.config import load
from learner.report.summary import Measured, routed_pairs, summarise
from learner.state import RunState
from learner.work.ledger import Audit
from router import Context, Observation, Router
from tests.support.groups import question

MEASURED = Measured(
    bottleneck="actors",
    seconds={"learner": {"train": 3.0, "wait": 1.0}},
    step_seconds={"learner": {"train": 0.75}},
    wall_seconds=9.0,
)


def test_a_summary_has_the_means_the_outcomes_and_the_evaluations(tmp_path: Path) -> None:
    config = load(["--run.dir", str(tmp_path), "--router.interval", "1"])
    router = Router(config.router, ["de", "en"], 0, 64)
    router.observe([Observation(Context.of("de", ["Chat"], []), ("en", "de") * 20, (0.0, 1.0) * 20, (True,) * 40)])
    state = RunState.begin(config=config, router=router, questions_digest="", lock=threading.Condition())
    state.step = 4
    state.totals.add_tokens(np.array([0, 1, 2, 3], np.int32))
    state.totals.loop_s, state.totals.pause_s = 2.0, 1.0
    before = {"train": {"own": 0.25, "compliance": 0.5}}
    after = {"train": {"own": 0.75, "compliance": 1.0, "own_by_language": {"de": 0.75}}, "heldout": {"own": 0.5}}
    pairs = [("Asia", "en"), ("Europe", "de"), ("Europe", "en"), ("Europe", "de")]
    found = summarise(config, state, Audit({"trained": 7, "masked": 1}, 2, 3), pairs, before, after, 5, MEASURED)

    assert (found["steps"], found["questions_lost"], found["questions_duplicated"]) == (4, 2, 3)
    outcomes = [found[f"groups_{name}"] for name in ("trained", "masked", "failed", "skipped", "zero_variance")]
    assert outcomes == [7, 1, 0, 0, 0]
    assert (found["staleness_max"], found["staleness_mean"], found["staleness_bound"]) == (3, 1.5, 5)
    assert (found["reward_before"], found["reward_after"], found["heldout_after"]) == (0.25, 0.75, 0.5)
    assert found["heldout_before"] is None, "held-out questions were not asked before"
    assert (found["compliance_before"], found["compliance_after"]) == (0.5, 1.0)
    assert found["tokens_per_second"] == 2.0
    assert found["time_shares"] == {"learner": {"train": 0.75, "wait": 0.25}}
    assert found["step_seconds"] == {"learner": {"train": 0.75}, "run": {"loop": 0.5, "pause": 0.25}}
    assert found["routed_by_region"] == {"Asia": {"en": 1}, "Europe": {"de": 2, "en": 1}}
    assert found["router_top_by_topic"] == {"Chat": "de"}
    assert found["config"]["run"]["dir"] == str(tmp_path)
    state.totals.staleness_bound = 9
    found = summarise(config, state, Audit({}, 0, 0), pairs, before, after, 5, MEASURED)
    assert found["staleness_bound"] == 9, "some steps had another bound before a resume"


def test_only_answers_that_were_routed_count_for_their_regions() -> None:
    config = load(["--router.own_language", "1", "--router.rollouts", "4"])
    router = Router(config.router, ["de", "en"], 0, 64)
    questions = [question(0), question(1).model_copy(update={"regions": ["Asia", "Europe"]})]
    routed = [(0, ["en", "de", "de", "de"]), (1, ["en", "de", "", "en"])]
    expected = [("Asia", "de"), ("Asia", "en"), ("Europe", "de"), ("Europe", "en")]
    assert routed_pairs(routed, questions, router) == expected, "neither the fixed first answer nor one in no language"
