"""Tells the set-up of a study from others: a hash of settings, and digests of what they name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from common.config import load
from common.user_code import user_file
from scripts.study.iterate.record import digest_of_file, digest_of_source

# Settings that say where things lie, how fast they go, or what is measured, and not what is trained. Digests of what
# lies there go into the hash where a user names it, and into the record where a world has made it.
_NOT_TRAINED = (
    "run.dir", "data.train", "data.heldout", "model.path", "reward.calibration", "reward.addresses",
    "learner.gradient_noise_every", "learner.group_timeout_s",
)  # fmt: skip
_USER_CODE = ("reward.function", "learner.step_reward")  # FILE.py:NAME
_SAMPLED_BYTES = 1 << 20  # of the beginning and the end of a file of weights, which differ there once they are trained


def settings_hash(settings: Sequence[str], flags: Sequence[str], past: Mapping[str, Any] | None = None) -> str:
    """Twelve digits that tell the settings of an arm from others, wherever its files lie.

    Settings with their default values do not enter, so that a study goes on with a version that has more of them. Of
    functions of the user's own, and those of recipes, the contents of their file enter.

    Args:
        settings: files and flags that all arms share.
        flags: those of the arm, and of what it starts from.
        past: settings that there are no more, as the first records had them; so these remain of the same set-up.

    Raises:
        ConfigError: the settings are wrong.
    """
    config = load(settings).model_dump(mode="json", exclude_defaults=True)
    flat = {f"{section}.{name}": value for section, values in config.items() for name, value in values.items()}
    kept = {key: _with_code(key, value) for key, value in flat.items() if key not in _NOT_TRAINED}
    kept |= past or {}
    return hashlib.sha256(json.dumps([kept, *flags], sort_keys=True).encode()).hexdigest()[:12]


def _with_code(key: str, value: Any) -> Any:
    if key not in _USER_CODE or not value or not user_file(value).is_file():
        return value
    return [value.rpartition(":")[2], digest_of_file(user_file(value))]


def digests_of_world(world: Path, policy: Path) -> dict[str, str]:
    """Twelve digits each of an offline world's rows, asked and taught, and of the policy that was taught them.

    Raises:
        FatalError: the world lacks a file.
    """
    rows = hashlib.sha256()
    for name in ("train", "heldout", "warm_start"):
        rows.update(digest_of_source(str(world / f"{name}.parquet")).encode())
    return {"world": rows.hexdigest()[:12], "policy": digest_of_model(str(policy))[:12]}


@cache  # every arm names the same model
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
