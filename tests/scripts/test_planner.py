"""The planner: its simulation against closed forms and real runs, rates from a run, and its errors."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Config, ConfigError, load
from learner.work.scheduler import staleness_bound
from scripts.pool.measured_run import read_run
from scripts.pool.planner import engine_tokens_s, forecast, make_scenario, recommend
from scripts.pool.pool_file import Pool, read_pool
from scripts.pool.simulation import Scenario, SimulatedEngine
from tests.support.measured_run import measured_run

ROOT = Path(__file__).parents[2]
SOME_ANSWERS = [[int(n) for n in np.random.default_rng(seed).lognormal(5, 0.6, 8) + 1] for seed in range(200)]


def scenario(engines: Sequence[SimulatedEngine], **changes: Any) -> Scenario:
    base = Scenario(
        engines, SOME_ANSWERS, groups_per_step=8, staleness=1, window=4, train_token_s=1e-4, publish_s=0.5, pause_s=0.2,
        rest_s=0.1, score_s=0.05, score_busy_s=0.001, steps=12,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


@settings(max_examples=30, deadline=None)
@given(
    token_s=st.floats(0.001, 0.1), group_s=st.floats(0, 0.05), groups=st.integers(1, 12), tokens=st.integers(1, 500),
    train=st.floats(1e-6, 1e-2),
)  # fmt: skip
def test_one_engine_in_step_with_its_learner_is_a_sum(
    token_s: float, group_s: float, groups: int, tokens: int, train: float
) -> None:
    """S = 0 and a slot for each group: generate all at once, score one after the other, train, publish, in turn."""
    one = scenario(
        [SimulatedEngine("a", token_s, group_s, groups)], answers=[[tokens] * 3], groups_per_step=groups, staleness=0
    )
    found = forecast(one, train_token_s=train, rest_s=0.0, score_busy_s=0.01, skip=6)
    # The pause is at the end of the publication, and the next leases follow it.
    step = tokens * (token_s + group_s * groups) + (groups - 1) * 0.01 + 0.05 + 3 * groups * tokens * train + 0.5
    assert found.step_s == pytest.approx(step, rel=1e-6)
    assert found.lag_mean == found.lag_max == 0
    assert found.busy["learner train"] == pytest.approx(3 * groups * tokens * train / step, rel=1e-6)


def test_a_slow_learner_sets_the_pace_and_work_waits_for_it() -> None:
    found = forecast(
        scenario([SimulatedEngine("a", 0.001, 0.0001, 32)], train_token_s=0.01, staleness=2, steps=20, seed=1)
    )
    assert found.busy["learner wait"] < 0.01
    assert found.busy["learner train"] == pytest.approx(1 - 0.6 / found.step_s)
    assert found.busy["learner train"] == pytest.approx(found.tokens_per_second * 0.01)
    assert 1.5 < found.lag_mean <= 2.5, "as stale as admission lets it be"


@settings(max_examples=40, deadline=None)
@given(
    speeds=st.lists(st.floats(0.001, 0.1), min_size=1, max_size=6), groups=st.integers(1, 12),
    staleness=st.integers(0, 3), window=st.integers(1, 16), seed=st.integers(0, 999),
)  # fmt: skip
def test_lags_obey_the_bound_and_shares_of_time_are_shares(
    speeds: list[float], groups: int, staleness: int, window: int, seed: int
) -> None:
    engines = [SimulatedEngine(f"kind-{n % 2}", speed, speed / 8, 6) for n, speed in enumerate(speeds)]
    found = forecast(scenario(engines, groups_per_step=groups, staleness=staleness, window=window, seed=seed))
    assert found.lag_max <= staleness_bound(groups, staleness, window)
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in found.busy.values())
    learner = sum(share for name, share in found.busy.items() if name.startswith("learner"))
    assert learner == pytest.approx(1)


@pytest.mark.parametrize("most", [64, pytest.param(256, marks=pytest.mark.slow)])
def test_throughput_grows_with_the_actors_until_the_learner_is_full(most: int) -> None:
    """Up to 64 or 256 actors of four kinds, with a step as large as the pool."""

    def mixed(count: int) -> Scenario:
        engines = [SimulatedEngine(f"k{n % 4}", 0.02 * (1 + n % 4 / 2), 0.001 * (1 + n % 4), 16) for n in range(count)]
        return scenario(engines, groups_per_step=32 * count, window=32 * count, train_token_s=1e-9, steps=16)

    for pool in map(mixed, (1, 4, 16, most)):
        never_waiting = sum(engine_tokens_s(pool, engine) for engine in pool.engines)
        assert forecast(pool).tokens_per_second >= 0.95 * never_waiting, len(pool.engines)
    full = forecast(mixed(16), train_token_s=2 / forecast(mixed(16)).tokens_per_second)
    assert full.busy["learner train"] > 0.9


def test_rates_of_a_run_are_found_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rates = {"fast": (0.02, 0.003), "slow": (0.05, 0.0), "full": (0.0, 0.01)}
    lines = []
    for name, (token_s, group_s) in rates.items():
        for _ in range(60):
            lengths, groups = rng.integers(1, 200, 4).tolist(), float(rng.uniform(2, 12))
            seconds = max(lengths) * (token_s + group_s * groups)
            timing = {"generate_s": seconds, "groups": groups, "score_s": 0.1}
            lines.append({"actor": name, "lengths": lengths, "timing": timing})
    tokens = sum(sum(line["lengths"]) for line in lines)
    spent = {"learner": {"train": 2.0, "publish": 0.5, "wait": 3.0}, "reward": {"busy": 0.9}}
    spent["run"] = {"loop": 6.0, "pause": 0.2}
    summary = {"step_seconds": spent, "steps": 10, "config": Config().model_dump(mode="json"), "staleness_mean": 0.7}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "ledger.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"outcome": "failed"}])))
    found = read_run(tmp_path)
    for name, (token_s, group_s) in rates.items():
        assert found.engines[name] == pytest.approx((token_s, group_s), abs=1e-9)
    assert found.train_token_s == pytest.approx(20.0 / tokens)
    wanted = {"publish_s": 0.5, "pause_s": 0.2, "rest_s": 0.5, "score_s": 0.1, "score_busy_s": 0.05}
    assert found.work == pytest.approx(wanted)
    pool = tmp_path / "pool.toml"
    pool.write_text('gpus.x = {like = "fast", speed = 2}\n[[nodes]]\nrole = "actor"\ngpu = "x"\nhosts = ["a", "b"]\n')
    made = make_scenario(read_pool(pool), found, load([], found.config), pool)
    assert len(made.engines) == 2 and made.train_token_s == found.train_token_s
    assert dataclasses.astuple(made.engines[0])[1:] == pytest.approx((0.01, 0.0015, 16))


@pytest.mark.parametrize(("hosts", "share"), [(1, 6), (2, 3), (4, 2)])
def test_a_sync_takes_as_long_as_the_busiest_learner_node(hosts: int, share: int, tmp_path: Path) -> None:
    """Six engines: each byte goes to the node's share of them, and its shard of it to the other nodes."""
    learner = {"role": "learner", "gpu": "x", "partition": "p", "count": hosts, "engines": 8, "network_gb_s": 25.0}
    work = {"answer_tokens": 100, "rest_s": 0.0, "score_s": 0.1, "score_busy_s": 0.1, "weights_gb": 15.0}
    actors = {"role": "actor", "gpu": "x", "hosts": ["b", "c", "d"], "engines": 2}
    gpus = {"x": {"token_ms": 1.0, "group_ms": 0.1, "train_tokens_s": 1000}}
    pool = Pool.model_validate({"gpus": gpus, "nodes": [learner, actors], "work": work})
    made = make_scenario(pool, None, load([]), tmp_path)
    assert made.publish_s == made.pause_s == pytest.approx((share + (hosts - 1) / hosts) * 15 / 25)
    own = pool.model_copy(update={"work": pool.work.model_copy(update={"publish_s": 7.0})})
    assert make_scenario(own, None, load([]), tmp_path).publish_s == 7.0, "a figure of your own holds"
    del learner["network_gb_s"]
    with pytest.raises(ConfigError, match=r"work\.publish_s is missing"):
        make_scenario(
            Pool.model_validate({"gpus": gpus, "nodes": [learner, actors], "work": work}), None, load([]), tmp_path
        )


def test_the_table_of_syncs_is_that_of_the_docs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.pool.sync"], capture_output=True, text=True, check=True, timeout=400, cwd=ROOT
    )
    printed = [line.split() for line in done.stdout.splitlines()[2:]]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs/cluster.md").read_text().splitlines()
    ]
    assert len(printed) == 3 and all(row in rows for row in printed)
    assert float(printed[2][3]) < float(printed[0][1]) * 10, "64 engines for each of 8 nodes, beside 8 for one"


def test_the_command_recommends_and_draws(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.pool.plan", "--pool", "configs/pools/example.toml"]
    flags = ["--learner.groups_per_step", "64", "--json", "--plot", str(tmp_path / "plot.png")]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True, timeout=400, cwd=ROOT)
    told = json.loads(done.stdout)
    assert set(told["forecast"]["busy"]) >= {"h200", "l40s", "reward", "learner train", "learner wait"}
    assert told["recommended"]["staleness"] in range(5)
    assert 5_000 < (tmp_path / "plot.png").stat().st_size < 150_000


def test_the_recommendation_is_the_least_that_nearly_reaches_the_best() -> None:
    slow = scenario([SimulatedEngine("a", 0.05, 0.01, 8)], train_token_s=1e-7, publish_s=0.01, pause_s=0.0, rest_s=0.0)
    advice = recommend(slow)
    best = max(forecast(slow, staleness=s).tokens_per_second for s in range(5))
    assert forecast(slow, staleness=advice["staleness"]).tokens_per_second >= 0.95 * best
    assert advice["staleness"] <= 2, "a learner that takes no time has nothing to hide"
    fill = advice["actors_to_fill_the_learner"]["a"]
    assert fill == pytest.approx(advice["learner_tokens_s"] / engine_tokens_s(slow, slow.engines[0]))


GOOD = 'gpus.a = {token_ms = 1, group_ms = 1, train_tokens_s = 9}\n[[nodes]]\nrole = "actor"\ngpu = "a"\n'
LEARNER = '\n[[nodes]]\nrole = "learner"\ngpu = "a"\nhosts = ["y"]\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("gpus = 3", r"pool.toml is no pool file: gpus = 3"),
        ("gpus = [", r"pool.toml is not valid TOML"),
        ("gpus.a = {}", r"nodes is missing$"),
        (GOOD + 'hosts = ["x"]\negines = 2', r"unknown key 'nodes.0.egines'; did you mean 'nodes.engines'"),
        (GOOD + 'hosts = ["x"]\nengines = -2', r"nodes.0.engines = -2"),
        (GOOD, r"nodes.0: nodes of role 'actor' need either hosts, or partition and count"),
        (GOOD + 'hosts = ["x"]\npartition = "p"\ncount = 1', r"need either hosts, or partition and count"),
        (GOOD.replace('"actor"', '"learner"') + 'hosts = ["x"]', r"no \[\[nodes\]\] has role = 'actor'"),
        (GOOD.replace('gpu = "a"', 'gpu = "b"') + 'hosts = ["x"]', r"nodes.gpu = 'b' is no key of \[gpus\]: a"),
        (GOOD.replace("token_ms = 1", "token_ms = inf") + 'hosts = ["x"]', r"gpus.a.token_ms = inf"),
        (GOOD + 'hosts = ["x"]' + LEARNER, r"work.answer_tokens is missing, and there is no --run"),
        (GOOD + 'hosts = ["x"]', r"no \[\[nodes\]\] has role = 'learner'"),
    ],
)
def test_a_broken_pool_is_one_clear_line(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        make_scenario(read_pool(path), None, Config(), path)


def test_missing_files_and_runs_are_clear(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read configuration .*nowhere.toml"):
        read_pool(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"no finished run: cannot read .*summary.json"):
        read_run(tmp_path)
    (tmp_path / "summary.json").write_text('{"steps": 3}')
    (tmp_path / "ledger.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"does not tell 'step_seconds'"):
        read_run(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_real_runs_are_predicted_from_one_other(tiny_policy: Path, tmp_path: Path) -> None:
    """Step time and mean staleness within 15%, of other S, numbers and speeds of actors than in the run it knows."""
    fast, slow = (0.02, 0.002), (0.05, 0.005)
    flags = ["--learner.steps", "24", "--learner.groups_per_step", "8", "--learner.window", "4"]
    flags += ["--sampling.max_new_tokens", "64", "--sampling.temperature", "3.0", "--actor.groups_in_flight", "8"]
    runs = {
        "known": ({"fast": fast, "slow": slow}, ["--learner.staleness", "1"]),
        "synchronous": ({"fast": fast}, ["--learner.staleness", "0"]),
        "mixed": ({"fast": fast, "slow": slow, "slow2": slow}, ["--learner.staleness", "2"]),
        "narrow": ({"slow": slow, "slow2": slow}, ["--learner.staleness", "1", "--actor.groups_in_flight", "4"]),
    }
    known = None
    for name, (engines, own) in runs.items():
        measured = read_run(measured_run(tmp_path / name, tiny_policy, engines, *flags, *own))
        known = known or measured
        kinds = {kind: {"like": kind} for kind in known.engines}
        nodes = [{"role": "actor", "gpu": actor.rstrip("2"), "hosts": [actor]} for actor in engines]
        pool = Pool.model_validate({"gpus": kinds, "nodes": nodes})
        config = Config.model_validate(measured.config)
        found = forecast(make_scenario(pool, known, config, tmp_path), steps=config.learner.steps, skip=0)
        told = f"{name}: step {measured.step_s:.2f} s, predicted {found.step_s:.2f}; "
        print(told + f"staleness {measured.lag_mean:.2f}, predicted {found.lag_mean:.2f}")
        assert found.step_s == pytest.approx(measured.step_s, rel=0.15), name
        assert found.lag_mean == pytest.approx(measured.lag_mean, rel=0.15), name
