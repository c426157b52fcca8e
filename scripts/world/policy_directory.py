"""The directory of a warm-started policy: what it was made from, and how it is written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.process import FatalError
from scripts.world.settings import Settings

FINGERPRINT = "warm_start.json"  # what the policy in this directory was made from


def fingerprint(world: Path, files: Sequence[str], settings: Settings) -> dict[str, Any]:
    """What a policy is made from: digests of the files of the world, and the settings.

    Raises:
        FatalError: ``world`` lacks a file.
    """
    digests = {}
    for name in files:
        try:
            digests[name] = hashlib.sha256((world / name).read_bytes()).hexdigest()
        except OSError as error:
            reason = error.strerror
            raise FatalError(f"cannot read {world / name}: {reason}; make it with scripts.world.build") from None
    return {"world": digests, "settings": asdict(settings)}


def holds(out: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a directory holds the policy with this fingerprint.

    Raises:
        FatalError: ``out`` exists and holds no warm-started policy, so that it must not be replaced.
    """
    if not out.exists():
        return False
    if not (out / FINGERPRINT).is_file():
        raise FatalError(f"{out} exists and is no warm-started policy; remove it or choose another --out")
    found: Any = json.loads((out / FINGERPRINT).read_text(encoding="utf-8"))
    return bool(found == wanted)


@contextmanager
def replaced(out: Path, wanted: Mapping[str, Any]) -> Iterator[Path]:
    """Yields a directory to write a policy into. With its fingerprint it takes the place of ``out`` afterwards.

    If writing fails, ``out`` stays as it was.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield partial
        (partial / FINGERPRINT).write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
