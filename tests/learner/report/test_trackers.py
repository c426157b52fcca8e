"""The trackers beside TensorBoard: they get the same names, their failures cost metrics and never the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.process import FatalError
from learner.report.report import Report
from learner.report.trackers import optional
from learner.report.trackers.optional import OptionalTracker
from learner.report.trackers.pages import BAND_FLOOR
from learner.report.trackers.start import check_trackers
from learner.report.trackers.tensorboard_tracker import LINE_RUNS
from scripts.bench.support.reports import configuration, learned, random_step
from tests.support.groups import LANGUAGES

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0
WANDB = """
import json, os
def call(name, *what):
    with open(os.environ["CALLS"], "a") as log:
        log.write(json.dumps([name, *what], default=lambda one: type(one).__name__) + "\\n")
class Histogram:
    def __init__(self, np_histogram): assert len(np_histogram[1]) == len(np_histogram[0]) + 1
class Html:
    def __init__(self, text): assert text.startswith("<pre>") and "<|" not in text
class Image:
    def __init__(self, picture): assert picture.size[0] > 100
class Run:
    def define_metric(self, name, step_metric): call("define_metric", name, step_metric)
    def log(self, values):
        step = values.pop("step")
        call("log", step, values)
        if step == 2 and os.environ.get("BROKEN"):
            raise ConnectionError("no route to host")
    def finish(self): call("finish")
def init(project, name, id, resume, dir, config):
    call("init", project, name, id, resume, config["learner"]["steps"])
    if os.environ.get("REFUSED"):
        raise RuntimeError("api_key not configured")
    return Run()
"""
TRACKIO = """
from wandb import call
class Histogram:
    def __init__(self, values): assert values.dtype.kind == "i"
class Markdown:
    def __init__(self, text): assert "**Question" in text
class Image:
    def __init__(self, pixels): assert pixels.shape[2] == 3
class Run:
    def log(self, values, step): call("trackio", step, values)
    def finish(self): call("finish")
def init(project, name, resume, config):
    call("init", project, name, resume, config["learner"]["steps"])
    return Run()
"""


def invented_run(run_dir: Path, *trackers: str, begin: int = 0) -> None:
    """Reports three steps, with a router."""
    rng = np.random.default_rng()
    report = Report(configuration(run_dir, 3, "--run.trackers", json.dumps(trackers)), 2, begin)
    report.begin({})
    for number in range(begin + 1, 4):
        report.step(**random_step(rng, number))
        report.router(number, learned(LANGUAGES, 1, 1))
    report.close()


def invented_runs(directory: Path) -> None:
    """Runs in a process of its own, with stand-ins for the packages."""
    os.environ["CALLS"] = str(directory / "whole.jsonl")
    invented_run(directory / "run", "tensorboard", "wandb", "trackio")
    os.environ["CALLS"] = str(directory / "resumed.jsonl")
    invented_run(directory / "run", "wandb", "trackio", begin=2)
    os.environ["CALLS"] = str(directory / "anew.jsonl")
    os.environ["BROKEN"] = "1"
    invented_run(directory / "run", "wandb")
    os.environ["REFUSED"] = "1"
    with pytest.raises(FatalError, match="'wandb', which did not start: api_key not configured; run `wandb login`"):
        invented_run(directory / "run", "wandb")


def calls_in(path: Path) -> list[list[object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(calls: list[list[object]], kind: str) -> set[str]:
    return {name for call in calls if call[0] == kind and isinstance(call[2], dict) for name in call[2]}


def test_every_tracker_gets_the_same_names_and_what_fails_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text(WANDB)
    (tmp_path / "trackio.py").write_text(TRACKIO)
    program = "import sys, pathlib; from tests.learner.report.test_trackers import invented_runs as run; "
    program += "run(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls, resumed, anew = (calls_in(tmp_path / f"{name}.jsonl") for name in ("whole", "resumed", "anew"))
    kept = set[str]()
    for sub in LINE_RUNS:
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / sub))
        events.Reload()
        tags = events.Tags()
        texts = [name.removesuffix("/text_summary") for name in tags["tensors"] if name.endswith("/text_summary")]
        kept |= {*tags["scalars"], *tags["images"], *tags["histograms"], *texts}
    kept.remove(BAND_FLOOR)
    assert names(calls, "log") == names(calls, "trackio") == kept
    assert ["define_metric", "*", "step"] in calls and calls[-1] == calls[-2] == ["finish"]
    begun = [[call for call in some if call[0] == "init"] for some in (calls, resumed, anew)]
    assert [call[1] for call in begun[0]] == ["lrpo", "lrpo"] and begun[0] == begun[1], "a resumed run is the same run"
    assert begun[2][0][3] != begun[0][0][3], "a run that begins anew in the directory is another one"
    assert done.stderr.count("no route to host; the run continues") == 1, done.stderr
    assert {call[1] for call in anew if call[0] == "log"} == {1, 2, 3}, "the steps after the failure were tried"


def test_a_tracker_that_never_ends_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(optional, "CLOSE_S", 0.2, raising=False)
    ends, tracker = threading.Event(), Mock()
    tracker.close.side_effect = lambda: ends.wait(PATIENCE_S)
    began = time.monotonic()
    OptionalTracker("wandb", tracker).close()
    ends.set()
    assert time.monotonic() - began < PATIENCE_S / 2
    assert "wandb did not keep what it had not sent yet within 0 s, and is not waited for" in caplog.text
    tracker.close.side_effect = ConnectionError("no route to host")
    OptionalTracker("wandb", tracker).close()
    assert "wandb did not keep what it had not sent yet, and may miss more: no route to host" in caplog.text


def test_what_a_library_does_at_the_end_is_not_waited_for_either() -> None:
    """As that of a tracker's package, which goes on sending."""
    program = (
        "import atexit, threading; from learner import __main__ as learner; learner._EXIT_S = 0.2\n"
        "learner.main = lambda run: None; atexit.register(threading.Event().wait)\n"
        "atexit.register(print, 'written at the end'); learner.run_to_the_end()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == "written at the end\n"


def test_a_tracker_that_is_not_installed_is_an_error_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_trackers(configuration(tmp_path, 1))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FatalError, match="'trackio', which is not installed: pip install trackio"):
        check_trackers(configuration(tmp_path, 1, "--run.trackers", '["trackio"]'))
