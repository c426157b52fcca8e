"""Keeps the metrics of a run with Weights & Biases, online or offline as its own settings say."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.config import Config


class WandbTracker:
    """A run of the project ``WANDB_PROJECT`` (default ``lrpo``), which continues when training is resumed.

    Args:
        run_id: names the run in the project.

    Raises:
        Exception: whatever ``wandb.init`` raises.
    """

    def __init__(self, config: Config, run_id: str) -> None:
        import wandb

        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lrpo"),
            name=config.run.dir.name,
            id=run_id,
            resume="allow",
            dir=str(config.run.dir),
            config=config.model_dump(mode="json"),
        )
        # Its own steps may only rise, but an evaluation reports on a step that has been reported.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def histogram(self, step: int, name: str, values: NDArray[np.int32]) -> None:
        counted = np.histogram(values, bins=np.arange(values.min(), values.max() + 2) - 0.5)
        self._run.log({"step": step, name: self._wandb.Histogram(np_histogram=counted)})

    def text(self, step: int, name: str, markdown: str) -> None:
        self._run.log({"step": step, name: self._wandb.Html(f"<pre>{html.escape(markdown)}</pre>")})

    def image(self, step: int, name: str, png: bytes) -> None:
        self._run.log({"step": step, name: self._wandb.Image(Image.open(io.BytesIO(png)))})

    def close(self) -> None:
        self._run.finish()
