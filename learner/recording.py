"""Groups on disk: those queued in a checkpoint, those of a step to be looked at, and every step of a recorded run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from common import wire
from common.config import Config
from common.process import FatalError
from learner.groups import Group
from learner.train.trainer import StepResult

_CONFIG = "config.json"


class Step(wire.WireStruct):
    """A step as it was trained; ``number`` from 1."""

    number: int
    groups: list[Group]
    loss: float
    grad_norm: float


def write(directory: Path, number: int, groups: list[Group], result: StepResult) -> Path:
    """Keeps a step as ``step-000001.msgpack``, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{number:06d}.msgpack"
    step = Step(number=number, groups=groups, loss=result.means.get("loss", 0.0), grad_norm=result.grad_norm)
    partial = path.with_suffix(".partial")
    partial.write_bytes(wire.encode(step))
    partial.rename(path)
    return path


def begin(directory: Path, config: Config, step: int) -> None:
    """Makes ready to record what follows ``step``; what is there of later steps is undone by a resume."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("step-*.msgpack"):
        if _number(path) > step:
            path.unlink()
    (directory / _CONFIG).write_text(config.model_dump_json(indent=2), encoding="utf-8")


def read(directory: Path) -> tuple[Config, Iterator[Step]]:
    """The configuration of a recorded run and its steps, read one by one.

    Raises:
        FatalError: it is no record, does not begin at step 1, has a gap, or a file is damaged.
    """
    try:
        config = Config.model_validate_json((directory / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise FatalError(f"{directory} is no record of a run (made with learner.record): {error}") from None
    paths = sorted(directory.glob("step-*.msgpack"))
    for expected, path in enumerate(paths, start=1):
        if _number(path) != expected:
            raise FatalError(f"{directory} lacks step {expected}: record a run from its beginning")
    return config, map(_step, paths)


def _step(path: Path) -> Step:
    try:
        return wire.unpack(path.read_bytes(), Step)
    except wire.WireError as error:
        raise FatalError(f"{path} is damaged: {error}") from None


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
