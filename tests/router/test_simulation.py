"""The router's claims, in worlds small enough for a test, and its command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.config import RouterConfig as Settings
from router import Context, Observation, Router, mutual_information
from router import __main__ as command
from router.simulation import compare as simulate
from router.simulation.worlds import make_world


def test_the_default_regrets_less_than_the_reference_and_than_fixed_strategies() -> None:
    found = simulate.compare(["region"], ["posterior", "reference", "uniform", "monolingual"], 4, 64, 48)["region"]
    regret = {name: np.array([outcome.regret for outcome in outcomes]) for name, outcomes in found.items()}
    assert regret["posterior"].mean() < 0.8 * regret["reference"].mean()
    assert (regret["posterior"] < np.minimum(regret["uniform"], regret["monolingual"])).all()


def test_equal_languages_stay_even() -> None:
    outcomes = simulate.compare(["equal"], ["posterior", "greedy"], 2, 120, 48)["equal"]
    assert min(outcome.evenness for outcome in outcomes["posterior"]) > 0.85
    assert max(outcome.evenness for outcome in outcomes["greedy"]) < 0.6  # the measure does see a collapse


def test_a_world_is_the_same_for_all_strategies_and_regret_is_counted_right() -> None:
    one, again = (simulate.play("topic", "monolingual", 7, 5, 30) for _ in range(2))
    assert one == again
    uniform = simulate.play("one-language", "uniform", 3, 5, 400)
    assert 0.085 < uniform.regret < 0.115  # of utilities -0.1 ... 0.1 at compliance 0.97, uniform loses 0.097


def test_late_rewards_arrive_after_up_to_eight_steps_and_none_for_a_lost_language(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[Observation]] = []
    observe = Router.observe

    def listening(self: Router, step: list[Observation]) -> None:
        seen.append(list(step))
        observe(self, step)

    monkeypatch.setattr(Router, "observe", listening)
    simulate.play("late", "posterior", 0, 40, 60)
    sizes = [len(step) for step in seen]
    assert sizes[0] < 20 and sum(sizes) < 40 * 60 and np.mean(sizes[10:]) == pytest.approx(60, rel=0.1)
    rollouts = [pair for step in seen for one in step for pair in zip(one.rewards, one.compliant, strict=True)]
    assert all(reward == 0 for reward, kept in rollouts if not kept) and not all(kept for _, kept in rollouts)


def test_unknown_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown world 'nowhere'; there are region"):
        make_world("nowhere", np.random.default_rng(0))


def test_rows_hold_the_goals() -> None:
    def results(regret: float) -> list[simulate.Outcome]:
        return [simulate.Outcome(regret, 1.0)] * 3

    found = {"region": {"posterior": results(0.09), "reference": results(0.1), "uniform": results(0.2)}}
    (posterior, reference, _) = simulate.rows(found)
    assert posterior["ratio"] == pytest.approx(0.9) and posterior["ok"] is False and reference["ok"] is None
    found["region"]["posterior"] = results(0.07)
    assert simulate.rows(found)[0]["ok"] is True
    found["region"]["uniform"] = results(0.06)
    assert simulate.rows(found)[0]["ok"] is False


def test_intervals_hold_the_mean_of_repeated_samples(rng: np.random.Generator) -> None:
    hits = 0
    for _ in range(100):
        mean, half = simulate.interval(rng.normal(3, 2, 40).tolist())
        hits += abs(mean - 3) <= half
    assert hits >= 78  # of 40 values it covers 0.94, so that fewer come once in 4e7 trials


def test_mutual_information() -> None:
    random = np.random.default_rng(0)
    left = random.choice(["a", "b"], 4000).tolist()
    assert mutual_information([(one, one.upper()) for one in left])[0] == pytest.approx(1, abs=0.01)
    unrelated = random.choice(["x", "y", "z"], 4000).tolist()
    found, chance = mutual_information(list(zip(left, unrelated, strict=True)))
    assert found < 0.005 and chance < 0.002
    joint = [("a", "x")] * 3 + [("a", "y")] + [("b", "y")] * 4
    p = {("a", "x"): 3 / 8, ("a", "y"): 1 / 8, ("b", "y"): 4 / 8}
    sides = {"a": 0.5, "b": 0.5, "x": 3 / 8, "y": 5 / 8}
    expected = sum(value * np.log2(value / (sides[one] * sides[other])) for (one, other), value in p.items())
    assert mutual_information(joint)[0] == pytest.approx(expected)
    assert mutual_information([]) == (0.0, 0.0)


def test_show_reads_logs_and_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    router = Router(Settings(interval=1), ["de", "en", "zh"], seed=0, steps=9)
    china = Observation(Context("de", ("Chat",), ("China",)), ("zh", "zh", "en"), (0.9, 0.8, 0.1), (True,) * 3)
    for _ in range(5):
        router.observe([china] * 10)
    (tmp_path / "router.jsonl").write_text('{"step": 1, "probs": {}}\n' + json.dumps({"step": 5, **router.log()}))
    checkpoint = tmp_path / "checkpoints" / "step-000005"
    checkpoint.mkdir(parents=True)
    (checkpoint / "run.json").write_text(json.dumps({"step": 5, "router": router.state()}))
    command.main(["show", str(tmp_path), "--png", str(tmp_path / "router.png")])
    logged = capsys.readouterr().out
    command.main(["show", str(checkpoint)])
    assert capsys.readouterr().out == logged
    (row,) = [line for line in logged.splitlines() if line.startswith("Chat | China")]
    shares = router.distribution("", "Chat", "China").tolist()
    assert row.split()[3:] == [f"{100 * share:.0f}{'*' * (share == max(shares))}" for share in shares]
    assert (tmp_path / "router.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "router.jsonl").write_text("nonsense")
    for path, message in ((tmp_path, "neither a router's log nor a checkpoint"), (tmp_path / "no", "cannot read")):
        with pytest.raises(SystemExit, match="1"):
            command.main(["show", str(path)])
        assert message in capsys.readouterr().err


def test_simulate_ends_with_one_line_of_json() -> None:
    arguments = ["--worlds", "topic", "--strategies", "posterior", "reference", "--seeds", "2", "--steps", "10"]
    done = subprocess.run(
        [sys.executable, "-m", "router", "simulate", *arguments, "--json"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["name"] == "router-simulation" and len(found["rows"]) == 2
    assert set(found["rows"][0]) == {"metric", "value", "unit", "baseline", "ratio", "goal", "ok"}
