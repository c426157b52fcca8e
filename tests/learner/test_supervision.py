"""Actors are told that a run is over only where no other learner goes on with it."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

import pytest

from common.process import FatalError
from learner.process import _closing
from learner.supervision import SUCCESSOR


class Server:
    """Remembers whether it told the actors that the run is over."""

    told: bool | None = None

    def close(self, *, over: bool) -> None:
        self.told = over


def tells_the_end(error: BaseException | None, restarts: int = 0) -> bool | None:
    server: Any = Server()
    with suppress(KeyboardInterrupt, FatalError), ExitStack() as owned:
        owned.push(_closing(server, restarts))
        if error is not None:
            raise error
    told: bool | None = server.told
    return told


@pytest.mark.parametrize("successor", ["", "1"])
def test_actors_wait_for_the_learner_that_takes_the_place_of_an_interrupted_one(
    successor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SUCCESSOR, successor)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    assert tells_the_end(KeyboardInterrupt()) is not bool(successor)
    assert tells_the_end(None) is True, "a run that has all its steps"
    assert tells_the_end(FatalError("no")) is True and tells_the_end(FatalError("no"), restarts=1) is False
