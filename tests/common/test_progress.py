"""What takes long is told: at its beginning, again and again, with a warning after a minute, and at its end."""

from __future__ import annotations

import logging
import re
import time

import pytest

from common import progress
from common.progress import Activity

_PATIENCE_S = 60  # of what should come


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundredths of a second in place of seconds."""
    monkeypatch.setattr(progress, "_EVERY_S", tuple(pause / 100 for pause in progress._EVERY_S))
    monkeypatch.setattr(progress, "_WARN_AFTER_S", 0.6)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "progress.actor"]


def wait_for_lines(caplog: pytest.LogCaptureFixture, count: int) -> None:
    """Waits until so many lines are there; a busy machine may take long over it."""
    deadline = time.monotonic() + _PATIENCE_S
    while len(lines(caplog)) < count:
        assert time.monotonic() < deadline, lines(caplog)
        time.sleep(0.02)


def test_a_wait_is_told_and_becomes_a_warning_that_names_what_is_missing(
    fast: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    count = iter(range(100))
    with Activity("actor", "waiting", missing="start it", detail=lambda: f"{next(count)} of 9"):
        wait_for_lines(caplog, 5)
    told = lines(caplog)
    assert told[0] == ("INFO", "waiting")
    assert re.fullmatch(r"waiting: \d+ s so far \(0 of 9\)", told[1][1])
    assert all(level == "WARNING" and text.endswith("of 9): start it") for level, text in told[3:5])
    seen = len(told)
    time.sleep(0.5)
    assert len(lines(caplog)) == seen, "nothing is told after its end"


def test_what_is_brief_is_not_mentioned(fast: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Activity("actor", "brief", silent_s=10):
        time.sleep(0.3)
    with Activity("actor", "longer", silent_s=0.2):
        wait_for_lines(caplog, 1)
    assert all(text.startswith("longer: ") for _, text in lines(caplog))


def test_what_fails_is_not_called_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(OSError), Activity("actor", "reading"):
        raise OSError
    assert lines(caplog) == [("INFO", "reading")]
    with Activity("actor", "reading it again") as reading:
        time.sleep(1.1)
        reading.end()
        reading.end()
    assert lines(caplog)[1:] == [("INFO", "reading it again"), ("INFO", "reading it again: done after 1 s")]
