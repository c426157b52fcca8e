"""Buckets between the thread that gathers them and the threads that send them, each sender at its own pace."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

POLL_S = 0.1  # how long a call waits before it returns, so that its caller can check whether to go on


class BucketQueue:
    """Hands every gathered bucket to every sender, in order, and keeps each bucket until all have sent it.

    Gathering is at most one bucket ahead of the fastest sender, so two buckets are in memory at a time. More are kept
    for senders that lag behind the fastest, at most ``room``; then gathering waits for the slowest. Whoever gathers
    gives up a sender that it waits for too long, see ``held_s``. Thread-safe: one thread gathers, and each sender may
    have its own.

    Args:
        senders: the names of those who send. Without any, gathering is not held up.
        recycle: is called with each buffer that all senders have sent, by the thread that notices.
        room: most buckets that are kept at a time, at least 2.
    """

    def __init__(self, senders: Iterable[str], recycle: Callable[[Tensor], None], room: int = 2) -> None:
        self._sent = dict.fromkeys(senders, 0)  # number of buckets sent, by sender
        self._recycle, self._room = recycle, room
        self._kept: dict[int, Tensor] = {}  # by number of the bucket
        self._changed = threading.Condition()
        now = time.monotonic()
        self._moved = dict.fromkeys(self._sent, now)  # when a sender asked for its next bucket, or one came for it

    def has_room(self, number: int) -> bool:
        """Whether bucket ``number`` may be gathered. Blocks for at most ``POLL_S`` until it may."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._holders(number), POLL_S)

    def held_s(self, number: int) -> dict[str, float]:
        """Those senders because of which bucket ``number`` has no room, and for how long each has held its bucket.

        The time counts from when the sender could have begun to send the bucket. Does not block.
        """
        with self._changed:
            now = time.monotonic()
            return {name: now - self._moved[name] for name in self._holders(number)}

    def sent(self, sender: str) -> int:
        """How many buckets a sender has sent; 0, too, for one that has left."""
        return self._sent.get(sender, 0)

    def put(self, number: int, buffer: Tensor) -> None:
        """Adds bucket ``number``, for which ``has_room`` was true. Does not block."""
        with self._changed:
            self._kept[number] = buffer
            now = time.monotonic()
            self._moved |= {name: now for name, sent in self._sent.items() if sent == number}
            self._forget_sent()

    def get(self, sender: str, number: int) -> Tensor | None:
        """Bucket ``number``, for a sender that has sent all buckets before it.

        Blocks for at most ``POLL_S`` until it is gathered; None if it is not gathered by then. A sender that has left
        gets nothing.
        """
        with self._changed:
            if sender not in self._sent:
                return None
            if number > self._sent[sender]:
                self._sent[sender], self._moved[sender] = number, time.monotonic()
                self._forget_sent()
            self._changed.wait_for(lambda: number in self._kept or sender not in self._sent, POLL_S)
            return self._kept.get(number) if sender in self._sent else None

    def leave(self, sender: str) -> None:
        """Nothing is kept for this sender any more: it has sent everything, or has given up. Does not block."""
        with self._changed:
            self._sent.pop(sender, None)
            self._moved.pop(sender, None)
            self._forget_sent()

    def _holders(self, number: int) -> list[str]:
        """The senders that gathering waits for before bucket ``number``."""
        if max(self._sent.values(), default=number) < number - 1:
            return list(self._sent)
        return [name for name, sent in self._sent.items() if sent <= number - self._room]

    def _forget_sent(self) -> None:
        slowest = min(self._sent.values(), default=math.inf)
        for number in [number for number in self._kept if number < slowest]:
            self._recycle(self._kept.pop(number))
        self._changed.notify_all()


class SpareBuffers:
    """Buffers in host memory, to be used again. Fresh memory would take five times as long to fill.

    Args:
        size: bytes of each buffer.
        most: how many are kept while nobody uses them.
    """

    def __init__(self, size: int, most: int = 2) -> None:
        self._size, self._most = size, most
        self._free: list[Tensor] = []

    def borrow(self) -> Tensor:
        """[size] uint8 with any content; a new one if none is free."""
        if self._free:
            return self._free.pop()
        return torch.empty(self._size, dtype=torch.uint8)

    def give_back(self, buffer: Tensor) -> None:
        """Makes a buffer that ``borrow`` returned available again, or frees it. Any thread may call it."""
        if len(self._free) < self._most:
            self._free.append(buffer)
