"""The heat maps of a run: languages by steps, actors by steps, and staleness by steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from learner.report.heat_map import draw_heat_map
from learner.report.step_history import StepHistory

_COLUMNS = 280  # at most, of a heat map; each is then two pixels wide
Scale: TypeAlias = Literal["unit", "open", "bound"]  # from 0 to 1, to the largest value, to the staleness bound

STALENESS_MAP = "staleness_by_step/tokens"


@dataclass(frozen=True)
class _Kind:
    title: str
    scale: Scale


_MAPS = {
    "languages_by_step/reward": _Kind("Mean reward, by language and step", "unit"),
    "languages_by_step/quality": _Kind("Mean quality, by language and step", "unit"),
    "languages_by_step/compliance": _Kind("Share of answers in the requested language, by step", "unit"),
    "languages_by_step/lc_thought": _Kind("Share of thoughts in the requested language, by step", "unit"),
    "languages_by_step/lc_answer": _Kind("Share of final answers in the requested language, by step", "unit"),
    "languages_by_step/accuracy": _Kind("Share of right answers, by language and step", "unit"),
    "languages_by_step/lc_accuracy": _Kind("Share of answers that are right, and all in their language", "unit"),
    "languages_by_step/share": _Kind("Share of the answers, by language and step", "open"),
    "languages_by_step/length": _Kind("Mean response length in tokens, by language and step", "open"),
    "languages_by_step/truncated": _Kind("Share of truncated answers, by language and step", "unit"),
    "languages_by_step/staleness": _Kind("Mean staleness in policy updates, by language and step", "bound"),
    "languages_by_step/mismatch": _Kind("Engine against learner log-probability (nats per token)", "open"),
    "languages_by_step/outside_bounds": _Kind("Share of tokens with an importance weight out of bounds", "open"),
    "languages_by_step/entropy": _Kind("Entropy of the policy (nats per token), by language and step", "open"),
    "actors_by_step/actor_tokens": _Kind("Response tokens per second from each actor, by step", "open"),
    "actors_by_step/kv_use": _Kind("Share of the KV cache in use, by engine and step", "unit"),
    STALENESS_MAP: _Kind("Share of tokens at each staleness, in policy updates; red: the bound", "unit"),
}


class HeatMaps:
    """Collects what the heat maps of a run show, and draws them.

    After a resume they begin at the step that the run continues from.

    Args:
        bound: the staleness bound, in policy updates.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._histories = {name: StepHistory(_COLUMNS) for name in _MAPS}

    def add(
        self,
        step: int,
        lags: NDArray[np.int32],
        by_language: Mapping[str, Mapping[str, float]],
        by_actor: Mapping[str, Mapping[str, float]],
    ) -> None:
        """Adds the values of a step.

        Args:
            lags: of each token, in policy updates: [tokens] int32.
            by_language: metric -> language -> value.
            by_actor: metric -> actor -> value.
        """
        shares = np.bincount(lags, minlength=self._bound + 1) / len(lags)
        self._histories[STALENESS_MAP].add(step, {f"{lag:4d}": float(share) for lag, share in enumerate(shares)})
        for page, tables in (("languages_by_step", by_language), ("actors_by_step", by_actor)):
            for metric, values in tables.items():
                self._histories[f"{page}/{metric}"].add(step, values)

    def draw(self) -> Iterator[tuple[str, bytes]]:
        """The name of each heat map that has values, and the picture as PNG."""
        for name, kind in _MAPS.items():
            history = self._histories[name]
            rows, first_steps, values = history.table()
            if not rows:
                continue
            is_staleness = name == STALENESS_MAP
            if is_staleness:
                rows, values = rows[::-1], values[::-1]
            yield (
                name,
                draw_heat_map(
                    kind.title,
                    rows,
                    first_steps,
                    history.last_step,
                    values,
                    self._scale(kind.scale, values),
                    bound_above=is_staleness,
                ),
            )

    def _scale(self, kind: Scale, values: NDArray[np.float64]) -> tuple[float, float]:
        """The values of the first and the last colour; they include 0, and 1 or the bound where there is one."""
        top = {"unit": 1.0, "open": 0.0, "bound": float(self._bound)}[kind]
        return min(0.0, float(np.nanmin(values))), max(top, float(np.nanmax(values)))
