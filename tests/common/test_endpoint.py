"""How long an endpoint may ask to wait; the rest of it is tested where judges and translators use it."""

from __future__ import annotations

import pytest

from common.endpoint import _retry_after

_NOON = "Sun, 29 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "Sun, 29 Nov 2026 12:00:30 GMT", "date": _NOON}, 30.0),
        ({"retry-after": "Sun, 29 Nov 2026 11:59:00 GMT", "date": _NOON}, 0.0),
        ({"retry-after": "Sun, 29 Nov 2026 12:00:30 GMT"}, None),
        ({"retry-after": "soon", "date": _NOON}, None),
        ({"date": _NOON}, None),
    ],
)
def test_a_date_counts_from_that_of_the_reply_whatever_this_machines_clock_says(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert _retry_after(headers) == seconds
