"""Tells a process that it did not run for a while: it was stopped, or waited for a file system that hung.

Whoever judges others by their silence must not count that time. It could hear nobody, and what they sent meanwhile has
yet to be read.
"""

from __future__ import annotations

import time

WORTH_TELLING_S = 5.0  # a pause that a user should hear of
_USUAL_S = 1.0  # by which a busy process may be late


def stood_still_s(since: float, expected_s: float) -> float:
    """For how much longer than expected nothing happened here; 0 where that is no more than a busy process needs.

    Args:
        since: when the caller last did something, in seconds of ``time.monotonic``.
        expected_s: when it meant to go on, in seconds after that.
    """
    late_s = time.monotonic() - since - expected_s
    return late_s if late_s > _USUAL_S else 0.0
