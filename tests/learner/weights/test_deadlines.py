"""The deadlines of a round follow from bytes and bandwidth, and stay below what the other ranks wait for."""

from __future__ import annotations

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import SyncConfig
from learner.weights.deadlines import round_deadlines


def test_bytes_have_the_promised_bandwidth_for_one_engine_after_the_other() -> None:
    found = round_deadlines(SyncConfig(timeout_s=60, slowest_mb_per_s=20), 3, 10**9, 2 * 10**8, 0.0, math.inf)
    assert (found.form_s, found.pause_s, found.bucket_s, found.transfer_s) == (60, 60, 60 + 30, 60 + 150)
    assert found.round_s(7) == 3 * 60 + 60 + 7 + 2 * 210 and found.first_bucket_s(7) == 3 * 60 + 60 + 7 + 90


def test_eight_large_engines_are_given_what_the_ranks_wait_for_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = round_deadlines(SyncConfig(), 8, 15_200_000_000, 2**28, 0.0, 2400.0)
    assert found.round_s(0.0) < 2400 and found.form_s == 60
    assert "8 engines of one node and 15.2 GB may take 12520 s at sync.slowest_mb_per_s = 20" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        round_deadlines(SyncConfig(), 2, 10**9, 2**28, 0.0, 2400.0)
    assert not caplog.text


@given(st.floats(0.1, 1000), st.integers(0, 500), st.integers(0, 10**12), st.floats(0, 5000), st.floats(10, 10_000))
def test_no_round_is_longer_than_the_collectives(
    timeout_s: float, engines: int, size: int, drain_s: float, collective_s: float
) -> None:
    config = SyncConfig(timeout_s=timeout_s)
    found = round_deadlines(config, engines, size, min(size, 2**28), drain_s, collective_s)
    assert min(found.form_s, found.pause_s, found.bucket_s, found.transfer_s) > 0
    assert found.bucket_s <= found.transfer_s
    if drain_s < collective_s / 4:  # which is the user's own, and not shortened
        assert found.round_s(drain_s) < collective_s
