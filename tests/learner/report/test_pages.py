"""The pages in a browser, as a person sees them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from learner.report.report import Report
from scripts.bench.support.reports import configuration, learned, random_step
from scripts.ops import screenshots
from tests.support.groups import LANGUAGES

ARABIC = "عاصمة فرنسا هي باريس"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_each_page_shows_its_series(tmp_path: Path, rng: np.random.Generator) -> None:
    report = Report(configuration(tmp_path, 10), 2, 0)
    report.begin({})
    for number in range(1, 11):
        step = random_step(rng, number)
        for n, group in enumerate(step["batch"]):
            rollouts = [rollout.model_copy(update={"text": ARABIC}) for rollout in group.rollouts]
            step["batch"][n] = group.model_copy(update={"rollouts": rollouts})
        report.step(**step)
        report.router(number, learned(LANGUAGES, 2, 2))
    report.close()
    pages = screenshots.photograph(tmp_path, 1400)
    wanted = {
        "Learning": ["learning/reward (.)", "learning/compliance (line-2)", "learning/clip_share", "zero (axis)"],
        "Health": ["health/staleness_max (.)", "health/staleness_p99 (line-3)", "health/probe_error", "leases_retried"],
        "Flow": ["flow/demand/learner (line-3)", "flow/actors/wait_work", "flow/pool_tokens/l40s"],
        "Languages": ["languages_by_step/reward", "languages_by_step/entropy"],
        "Staleness": ["staleness_by_step/tokens"],
        "Router": ["router/probabilities"],
        "Text": [ARABIC, "The capital of France is Paris.", "General Knowledge"],
    }
    assert list(pages) == list(wanted)
    for name, words in wanted.items():
        assert not [word for word in words if word not in pages[name].words], pages[name].words
        assert "lacks data" not in pages[name].words and "do not match" not in pages[name].words, "an error of a chart"
        assert pages[name].picture.startswith(b"\x89PNG") and len(pages[name].picture) > 10_000
