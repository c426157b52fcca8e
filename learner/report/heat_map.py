"""Draws tables of rows over steps as heat maps.

It draws with Pillow, which takes milliseconds, because a run does this often.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Literal

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_STOPS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # viridis, from low to high
# The picture has one byte for each pixel, the number of a colour: it is packed much faster than three. Letters blend
# with the white around them, so that the numbers from black to white are shades of grey.
_COLOURS, _RED, _NO_VALUE, _BLACK, _WHITE = 190, 190, 191, 192, 255

_WIDTH, _MARGIN, _TITLE, _AXIS = 560, 8, 44, 26  # pixels: of the cells, around them, above and below them
_TALL, _LOW = 22, 13  # pixels of a row, where there are few and where there are many
_MANY = 24  # rows
_LEGEND = 120  # pixels of the scale of colours
_TICKS = 6  # at most, on the axis of steps
_NEWEST = 0.1  # share of the columns that the number at the end of a row is the mean of


def draw_heat_map(
    title: str,
    rows: Sequence[str],
    first_steps: Sequence[int],
    last_step: int,
    values: NDArray[np.float64],
    scale: tuple[float, float],
    *,
    bound_above: bool = False,
) -> bytes:
    """A heat map with the names of its rows, an axis of steps, a scale of colours and the newest value of each row.

    Args:
        rows: their names, from top to bottom.
        first_steps: of each column.
        last_step: of the last column.
        values: [rows, columns] float64; NaN, where there is none, is grey.
        scale: the values of the first and of the last colour.
        bound_above: a red line above the first row says that nothing may lie there.

    Returns:
        A picture in the format PNG.
    """
    high = _TALL if len(rows) <= _MANY else _LOW
    size = 13 if high == _TALL else 11
    left = 2 * _MARGIN + max(_text(name, size).width for name in rows)
    right = left + _WIDTH
    newest = _newest_texts(values)
    width = right + 2 * _MARGIN + max(_text(text, size).width for text in newest)
    bottom = _TITLE + high * len(rows)
    width = max(width, left + _text(title, 13).width + _MARGIN)
    image = Image.new("L", (width, bottom + _AXIS), _WHITE)
    draw = ImageDraw.Draw(image)
    image.paste(_cells(values, scale).resize((_WIDTH, high * len(rows)), Image.Resampling.NEAREST), (left, _TITLE))
    for number, (name, text) in enumerate(zip(rows, newest, strict=True)):
        middle = _TITLE + high * number + high // 2
        _write(image, left - _MARGIN, middle, name, size, "right")
        _write(image, right + _MARGIN, middle, text, size, "left")
        if number:
            draw.line((left, middle - high // 2, right, middle - high // 2), _WHITE)
    if bound_above:
        draw.line((left, _TITLE - 2, right, _TITLE - 2), _RED, 3)
    _write(image, left, _TITLE // 4, title, 13, "left")
    _draw_steps(image, draw, left, bottom, first_steps, last_step)
    _draw_scale(image, right, scale)
    image.putpalette(_palette().tobytes())
    packed = io.BytesIO()
    image.save(packed, "PNG", compress_level=2)
    return packed.getvalue()


def _cells(values: NDArray[np.float64], scale: tuple[float, float]) -> Image.Image:
    low, high = scale
    shares = np.clip((np.nan_to_num(values) - low) / max(high - low, 1e-12), 0, 1)
    numbers = np.where(np.isnan(values), _NO_VALUE, np.rint(shares * (_COLOURS - 1)))
    return Image.fromarray(numbers.astype(np.uint8))


def _draw_steps(
    image: Image.Image,
    draw: ImageDraw.ImageDraw,
    left: int,
    top: int,
    first_steps: Sequence[int],
    last_step: int,
) -> None:
    """The axis of steps: the first step of some columns, and the last step."""
    columns, last = len(first_steps), f"step {last_step}"
    end = left + _WIDTH - _text(last, 13).width - _MARGIN
    for at in range(0, columns, max(1, -(-columns // _TICKS))):
        x = left + _WIDTH * at // columns
        draw.line((x, top, x, top + 4), _BLACK)
        if x + _text(str(first_steps[at]), 13).width < end:
            _write(image, x, top + _AXIS // 2 + 2, str(first_steps[at]), 13, "left")
    draw.line((left + _WIDTH - 1, top, left + _WIDTH - 1, top + 4), _BLACK)
    _write(image, left + _WIDTH, top + _AXIS // 2 + 2, last, 13, "right")


def _draw_scale(image: Image.Image, right: int, scale: tuple[float, float]) -> None:
    """The colours from low to high, between their two values."""
    low, high = (f"{value:.3g}" for value in scale)
    begin, middle = right - _LEGEND - _text(high, 11).width - 4, 31
    ramp = Image.fromarray(np.arange(_COLOURS, dtype=np.uint8)[None])
    image.paste(ramp.resize((_LEGEND, 10), Image.Resampling.NEAREST), (begin, middle - 5))
    _write(image, begin - 4, middle, low, 11, "right")
    _write(image, begin + _LEGEND + 4, middle, high, 11, "left")


def _newest_texts(values: NDArray[np.float64]) -> list[str]:
    """The mean of the newest columns of each row, as text; empty where there is none."""
    newest = values[:, -max(1, round(_NEWEST * values.shape[1])) :]
    counts = (~np.isnan(newest)).sum(1)
    means = np.nan_to_num(newest).sum(1) / np.maximum(counts, 1)
    return [_short(mean) if count else "" for mean, count in zip(means, counts, strict=True)]


def _short(value: float) -> str:
    """The value in few characters."""
    if 0.01 <= abs(value) < 10:
        return f"{value:.2f}"
    return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.0f}"


def _write(image: Image.Image, x: int, middle: int, text: str, size: int, side: Literal["left", "right"]) -> None:
    """Writes a line of text of which ``x`` is the left or the right end."""
    mask = _text(text, size)
    image.paste(_BLACK, (x if side == "left" else x - mask.width, middle - mask.height // 2), mask)


@lru_cache(4096)
def _text(text: str, size: int) -> Image.Image:
    """A line of text as a mask. It is kept, because the pictures of a run repeat the same few texts."""
    font = _font(size)
    ascent, descent = font.getmetrics()
    mask = Image.new("L", (max(1, int(font.getlength(text)) + 1), ascent + descent))
    ImageDraw.Draw(mask).text((0, 0), text, 255, font)
    return mask


@cache
def _palette() -> NDArray[np.uint8]:
    """Red, green and blue of each number of a colour: [256, 3] uint8."""
    stops = np.array(_STOPS, np.float64)
    at = np.linspace(0, len(stops) - 1, _COLOURS)
    palette = np.zeros((256, 3))
    palette[:_COLOURS] = np.stack([np.interp(at, np.arange(len(stops)), channel) for channel in stops.T], 1)
    palette[_RED], palette[_NO_VALUE] = (230, 0, 0), (225, 225, 225)
    palette[_BLACK:] = np.linspace(0, 255, 256 - _BLACK)[:, None]
    return palette.astype(np.uint8)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
