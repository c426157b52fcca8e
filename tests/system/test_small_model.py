"""A pretrained language model, small enough for a CPU, learns by LoRA in a run whose every process is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from learner.report.trackers.tensorboard_tracker import LINE_RUNS
from tests.support.small_model import small_model

ROOT = Path(__file__).parents[2]
STEPS = 20
_PATIENCE_S = 7200  # on a busy machine
OUT = "LRPO_TEST_OUT"  # environment variable: a directory for the figure and the run

# Own questions: to copy a word, asked in the language of the word.
WORDS = {
    "en": "house river bread window garden letter summer bridge horse silver table friend winter mountain candle "
    "forest",
    "es": "casa puente ventana camino libro verano caballo plata amigo bosque pueblo espejo mercado carta cielo",
    "fr": "maison pont jardin livre cheval argent ami chemin miroir village lettre ciel fromage hiver bougie montagne",
}  # fmt: skip
ASKS = {
    "en": "Copy this word and write nothing else: {}",
    "es": "Copia esta palabra y no escribas nada más: {}",
    "fr": "Copie ce mot et n'écris rien d'autre : {}",
}

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(_PATIENCE_S)]


def write_questions(path: Path) -> None:
    rows = [
        {"question": ASKS[language].format(word), "answer": word, "language": language}
        for language, words in WORDS.items()
        for word in words.split()
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


CONFIG = f"""
[run]
languages = ["en", "es", "fr"]

[data]
max_prompt_tokens = 100

[model]
dtype = "float32"
prompt_style = "system"

[lora]
rank = 16

[router]
rollouts = 6

[sampling]
temperature = 0.7
max_new_tokens = 10

[actor]
groups_in_flight = 4
start_timeout_s = 1200
request_timeout_s = 1200
engine_args = {{max_running_requests = 32}}

[reward]
function = "{ROOT}/tests/support/copy_reward.py:score"
parts = {{copied = 0.5, alone = 0.5}}

[learner]
steps = {STEPS}
groups_per_step = 4
lr = 5e-4
kl = 0.0
param_dtype = "float32"
microbatch_tokens = 1024
evaluate = false
checkpoint_every = {STEPS}
group_timeout_s = 1800
lease_timeout_s = 300

[sync]
timeout_s = 600
"""


def settings(model: Path, directory: Path) -> list[str]:
    (directory / "run.toml").write_text(CONFIG, encoding="utf-8")
    paths = {
        "run.dir": f"{directory}/run", "data.train": f"{directory}/words.jsonl", "model.path": f"{model}",
        "learner.address": f"ipc://{directory}/queue", "reward.addresses": f'["ipc://{directory}/reward"]',
    }  # fmt: skip
    return [str(directory / "run.toml"), *(word for key, value in paths.items() for word in (f"--{key}", value))]


def read(run: Path, tag: str) -> NDArray[np.float64]:
    """The values of a metric, a row [step, value] for each point."""
    for line in LINE_RUNS:
        directory = run / "tensorboard" / line
        if directory.is_dir():
            events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
            events.Reload()
            if tag in events.Tags()["scalars"]:
                return np.array([(one.step, one.value) for one in events.Scalars(tag)])
    raise AssertionError(f"the run has no {tag}")


def plot(run: Path, file: Path) -> None:
    """Draws reward and mismatch by step."""
    mpl.use("svg")
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(6.4, 4.8), layout="constrained")
    above.plot(*read(run, "learning/reward").T, marker="o", markersize=3, color="tab:blue")
    above.set_ylabel("mean reward")
    below.plot(*read(run, "health/mismatch").T, marker="o", markersize=3, label="answers, of any age")
    below.plot(*read(run, "health/probe_error").T, marker="o", markersize=3, label="probe, newest adapter")
    below.set_yscale("log")
    below.set_ylabel("learner against engine\n(nats per token)")
    below.set_xlabel("step")
    below.xaxis.get_major_locator().set_params(integer=True)
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(file)
    pyplot.close(figure)


def test_a_pretrained_model_learns_to_copy_words(tmp_path: Path) -> None:
    out = Path(os.environ.get(OUT, tmp_path))
    out.mkdir(parents=True, exist_ok=True)
    write_questions(out / "words.jsonl")
    command = [sys.executable, "-m", "scripts.ops.train", *settings(small_model(tmp_path), out), "--actors", "1"]
    with (out / "output.log").open("wb") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=_PATIENCE_S, check=False)
    assert done.returncode == 0, (out / "output.log").read_text(errors="replace")[-5000:]
    run = out / "run"
    plot(run, out / "steps.svg")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["questions_lost"], summary["questions_duplicated"]) == (STEPS, 0, 0)
    assert summary["staleness_max"] <= summary["staleness_bound"]
    reward, probes = read(run, "learning/reward")[:, 1], read(run, "health/probe_error")[:, 1]
    print("reward", reward.round(3).tolist(), "probe", probes.tolist())
    print("mismatch", read(run, "health/mismatch")[:, 1].tolist())
    assert len(reward) == STEPS
    assert reward[-5:].mean() > reward[:5].mean() + 0.1
    assert probes.max() < 1e-4
    assert (run / "adapter" / "adapter_model.safetensors").exists() and (run / "model").is_dir()
