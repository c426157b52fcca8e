"""Answers of endpoints on disk: a damaged file, one that cannot be opened, and one that fails."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from common.answer_cache import AnswerCache
from common.process import FatalError


def test_a_damaged_cache_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, damage = tmp_path / "answers.sqlite", b"it was a file of SQLite, and a disk was full" * 100
    for number in (1, 2):
        path.write_bytes(damage)
        cache = AnswerCache(path)
        assert cache.get("a") is None
        cache.put("a", "b")
        assert cache.get("a") == "b"
        cache.close()
        assert (tmp_path / f"answers.sqlite.damaged-{number}").read_bytes() == damage
        assert f"answers are asked for anew: {path} is set aside as {path}.damaged-{number}" in caplog.text
    again = AnswerCache(path)
    assert again.get("a") == "b", "a whole one stays"
    again.close()


def test_a_cache_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").mkdir()
    with pytest.raises(FatalError, match=r"cannot keep answers in .*answers\.sqlite: unable to open"):
        AnswerCache(tmp_path / "answers.sqlite")


def test_a_cache_that_fails_does_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "answers.sqlite"
    cache = AnswerCache(path)
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE answers")
    for number in range(50):
        assert cache.get(str(number)) is None
        cache.put(str(number), "an answer")
    assert len(caplog.records) == 7, "1, 2, 4, … 64"
    assert "no such table" in caplog.text
    cache.close()
