"""Trained groups on disk: every step of a run with ``learner.record``, and the steps that were skipped.

A recording is a directory with ``config.json`` and one file a step, ``step-000001.msgpack`` and so on. A run that
resumed with another configuration keeps it as ``config-from-step-000041.json``, named by the first step that it is of.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from common import wire
from common.config import Config
from common.process import FatalError
from learner.former_run import set_aside
from learner.groups import Group, StepResult

log = logging.getLogger("learner")

_CONFIG_FILE = "config.json"
_LATER_CONFIG = "config-from-step-"
_NAME = re.compile("step-[0-9]+")  # of the file of a step, without its suffix
_SKIPPED_KEPT = 20  # skipped steps of a run; what makes one is in the first of them


class Step(wire.WireStruct):
    """A step as it was trained.

    Args:
        number: from 1.
        groups: with the rewards that were trained on.
        loss: of the step; NaN where it was skipped.
        grad_norm: before it was clipped.
    """

    number: int
    groups: list[Group]
    loss: float
    grad_norm: float


class Recorder:
    """Keeps a run's steps as the configuration asks for: all of them, or those alone that were skipped.

    Args:
        every_step: the directory for all, ``learner.record``; None: they are not kept.
        skipped: the directory for those with an optimizer step whose loss or gradient was not finite; the first 20
            are kept.
    """

    def __init__(self, every_step: Path | None, skipped: Path) -> None:
        self._every_step, self._skipped = every_step, skipped

    def record(self, number: int, groups: list[Group], result: StepResult) -> None:
        """Writes step ``number``, counted from 1, where it belongs; what was skipped of it is told in the log.

        Raises:
            FatalError: it cannot be written.
        """
        if self._every_step is not None:
            write(self._every_step, number, groups, result)
        if result.problem:
            kept = f"no more than {_SKIPPED_KEPT} such steps are kept in {self._skipped}"
            if len([*self._skipped.glob("step-*.msgpack")]) < _SKIPPED_KEPT:
                kept = f"its groups are in {write(self._skipped, number, groups, result)}"
            what = f"step {number} is skipped"
            if 0 < result.left_out < result.optimizer_steps:
                what = f"in step {number}, {result.left_out} of {result.optimizer_steps} optimizer steps are skipped"
            log.error("%s, %s; %s", what, result.problem, kept)


def write(directory: Path, number: int, groups: list[Group], result: StepResult) -> Path:
    """Writes a step, whole or not at all, and returns the path of its file.

    Raises:
        FatalError: it cannot be written. What was written of it is removed.
    """
    path = directory / f"step-{number:06d}.msgpack"
    step = Step(number=number, groups=groups, loss=loss_of(result), grad_norm=result.grad_norm)
    partial = path.with_suffix(".partial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(wire.encode(step))
        partial.rename(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise FatalError(f"cannot record step {number} in {path}: {error.strerror or error}") from None
    return path


def loss_of(result: StepResult) -> float:
    """The loss of a step; 0 where nothing carried gradient, NaN where no optimizer step could be taken."""
    return result.means.get("loss", math.nan if result.problem else 0.0)


def begin(directory: Path, config: Config, step: int) -> None:
    """Makes a directory ready for the steps after ``step``: recorded later ones, which a resume undoes, are removed.

    Where a run begins, those of another run are set aside. Where it goes on with another configuration, that of the
    steps until then is kept.

    Raises:
        FatalError: it cannot be written.
    """
    text = config.model_dump_json(indent=2)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if step == 0 and any(directory.glob("step-*.msgpack")):
            set_aside(directory, ["step-*.msgpack", _CONFIG_FILE, f"{_LATER_CONFIG}*.json"])
        _remove_later(directory, step)
        for number, path in _later_configurations(directory):
            if number > step:
                path.unlink()
        path = directory / _CONFIG_FILE
        if step and path.exists():
            *_, (_, newest) = [(1, path), *_later_configurations(directory)]
            path = directory / f"{_LATER_CONFIG}{step + 1:06d}.json"
            if newest.read_text(encoding="utf-8") == text:
                return
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FatalError(f"cannot write to learner.record = {directory}: {error}") from None


def undo(directory: Path, step: int) -> None:
    """Removes the recorded steps after ``step``, which a resume undoes; does nothing where there is no directory.

    Raises:
        FatalError: they cannot be removed.
    """
    try:
        _remove_later(directory, step)
    except OSError as error:
        raise FatalError(
            f"cannot remove the steps after {step} from {directory}, which the resume undoes: {error.strerror}"
        ) from None


def _remove_later(directory: Path, step: int) -> None:
    for path in _steps(directory):
        if _number(path) > step:
            path.unlink()


def read(directory: Path) -> tuple[Config, Iterator[Step]]:
    """The configuration that a recorded run began with, and its steps, each read when it is asked for.

    Raises:
        FatalError: it is no recording, does not begin at step 1, has a gap, or a file is damaged.
    """
    config = _read_configuration(directory, directory / _CONFIG_FILE)
    paths = _steps(directory)
    for expected, path in enumerate(paths, start=1):
        if _number(path) != expected:
            raise FatalError(f"{directory} lacks step {expected}: record a run from its beginning")
    return config, map(_read_step, paths)


def later_configurations(directory: Path) -> dict[int, Config]:
    """The configurations with which a recorded run went on, by the first recorded step that each holds for.

    Raises:
        FatalError: one cannot be read.
    """
    last = max(map(_number, _steps(directory)), default=0)
    return {
        number: _read_configuration(directory, path)
        for number, path in _later_configurations(directory)
        if number <= last
    }


def _later_configurations(directory: Path) -> list[tuple[int, Path]]:
    """In the order of their steps."""
    paths = sorted(directory.glob(f"{_LATER_CONFIG}*.json"))
    return [(int(path.stem.removeprefix(_LATER_CONFIG)), path) for path in paths]


def _read_configuration(directory: Path, path: Path) -> Config:
    try:
        return Config.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # the latter also where it is no UTF-8 or does not fit
        raise FatalError(f"{directory} is no record of a run (made with learner.record): {error}") from None


def _read_step(path: Path) -> Step:
    try:
        return wire.unpack(path.read_bytes(), Step)
    except (OSError, wire.WireError) as error:
        raise FatalError(f"{path} is damaged, or of another version of the program: {error}") from None


def _steps(directory: Path) -> list[Path]:
    """In their order. What has a further word in its name, as ``step-000002-odd.msgpack``, is somebody's own copy."""
    return sorted((path for path in directory.glob("step-*.msgpack") if _NAME.fullmatch(path.stem)), key=_number)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
