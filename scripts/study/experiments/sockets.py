"""Sockets of one run alone, so that another may be under way on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory


@contextmanager
def own_sockets() -> Iterator[list[str]]:
    """Yields flags with the addresses of learner and reward process, which are good as long as the block lasts."""
    with TemporaryDirectory(prefix="lrpo-") as directory:
        yield [
            *("--learner.address", f"ipc://{directory}/learner"),
            *("--reward.addresses", json.dumps([f"ipc://{directory}/reward"])),
        ]
