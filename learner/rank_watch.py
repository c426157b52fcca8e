"""Ends all ranks with the error of the first that fails, whatever collective they are waiting in.

Every rank holds a connection with rank 0 beside the process groups. A rank that fails sends its error; the connection
of one that dies without a word closes by itself. Rank 0 passes on what it hears. A rank that hears of a failure has a
few seconds to end by itself, because most collectives with a dead rank raise at once; then its process is ended. So no
rank depends on a deadline of gloo or NCCL, and the last line of each is the error that began it.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import NoReturn

import torch.distributed as dist

from common.process import FatalError
from learner.ranks import broadcast

_GRACE_S = 5.0  # from the news of a failure to the end of this process
_NEWS_S = 3.0  # for which an error of this rank waits for news that explain it
_CONNECT_S = 60.0  # until all ranks are connected; they have just met in a collective
_ACCEPT_S = 0.1  # between two looks at who has said that it is a rank
_SEND_S = 1  # to send news to one rank
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}  # seconds, seconds, number


class RankWatch:
    """A ``with`` block whose errors all ranks share. All ranks enter it together; a single rank has nobody to tell.

    An error in the block goes to the other ranks. An error that only follows from that of another rank, such as gloo's
    about a closed connection or torchrun's signal to end, is replaced by a FatalError with that one.

    Args:
        host: where rank 0 listens, on a port that the others are told.

    Raises:
        FatalError: rank 0 cannot listen there, or a rank does not reach it.
    """

    def __init__(self, host: str) -> None:
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._host = host
        self._connections: dict[int, socket.socket] = {}  # by rank
        self._lock = threading.Lock()
        self._failure: tuple[int, str] | None = None  # rank and error of the first failure
        self._running = 0  # number of connections whose other end has not said that it is over
        self._has_news = threading.Event()  # a rank has failed, or all are over
        self._is_over = False

    def __enter__(self) -> RankWatch:
        if self._world > 1:
            try:
                self._connections = self._accept_all() if self._rank == 0 else {0: self._connect()}
            except OSError as error:
                raise FatalError(
                    f"rank {self._rank} cannot be connected with the leading rank at {self._host}: {error}; the "
                    "learner's nodes must reach one another on all ports"
                ) from None
            self._running = len(self._connections)
            for rank, connection in self._connections.items():
                read = threading.Thread(target=self._read, args=(rank, connection), name=f"rank {rank}", daemon=True)
                read.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._is_over = True
            self._send({"over": True})
            return
        if self._connections and not isinstance(error, FatalError):
            self._has_news.wait(_NEWS_S)
        if self._failure is not None and self._failure[0] != self._rank:
            rank, reason = self._failure
            raise FatalError(f"rank {rank} failed: {reason}") from None
        if isinstance(error, KeyboardInterrupt):
            self._is_over = True
            self._send({"over": True} if self._running == 0 else {"rank": self._rank, "error": "it was interrupted"})
            return
        self._hear(self._rank, str(error) if isinstance(error, FatalError) else f"{type(error).__name__}: {error}")

    def _accept_all(self) -> dict[int, socket.socket]:
        """Connections of the other ranks. Whoever else connects is closed, and nothing waits for what he says.

        Raises:
            OSError: not all other ranks have connected within ``_CONNECT_S``.
        """
        token, deadline = secrets.token_hex(16), time.monotonic() + _CONNECT_S
        found: queue.SimpleQueue[tuple[int, socket.socket]] = queue.SimpleQueue()
        ranks: dict[int, socket.socket] = {}
        with socket.create_server((self._host, 0)) as listener:
            broadcast(f"{listener.getsockname()[1]} {token}".encode())
            listener.settimeout(_ACCEPT_S)
            while len(ranks) < self._world - 1:
                with suppress(TimeoutError, ConnectionError):  # the second: it was reset before it was accepted
                    connection, _ = listener.accept()
                    greet = partial(_greet, connection, token, deadline, found)
                    threading.Thread(target=greet, name="a connection", daemon=True).start()
                while not found.empty():
                    rank, connection = found.get()
                    ranks[rank] = _kept_alive(connection)
                if time.monotonic() > deadline:
                    missing = sorted({*range(1, self._world)} - {*ranks})
                    raise TimeoutError(f"the ranks {missing} did not connect within {_CONNECT_S:.0f} s")
        return ranks

    def _connect(self) -> socket.socket:
        port, token = broadcast(b"").decode().split()
        connection = socket.create_connection((self._host, int(port)), _CONNECT_S)
        connection.sendall(f"{token} {self._rank}\n".encode())
        return _kept_alive(connection)

    def _read(self, rank: int, connection: socket.socket) -> None:
        """On a thread for each connection, until the other side closes it."""
        is_over = False
        try:
            with connection.makefile("rb") as lines:
                for line in lines:
                    news = json.loads(line)
                    if "error" in news:
                        self._hear(news["rank"], news["error"])
                    elif not is_over:
                        is_over = True
                        self._count_over()
        except (OSError, ValueError):  # the connection broke; a line that was cut off is no news either
            pass
        if not (is_over or self._is_over):
            self._hear(rank, "it ended without a word; the lines above or the system's log may say why")

    def _hear(self, rank: int, error: str) -> None:
        """Keeps the first failure, passes it on, and sees to it that this process ends."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = rank, error
        self._has_news.set()
        if self._rank in (0, rank):
            self._send({"rank": rank, "error": error})
        if self._world > 1:
            end = threading.Timer(_GRACE_S, self._end)
            end.daemon = True
            end.start()

    def _count_over(self) -> None:
        with self._lock:
            self._running -= 1
            if not self._running:
                self._has_news.set()

    def _send(self, news: dict[str, object]) -> None:
        for connection in self._connections.values():
            try:
                connection.sendall(json.dumps(news).encode() + b"\n")
            except OSError:
                continue  # that rank is gone, and needs no news

    def _end(self) -> NoReturn:
        assert self._failure is not None
        rank, error = self._failure
        print(f"error: rank {rank} failed: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _greet(
    connection: socket.socket, token: str, deadline: float, found: queue.SimpleQueue[tuple[int, socket.socket]]
) -> None:
    """On a thread for each connection, until it has said which rank it is; one that is none is closed."""
    try:
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        with connection.makefile("rb", buffering=0) as lines:  # which reads no further than the line
            given, _, rank = lines.readline(100).decode(errors="replace").strip().partition(" ")
        if secrets.compare_digest(given.encode(), token.encode()):
            found.put((int(rank), connection))
            return
    except OSError:  # it said nothing, or broke: a rank would have connected again or be missed
        pass
    connection.close()


def _kept_alive(connection: socket.socket) -> socket.socket:
    """With a deadline for sending and none for reading; the system notices by itself when a host is gone."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_S, 0))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection
