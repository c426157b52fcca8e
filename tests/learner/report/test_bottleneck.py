"""The bottleneck, compared with independent arithmetic on pipelines whose bottleneck is known."""

from __future__ import annotations

import math
import re
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import Config, load
from learner.report.bottleneck import Bottleneck, Gauges, find_bottleneck
from learner.report.machine import Machine, Spare
from learner.report.timing import TimeByState

CONFIG = load(["--learner.groups_per_step", "8"])
NOTHING: Gauges = {}
RATES = {"h200-0": 300.0, "l40s-0": 100.0}
cost = st.floats(0.01, 10)


def pipeline(
    actors: float,
    reward: float,
    learner: float,
    sync: float,
    config: Config = CONFIG,
    gauges: Gauges = NOTHING,
    spare: Spare | None = None,
) -> tuple[Bottleneck, float]:
    """The bottleneck of a steady pipeline whose overlapping stages take these seconds, and the time of a step."""
    step = max(actors, reward, learner + sync)
    late = step - actors if reward == step else 0.0  # what actors wait for scores, where these are the slowest
    spent: TimeByState = {
        "learner": {"train": learner, "publish": sync, "wait": step - learner - sync, "evaluate": 7.0, "start": 3.0},
        "reward": {"busy": reward, "wait": step - reward},
        "actor h200-0": {"generate": actors, "wait_reward": late, "wait_work": step - actors - late},
        "actor l40s-0": {"generate": 3 * actors, "wait_reward": 3 * late, "wait_work": 3 * (step - actors - late)},
    }
    return find_bottleneck(spent, config, RATES, gauges, spare), step


@given(cost, cost, cost, cost)
def test_the_slowest_stage_is_the_bottleneck_and_no_remedy_promises_more_than_it_can(
    actors: float, reward: float, learner: float, sync: float
) -> None:
    found, step = pipeline(actors, reward, learner, sync)
    own = {"actors": actors, "reward": reward, "learner": learner + sync, "sync": learner + sync}
    assert own[found.stage] >= 0.9 * step
    if found.stage in ("learner", "sync") and sync != pytest.approx(learner):
        assert (found.stage == "sync") == (sync > learner)
    others = [own[stage] for stage in ("actors", "reward", "learner") if own[stage] != own[found.stage]]
    assert -1e-9 <= found.gain <= 1 - max([*others, step / 2]) / step + 1e-9
    assert 0 <= found.cost <= 1 and found.remedy


@given(st.floats(1.2, 10), st.floats(0.05, 1))
def test_the_actors_it_asks_for_make_the_pool_as_fast_as_the_learner(actors: float, learner: float) -> None:
    found, step = pipeline(actors, 0.01, learner, 0.0)
    assert found.stage == "actors" and found.cost == pytest.approx(1 - learner / step)
    advice = re.fullmatch(r"add ([\d.]+) actors like h200-0", found.remedy)
    assert advice
    faster = (400 + 300 * float(advice[1])) / 400
    wanted = min(actors / learner, 2.0)
    assert faster == pytest.approx(wanted, abs=0.05)
    after = max(actors / wanted, learner)
    assert found.gain == pytest.approx(1 - after / step)


@given(st.floats(1.2, 10), st.floats(0.05, 1), st.integers(1, 8))
def test_the_ranks_it_asks_for_bring_the_learner_to_the_actors(learner: float, actors: float, ranks: int) -> None:
    found, step = pipeline(actors, 0.01, learner, 0.0, load(["--learner.ranks", str(ranks)]))
    assert found.stage == "learner" and found.cost == pytest.approx(1 - actors / step)
    advice = re.fullmatch(r"add ([\d.]+) learner ranks \(learner.ranks\)", found.remedy)
    assert advice
    after = max(learner / 2, actors)
    assert learner * ranks / (ranks + float(advice[1])) == pytest.approx(after, rel=0.05)
    assert found.gain == pytest.approx(1 - after / step)


def test_slow_scores_ask_for_replicas_and_a_long_window_for_a_shorter_one() -> None:
    found, _ = pipeline(1.0, 4.0, 1.0, 0.0)
    assert (found.stage, found.remedy) == ("reward", "add 1.0 reward processes (reward.addresses)")
    assert found.gain == pytest.approx(0.5) and found.cost == pytest.approx(0.75)
    spent = {
        "learner": {"train": 1.0, "wait": 3.0},
        "reward": {"busy": 0.4, "wait": 3.6},
        "actor a": {"generate": 1.0, "wait_reward": 3.0},
    }
    late = find_bottleneck(spent, CONFIG, {}, {})
    assert late.stage == "reward" and late.remedy.startswith("lower reward.batch_window_ms")


def test_a_slow_sync_asks_for_fewer_updates() -> None:
    found, step = pipeline(0.5, 0.1, 1.0, 3.0)
    assert found.stage == "sync" and found.cost == pytest.approx(3 / step)
    assert found.remedy.startswith("learner.groups_per_step = 16") and found.gain == pytest.approx(1.5 / step)


def test_stages_that_wait_for_one_another_ask_for_staleness() -> None:
    spent = {
        "learner": {"train": 4.0, "wait": 6.0},
        "actor a": {"generate": 6.0, "wait_work": 4.0},
        "reward": {"busy": 0.5, "wait": 9.5},
    }
    found = find_bottleneck(spent, load(["--learner.staleness", "0"]), {}, {})
    assert found.stage == "actors"
    assert found.remedy == "learner.staleness = 1 would hide 50% of the 40% that all wait"
    assert found.gain == pytest.approx(0.2)


def test_requests_that_queue_in_roomy_engines_ask_for_more_at_a_time() -> None:
    gauges = {"l40s-0": {"usage": 0.3, "waiting": 12.0}, "h200-0": {"usage": 0.2, "waiting": 0.0}}
    found, _ = pipeline(4.0, 0.1, 1.0, 0.0, CONFIG, gauges)
    assert found.remedy.startswith("raise max_running_requests: 12 requests wait")
    full = {"l40s-0": {"usage": 0.9, "waiting": 12.0}}
    assert pipeline(4.0, 0.1, 1.0, 0.0, CONFIG, full)[0].remedy.startswith("add ")


def test_a_balanced_run_needs_nothing() -> None:
    found, _ = pipeline(1.0, 0.2, 1.0, 0.0)
    assert found.remedy == "balanced: nothing to change" and found.gain == 0


@pytest.mark.parametrize("spent", [{}, {"learner": {}}, {"learner": {"train": 0.0}, "actor a": {"generate": 0.0}}])
def test_nothing_measured_yet_is_no_error(spent: TimeByState) -> None:
    assert find_bottleneck(spent, CONFIG, {}, {}).cost >= 0


@given(cost, cost, cost, st.floats(0, 8), st.sampled_from(["GPU", "core"]), st.integers(1, 4))
def test_it_never_proposes_a_process_that_the_machine_has_no_device_for(
    actors: float, reward: float, learner: float, free: float, device: Literal["GPU", "core"], tp: int
) -> None:
    config = load(["--actor.engine_args.tp", str(tp)])
    free = math.floor(free) if device == "GPU" else free
    found, _ = pipeline(actors, reward, learner, 0.0, config, spare=Spare(device, 8, free))
    without, _ = pipeline(actors, reward, learner, 0.0, config)
    added = re.match(r"add ([\d.]+) (actors|reward|learner)", found.remedy)
    if added:
        assert math.ceil(float(added[1])) * (tp if added[2] == "actors" else 1) <= free
        assert 0 < found.gain <= without.gain + 1e-9
    if found.remedy.startswith("no room"):
        assert found.gain == 0 and f"8 {device}s, {free:.1f} free" in str(found) and "saves" not in str(found)
        assert without.remedy.startswith("add "), "a balanced run needs nothing"
    if free >= 8 * tp:
        assert found == without


def test_two_busy_cores_have_no_room_for_a_rank() -> None:
    found, _ = pipeline(1.0, 0.1, 4.0, 0.0, spare=Spare("core", 2, 0.1))
    assert str(found) == "learner cost 75%: no room for more of them on this machine (2 cores, 0.1 free)"


def test_only_a_run_on_one_machine_is_limited_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.report.machine.psutil.cpu_percent", lambda: 75.0)
    monkeypatch.setattr("learner.report.machine.visible_gpus", list)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert Machine(load([])).spare(2) == Spare("core", 4, 1.0)
    assert Machine(load(["--learner.address", "tcp://10.0.0.7:5700"])).spare(2) is None
    monkeypatch.setattr("learner.report.machine.visible_gpus", lambda: ["0", "1", "2", "3", "4"])
    machine = Machine(load(["--learner.ranks", "2"]))
    total = machine.spare(0)
    assert total is not None and total.device == "GPU" and total.total >= 5
    assert [machine.spare(used) for used in (2, 100)] == [
        Spare("GPU", total.total, total.total - 4),
        Spare("GPU", total.total, 0),
    ]
