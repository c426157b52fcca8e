"""The tables of runs in which the policy chose: read back from their files, compared with numbers worked out apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from tensorboard.compat.proto.summary_pb2 import Summary

from common.config import load
from learner.report.trackers.events import EventWriter
from scripts.study import choices

STEPS, FIRST = 40, 14  # the first stage ends after 0.34 of the steps
LOST = 7  # a step without a point, as where the disk was full
TAGS = ["choice_entropy", "header_entropy", "well_formed", "compliance", "accuracy_kept"]
TAGS = [*(f"selection/{name}" for name in TAGS), "learning/reward"]
METRICS, WHEN = ("accuracy_kept", "compliance"), ("before", "after")
FLAGS = ["--learner.steps", str(STEPS), "--learner.stages", "[{until = 0.34}, {}]", "--router.mode", "policy"]


def finished(
    directory: Path, rng: np.random.Generator, chose: bool = True
) -> tuple[Path, NDArray[np.float64], dict[str, float]]:
    """A run with random metrics; its entropies, and its shares by name of evaluation, set, setting and metric."""
    directory.mkdir()
    values = rng.random(STEPS, np.float32).astype(np.float64)  # what the file holds: a table may round the rest apart
    events = EventWriter(directory / "tensorboard", 0)
    for step, value in enumerate(values, 1):
        if step != LOST:
            points = [Summary.Value(tag=tag, simple_value=value) for tag in (TAGS if chose else TAGS[-1:])]
            events.write(step, Summary(value=points))
    events.close()
    shares = {
        f"{when} {asked} {setting} {metric}": float(rng.random())
        for when in ("before", "after")
        for asked in ("train", "heldout")
        for setting in ("free", "routed", "seen", "unseen")
        for metric in ("accuracy_kept", "compliance")
    }
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for name, share in shares.items():
        when, asked, setting, metric = name.split()
        told = summary.setdefault(f"evaluation_{when}", {}).setdefault(f"{asked}_settings", {})
        told[f"{setting}_{metric}"] = share
    (directory / "summary.json").write_text(json.dumps(summary))
    style = ["--model.prompt_style", "select"]
    (directory / "config.json").write_text(load([*FLAGS, *style]).model_dump_json())
    return directory, values, shares


def mean(values: NDArray[np.float64], at: int) -> float:
    kept: list[float] = [
        value for step, value in enumerate(values.tolist(), 1) if at < step <= at + 10 and step != LOST
    ]
    return sum(kept) / len(kept)


def text(values: list[float]) -> str:
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return f"{np.mean(values):.3f} ± {(high - low) / 2:.3f}"


def test_the_tables_are_those_of_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rng: np.random.Generator
) -> None:
    policy = [finished(tmp_path / f"policy-{seed}", rng) for seed in range(3)]
    english = finished(tmp_path / "english-0", rng, chose=False)
    png = tmp_path / "choices.png"
    dirs = ",".join(str(run) for run, _, _ in policy)
    choices.main([f"policy={dirs}", f"english={english[0]}", "--png", str(png)])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = {row[0]: row[1:] for row in rows}

    for title, at in (("1, steps 1–10", 0), ("1, steps 5–14", 4), ("2, steps 15–24", FIRST), ("2, steps 31–40", 30)):
        assert cells[f"stage {title}"][0] == text([mean(values, at) for _, values, _ in policy])
    changes = [mean(values, 30) - mean(values, FIRST) for _, values, _ in policy]
    assert cells["stage 2, change"][0] == text(changes)
    tables = {metric: [row for row in rows if row[0] == "policy, unseen"][n] for n, metric in enumerate(METRICS)}
    for metric, row in tables.items():
        for cell, asked in zip(row[1:], ("train", "heldout"), strict=True):
            both = [text([shares[f"{when} {asked} unseen {metric}"] for _, _, shares in policy]) for when in WHEN]
            assert cell == " → ".join(both)
    shares = english[2]
    one = f"{shares['before train free compliance']:.3f} → {shares['after train free compliance']:.3f}"
    assert cells["english, free"][0] == one, "one seed has no interval"
    assert png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="holds no finished run"):
        choices.main([f"policy={tmp_path}"])
