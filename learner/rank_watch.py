"""Ends all ranks with the error of the first that fails, whatever collective they are waiting in.

A rank that fails sends its error over its connection with rank 0 (``learner.rank_links``); the connection of one that
dies without a word closes by itself. Rank 0 passes on what it hears. A rank that hears of a failure has a few seconds
to end by itself, because most collectives with a dead rank raise at once; then its process is ended. So no rank depends
on a deadline of gloo or NCCL, and the last line of each is the error that began it.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

import torch.distributed as dist

from common import wire
from common.process import FatalError
from learner.rank_links import RankLinks

_GRACE_S = 5.0  # from the news of a failure to the end of this process
_NEWS_S = 3.0  # for which an error of this rank waits for news that explain it
_CHANNEL = "watch"


class _Over(wire.Message):
    """This rank has ended its part in peace."""


class _Failure(wire.Message):
    """A rank has failed."""

    rank: int
    error: str


class RankWatch:
    """A ``with`` block whose errors all ranks share. All ranks enter it together; a single rank has nobody to tell.

    An error in the block goes to the other ranks. An error that only follows from that of another rank, such as gloo's
    about a closed connection or torchrun's signal to end, is replaced by a FatalError with that one.

    Args:
        links: over which the news travel; the watch begins to read from them.
    """

    def __init__(self, links: RankLinks) -> None:
        self._rank, self._links = dist.get_rank(), links
        self._lock = threading.Lock()
        self._failure: _Failure | None = None  # the first
        self._running = set(links.ranks)  # whose other ends have not said that they are over
        self._has_news = threading.Event()  # a rank has failed, or all are over
        self._is_over = False

    def __enter__(self) -> RankWatch:
        self._links.listen(_CHANNEL, _Over | _Failure, self._take)
        self._links.start(self._note_end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._is_over = True
            self._send(_Over())
            return
        if self._links.ranks and not isinstance(error, FatalError):
            self._has_news.wait(_NEWS_S)
        if self._failure is not None and self._failure.rank != self._rank:
            raise FatalError(f"rank {self._failure.rank} failed: {self._failure.error}") from None
        if isinstance(error, KeyboardInterrupt):
            self._is_over = True
            self._send(_Failure(self._rank, "it was interrupted") if self._running else _Over())
            return
        words = str(error) if isinstance(error, FatalError) else f"{type(error).__name__}: {error}"
        self._hear(_Failure(self._rank, words))

    def _take(self, rank: int, news: _Over | _Failure) -> None:
        if isinstance(news, _Failure):
            self._hear(news)
            return
        with self._lock:
            self._running.discard(rank)
            if not self._running:
                self._has_news.set()

    def _note_end(self, rank: int) -> None:
        """A connection has broken off."""
        if rank in self._running and not self._is_over:
            self._hear(_Failure(rank, "it ended without a word; the lines above or the system's log may say why"))

    def _hear(self, failure: _Failure) -> None:
        """Keeps the first failure, passes it on, and sees to it that this process ends."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure
        self._has_news.set()
        if self._rank in (0, failure.rank):
            self._send(failure)
        if self._links.ranks:
            end = threading.Timer(_GRACE_S, self._end)
            end.daemon = True
            end.start()

    def _send(self, news: _Over | _Failure) -> None:
        for rank in self._links.ranks:
            with suppress(OSError):  # that rank is gone, and needs no news
                self._links.send(rank, _CHANNEL, news)

    def _end(self) -> NoReturn:
        assert self._failure is not None
        print(f"error: rank {self._failure.rank} failed: {self._failure.error}", file=sys.stderr, flush=True)
        os._exit(1)
