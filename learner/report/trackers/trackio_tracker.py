"""Keeps the metrics of a run with Trackio, on this machine or in a Space as its own settings say."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.config import Config


class TrackioTracker:
    """A run of the project ``TRACKIO_PROJECT`` (default ``lrpo``), which continues when training is resumed.

    Args:
        run_id: tells runs apart whose directories have the same name.

    Raises:
        Exception: whatever ``trackio.init`` raises.
    """

    def __init__(self, config: Config, run_id: str) -> None:
        import trackio

        self._trackio: Any = trackio
        self._run: Any = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "lrpo"),
            name=f"{config.run.dir.name}-{run_id}",
            resume="allow",
            config=config.model_dump(mode="json"),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def histogram(self, step: int, name: str, values: NDArray[np.int32]) -> None:
        self._run.log({name: self._trackio.Histogram(values)}, step=step)

    def text(self, step: int, name: str, markdown: str) -> None:
        self._run.log({name: self._trackio.Markdown(markdown)}, step=step)

    def image(self, step: int, name: str, png: bytes) -> None:
        self._run.log({name: self._trackio.Image(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))}, step=step)

    def close(self) -> None:
        self._run.finish()
