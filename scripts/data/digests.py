"""Digests of what settings name: files, models and functions of the user's own, which change and keep their names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from common.config import Config
from common.process import FatalError
from common.user_code import user_file
from learner.resume import what_matters
from reward.calibration.files import quantile_path

_SAMPLED_BYTES = 1 << 20  # of the beginning and the end of a file of weights, which differ there once they are trained


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        FatalError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FatalError(f"cannot read {path}: {error.strerror}") from None


def digest_of_model(path: str) -> str:
    """The name of a model of the hub; of a directory, a digest of its files' names, lengths, beginnings and ends.

    Weights of many gigabytes are not read as a whole, and training changes all of them.
    """
    directory = Path(path)
    if not directory.is_dir():
        return path
    found = hashlib.sha256()
    for file in sorted(one for one in directory.rglob("*") if one.is_file()):
        size = file.stat().st_size
        found.update(f"{file.relative_to(directory)} {size}\n".encode())
        with file.open("rb") as opened:
            found.update(opened.read(_SAMPLED_BYTES))
            opened.seek(max(0, size - _SAMPLED_BYTES))
            found.update(opened.read(_SAMPLED_BYTES))
    return found.hexdigest()


def digest_of_function(where: str) -> str:
    """Of the file of ``FILE.py:NAME``; "" where there is none."""
    path = user_file(where)
    return digest_of_file(path) if where and path.is_file() else ""


def digests_of_named(config: Config) -> dict[str, str]:
    """Digests of the files that the settings of answers and rewards name, by their keys.

    Files that a function of the user's own reads or imports are not among them.

    Raises:
        FatalError: one cannot be read.
    """
    reward = config.reward
    found = {
        "reward.function": digest_of_function(reward.function),
        "learner.step_reward": digest_of_function(config.learner.step_reward),
    }
    if reward.calibration is not None:
        found["reward.calibration"] = digest_of_file(reward.calibration)
        quantiles = quantile_path(reward.calibration)
        found["reward.calibration (quantiles)"] = digest_of_file(quantiles) if quantiles.is_file() else ""
    return {key: digest for key, digest in found.items() if digest}


def how_answered(config: Config) -> dict[str, Any]:
    """All that decides what a policy answers outside of a run and what that earns, for keys of what was measured.

    A model and functions count by what they are, wherever they lie, and settings by whether they change anything: how
    many calls of a judge are under way, and where it is served, do not.

    Raises:
        FatalError: a file that is named cannot be read.
    """
    code = digests_of_named(config)
    code.pop("learner.step_reward", None)  # rewards alone say what is right
    reward = what_matters(config, "reward")
    if config.reward.function:
        reward["function"] = config.reward.function.rpartition(":")[2]
    reward.pop("calibration", None)
    return {
        "model": {**config.model.model_dump(mode="json"), "path": digest_of_model(config.model.path)},
        "sampling": config.sampling.model_dump(mode="json"),
        "reward": {**reward, "embedder": digest_of_model(config.reward.embedder)},
        "code": code,
        "by": "accuracy or quality",
    }
