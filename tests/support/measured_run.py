"""Short real runs with light engines of set speeds, for what predicts or tunes them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.groups import LANGUAGES
from tests.support.processes import Popen

ROOT = Path(__file__).parents[2]


def measured_run(
    directory: Path,
    policy: Path,
    engines: Mapping[str, tuple[float, float]],
    *flags: str,
    timeout: float = 400,
    until: Path | None = None,
    lost: bool = False,
    ends: int = 0,
) -> Path:
    """A run to its end; its directory. One that was interrupted goes on.

    Args:
        engines: by actor: seconds a token of a batch takes, and, on top, of a token of the whole engine.
        until: the learner is interrupted when this file is there.
        lost: at that time all actors end instead, and the learner has to end by itself with an error.
        ends: the exit code with which the learner has to end by itself.
    """
    directory.mkdir(parents=True, exist_ok=True)
    question: dict[str, Any] = {"ability": "A"}
    question["reward_model"] = {"ground_truth": "Berlin.", "style": "rule"}
    question["extra_info"] = {"language": "de", "topic": "A", "region": None, "index": 0}
    rows = [{"prompt": [{"role": "user", "content": f"{n}: Wie heißt die Hauptstadt?"}], **question} for n in range(64)]
    pq.write_table(pa.Table.from_pylist(rows), directory / "train.parquet")
    settings = ["--run.dir", str(directory / "run"), "--data.train", str(directory / "train.parquet")]
    settings += ["--model.path", str(policy), "--model.dtype", "float32", "--learner.param_dtype", "float32"]
    settings += ["--run.languages", str(list(LANGUAGES)), "--learner.address", f"ipc://{directory}/queue"]
    settings += ["--reward.addresses", f'["ipc://{directory}/reward"]', "--learner.evaluate", "false"]
    settings += ["--learner.microbatch_tokens", "2048", "--learner.checkpoint_every", "1000", "--router.rollouts", "4"]
    processes = {"learner": (["learner.launch"], (0.0, 0.0)), "reward": (["reward"], (0.0, 0.0))}
    processes |= {name: (["actor", "--actor.name", name], speed) for name, speed in engines.items()}
    running: dict[str, Popen] = {}
    try:
        for name, ((module, *own), (batch_s, engine_s)) in processes.items():
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT / "tests" / "support" / "light"),
                "OMP_NUM_THREADS": "1",
            }
            environment |= {"LIGHT_TOKEN_S": str(batch_s), "LRPO_LIGHT_TOKEN_S": str(engine_s)}
            command = [sys.executable, "-m", module, *settings, *own, *flags]
            with (directory / f"{name}.log").open("wb") as log:
                running[name] = Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        deadline = time.monotonic() + timeout
        while running["learner"].poll() is None and time.monotonic() < deadline:
            if until is not None and until.exists():
                for name in engines if lost else ("learner",):
                    running[name].terminate()
                ended = running["learner"].wait(200)
                assert not lost or ended == 1, (directory / "learner.log").read_text()[-3000:]
                return directory / "run"
            time.sleep(0.02 if until else 0.2)
        told = {name: (directory / f"{name}.log").read_text(errors="replace")[-1500:] for name in processes}
        assert running["learner"].poll() == ends, "\n".join(f"== {name}\n{text}" for name, text in told.items())
    finally:
        for process in running.values():
            with suppress(ProcessLookupError):
                process.terminate()
        for process in running.values():
            process.wait(20)
    return directory / "run"
