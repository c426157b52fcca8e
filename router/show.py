"""Shows what a router has learned, from a checkpoint or a log, as tables for the terminal and as heat maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from common import config as configuration
from router.observations import Integers
from router.router import Router

Line: TypeAlias = dict[str, Any]  # of router.jsonl, as Router.log makes it; the reference's log has only step and probs
Table: TypeAlias = dict[str, dict[str, float]]  # row -> language -> value

_STATE = "run.json"


def read(path: Path) -> Line:
    """Reads what a router has learned.

    Args:
        path: a JSONL log, of which the last line is read; a checkpoint, whose router makes the line; or the directory
            of a run, of which the log is read.

    Raises:
        ValueError: ``path`` is none of these; the message says why.
    """
    if path.is_dir():
        path = path / (_STATE if (path / _STATE).exists() else "router.jsonl")
    try:
        content = path.read_bytes()
        if path.name == _STATE:
            state = json.loads(content)
            config = configuration.RouterConfig.model_validate(state["router"]["config"])
            router = Router(config, state["router"]["languages"], 0, state["router"]["steps"])
            router.load(state["router"])
            return {"step": state["step"], **router.log()}
        line: Line = _last_whole_line(content)
        if not isinstance(line["probs"], dict):
            raise KeyError("probs")
        return line
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; give a run, a checkpoint or a router.jsonl") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is neither a router's log nor a checkpoint of this program: {error!r}") from None


def _last_whole_line(content: bytes) -> Line:
    """The last line of JSON lines; the one before it where a process was killed as it wrote the last.

    Raises:
        ValueError: there is none.
    """
    for line in reversed(content.split(b"\n")[-3:]):  # after the last line end there is nothing
        with suppress(ValueError):
            found: Line = json.loads(line)
            return found
    raise ValueError("it has no line of JSON at its end")


def tables(line: Line) -> dict[str, Table]:
    """The effective probabilities by topic, by region, by the question's language, and by topic and region together."""
    found: dict[str, Table] = {}
    for name, chances in line["probs"].items():
        kind, _, row = name.partition(":")
        found.setdefault(kind, {})[row] = chances["effective"]
    if line.get("combined"):
        found["topic | region"] = line["combined"]
    return found


def text(line: Line) -> str:
    """All tables in percent. A star marks the most probable language of a row; its rollouts stand at the end."""
    about = [f"step {line.get('step', '?')}"]
    about += [f"{name} {line[name]:.3g}" for name in ("temperature", "exploration", "version") if name in line]
    blocks = [", ".join(about)]
    for kind, rows in tables(line).items():
        width = max(map(len, [kind, *rows])) + 2
        languages = list(next(iter(rows.values())))
        lines = [kind.ljust(width) + "".join(f"{language:>6}" for language in languages) + f"{'rollouts':>10}"]
        for name, row in sorted(rows.items()):
            top = max(row.values())
            cells = "".join(f"{100 * p:5.0f}{'*' if p == top else ' '}" for p in row.values())
            count = sum(line.get("counts", {}).get(f"{kind}:{name}", {}).values())
            lines.append(name.ljust(width) + cells + (f"{count:10.0f}" if count else ""))
        blocks.append("\n".join(lines))
    if len(blocks) == 1:
        blocks.append("Nothing has been learned yet: no scored rollouts have been observed.")
    return "\n\n".join(blocks)


def mutual_information(pairs: Sequence[tuple[str, str]], shuffles: int = 200) -> tuple[float, float]:
    """The mutual information between the two sides of the pairs, in bits.

    Returns:
        The estimate from the counts, and the mean of the estimates when one side is shuffled. The second is what as
        many pairs would show by chance if their sides were independent. Both are 0 where there are no pairs.
    """
    if not pairs:
        return 0.0, 0.0
    left, right = (np.unique(side, return_inverse=True)[1] for side in zip(*pairs, strict=True))
    random = np.random.default_rng(0)
    chance = [_information(left, random.permutation(right)) for _ in range(shuffles)]
    return _information(left, right), float(np.mean(chance))


def _information(left: Integers, right: Integers) -> float:
    size = int(right.max()) + 1
    joint = np.bincount(left * size + right, minlength=(int(left.max()) + 1) * size).reshape(-1, size) / len(left)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    met = joint > 0
    return float((joint[met] * np.log2(joint[met] / independent[met])).sum())


def picture(line: Line, out: Path | BinaryIO) -> None:
    """Writes the tables as heat maps with percentages, one below the other, as a PNG.

    It draws with Pillow, which takes milliseconds, because a run does this often.

    Raises:
        ValueError: nothing has been learned yet.
        OSError: the file cannot be written.
    """
    if not line["probs"]:
        raise ValueError("nothing has been learned yet, so there is nothing to draw")
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 13)
    found, (wide, high) = tables(line), (46, 22)
    left = 16 + int(
        max(font.getlength(name) for kind, rows in found.items() for name in [f"{kind}, step 000000", *rows])
    )
    columns = max(len(row) for rows in found.values() for row in rows.values())
    image = Image.new("RGB", (left + wide * columns, high * sum(len(rows) + 2 for rows in found.values())), "white")
    draw, y = ImageDraw.Draw(image), 0
    for kind, rows in found.items():
        most = max(max(row.values()) for row in rows.values())
        draw.text((6, y + 4), f"{kind}, step {line.get('step', '?')}", "black", font)
        for number, language in enumerate(next(iter(rows.values()))):
            draw.text((left + wide * (number + 0.5), y + 4), language, "black", font, "ma")
        for name in sorted(rows):
            y += high
            draw.text((6, y + 3), name, "black", font)
            for number, p in enumerate(rows[name].values()):
                shade = p / most if most else 0.0
                corner = left + wide * number
                draw.rectangle(
                    (corner, y, corner + wide - 2, y + high - 2), tuple(int(255 - shade * c) for c in (215, 140, 70))
                )
                ink = "white" if shade > 0.5 else "black"
                draw.text((corner + wide / 2, y + 3), f"{100 * p:.0f}", ink, font, "ma")
        y += 2 * high
    image.save(out, "PNG")
