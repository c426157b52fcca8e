"""The page that ``scripts.data.calibrate`` writes: tables and plots in plain HTML and SVG, which loads nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from reward.calibration.files import KINDS, Pair, display
from scripts.data.calibration_modes import ModeResult, interval_text
from scripts.study.statistics import Floats, Interval, mean_interval

_COLOURS = {"equivalent": "#2a7", "mismatched": "#999", "hard": "#c63"}
_STYLE = "body{font:14px sans-serif;max-width:60em;margin:2em auto}table{border-collapse:collapse}"
_STYLE += "td,th{padding:.2em .6em;text-align:right;border:1px solid #ddd}svg{margin:.3em}rect{stroke:#ddd}"


def report(
    pairs: Mapping[Pair, tuple[Floats, Mapping[str, Floats]]],
    modes: Mapping[str, ModeResult],
    scanty: Sequence[Pair],
    least: int,
    seed: int,
) -> str:
    """The page, as HTML.

    Args:
        pairs: of each pair of languages, the similarities of equivalent texts, and the quantiles by kind.
        modes: the result of each calibration mode.
        scanty: pairs with fewer than ``least`` equivalent texts, or none.
    """
    generator = np.random.default_rng(seed)
    means = {pair: mean_interval(values, generator) for pair, (values, _) in pairs.items()}
    names = ", ".join(f"{display(a)}–{display(b)}" for a, b in scanty) or "none"
    head = "<tr><th>mode<th>spread of equivalent texts<th>over separation<th>separation<th>AUC equivalent : hard"
    head += "<th>spread of hard texts"
    body = "".join(
        f"<tr><td>{mode}<td>{interval_text(one.spread)}<td>{one.relative_spread:.3f}<td>{one.separation:.3f}<td>{interval_text(one.auc)}"
        f"<td>{interval_text(one.wrong_spread)}"
        for mode, one in modes.items()
    )
    return "\n".join(
        [
            f"<!doctype html><meta charset=utf-8><title>Calibration</title><style>{_STYLE}</style><h1>Calibration</h1>",
            f"<p>{len(pairs)} pairs of languages. Fewer than {least} equivalent texts: {escape(names)}.",
            "<h2>Modes, on texts they were not measured on</h2><p>Pairs of different languages, but for the spread "
            "of hard texts, which has those of a language with itself too; 95% bootstrap intervals.",
            f"<table>{head}{body}</table>",
            "<h2>Mean similarity of equivalent texts</h2>" + _heat_map(means),
            "<p>With 95% bootstrap intervals, in order:" + _intervals(means),
            "<h2>Distributions</h2><p>Share of text pairs up to a similarity from -0.2 to 1: "
            + ", ".join(f'<span style="color:{colour}">{kind}</span>' for kind, colour in _COLOURS.items()) + ".<p>",
            *(_distribution(pair, tables) for pair, (_, tables) in sorted(pairs.items())),
        ]
    )  # fmt: skip


def _heat_map(means: Mapping[Pair, Interval]) -> str:
    languages = sorted({language for pair in means for language in pair})
    values = [value for (a, b), (value, _, _) in means.items() if a != b] or [0.0]
    low, high = min(values), max(values)
    rows = ["<tr><th>" + "".join(f"<th>{language}" for language in languages)]
    for a in languages:
        cells = []
        for b in languages:
            value = means.get((min(a, b), max(a, b)), (math.nan,))[0]
            share = 0.0 if math.isnan(value) else min(1.0, (value - low) / max(high - low, 1e-9))
            cells.append(f'<td style="background:hsl(150 60% {95 - 40 * share:.0f}%)">{value:.2f}')
        rows.append(f"<tr><th>{a}" + "".join(cells))
    return f"<table>{''.join(rows)}</table>"


def _intervals(means: Mapping[Pair, Interval]) -> str:
    ordered = sorted(means.items(), key=lambda item: item[1][0])
    least = min((low for _, (_, low, _) in ordered), default=0.0)

    def x(value: float) -> float:
        return 80 + 500 * (value - least) / max(1 - least, 1e-9)

    marks = [
        f'<text x="2" y="{14 * row + 13}">{"-".join(pair)} {value:.2f}</text>'
        f'<path d="M{x(low):.1f} {14 * row + 9}H{x(high):.1f}" stroke="#555"/>'
        f'<circle cx="{x(value):.1f}" cy="{14 * row + 9}" r="3" fill="#2a7"/>'
        for row, (pair, (value, low, high)) in enumerate(ordered)
    ]
    return f'<br><svg width="600" height="{14 * len(ordered) + 8}" font-size="11">{"".join(marks)}</svg>'


def _distribution(pair: Pair, tables: Mapping[str, Floats]) -> str:
    lines = []
    for kind in (kind for kind in KINDS if kind in tables):
        across = (tables[kind] + 0.2) / 1.2 * 136 + 2
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, np.linspace(88, 16, len(across)), strict=True))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{_COLOURS[kind]}"/>')
    title = f'<text x="2" y="12">{"-".join(pair)}</text><rect x="2" y="16" width="136" height="72" fill="none"/>'
    return f'<svg width="140" height="90" font-size="11">{title}{"".join(lines)}</svg>'
