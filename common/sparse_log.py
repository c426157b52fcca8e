"""Which occurrences of something that may happen without end are logged, so that no flood fills the disk."""

from __future__ import annotations


def is_logged(count: int) -> bool:
    """Whether occurrence number ``count`` is logged: the 1st, 2nd, 4th, 8th, and so on."""
    return count & (count - 1) == 0
