"""A connection of every rank with rank 0 beside the process groups, for messages that must not wait for a collective.

It carries the news of a failed rank (``learner.rank_watch``) and what rank 0 and the leaders of the weight sync tell
each other (``learner.weights.leader``). A message is a line: the name of its channel, and a struct as JSON.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import torch.distributed as dist

from common import wire
from common.process import FatalError
from learner.ranks import broadcast

log = logging.getLogger("learner")

_CONNECT_S = 60.0  # until all ranks are connected; they have just met in a collective
_ACCEPT_S = 0.1  # between two looks at who has said that it is a rank
_SEND_S = 1  # to send to one rank
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}  # seconds, seconds, number
# How long what was sent may stay unacknowledged; keepalive asks nothing while such data is under way, and Linux repeats
# it for a quarter of an hour by itself. Milliseconds.
_USER_TIMEOUT_MS = 25_000
_LONGEST_HELLO = 1000  # bytes


class _Meeting(wire.WireStruct):
    """Rank 0 to all: where it listens, and what to say there."""

    host: str
    port: int
    token: str


class _Hello(wire.WireStruct):
    """A rank to rank 0, as the first line: who it is."""

    token: str
    rank: int
    leads: bool  # it is the first rank of its node
    host: str  # name of its machine


class RankLinks:
    """Connects this rank with rank 0; all ranks make it together. A single rank has no connections.

    Attributes:
        ranks: those at the other ends: all others on rank 0, and 0 on these.
        leaders: on rank 0, the name of the machine by the first rank of each learner node, its own included.

    Args:
        host: where rank 0 listens, on a port that the others are told.

    Raises:
        FatalError: rank 0 cannot listen there, or a rank does not reach it.
    """

    def __init__(self, host: str) -> None:
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._connections: dict[int, socket.socket] = {}  # by rank
        self._locks: dict[int, threading.Lock] = {}  # a line must not come between the parts of another
        self._channels: dict[str, tuple[msgspec.json.Decoder[Any], Callable[[int, Any], None]]] = {}
        self.leaders = {0: socket.gethostname()}
        if self._world > 1:
            try:
                self._connections = self._accept_all(host) if self._rank == 0 else {0: self._connect()}
            except OSError as error:
                raise FatalError(
                    f"rank {self._rank} cannot be connected with the leading rank at {host}: {error}; the "
                    "learner's nodes must reach one another on all ports"
                ) from None
        self._locks = {rank: threading.Lock() for rank in self._connections}
        self.ranks = sorted(self._connections)

    def listen(self, channel: str, kind: Any, handler: Callable[[int, Any], None]) -> None:
        """Hands every message of a channel to ``handler``, with the rank that sent it.

        Args:
            channel: a word.
            kind: type of the messages, which ``handler`` takes.
            handler: runs on the thread that reads from that rank, and must not block.
        """
        self._channels[channel] = msgspec.json.Decoder(kind), handler

    def start(self, on_end: Callable[[int], None]) -> None:
        """Begins to read, on a thread for each connection. ``on_end`` is called with its rank when it breaks off."""
        for rank in self.ranks:
            read = threading.Thread(target=self._read, args=(rank, on_end), name=f"rank {rank}", daemon=True)
            read.start()

    def send(self, rank: int, channel: str, message: wire.WireStruct) -> None:
        """Sends a message to a rank at the other end of a connection; blocks for at most a second.

        Raises:
            OSError: that rank is gone, or has not read for long.
        """
        line = f"{channel} ".encode() + msgspec.json.encode(message) + b"\n"
        with self._locks[rank]:
            self._connections[rank].sendall(line)

    def _accept_all(self, host: str) -> dict[int, socket.socket]:
        """Connections of the other ranks. Whoever else connects is closed, and nothing waits for what he says.

        Raises:
            OSError: not all other ranks have connected within ``_CONNECT_S``.
        """
        token, deadline = secrets.token_hex(16), time.monotonic() + _CONNECT_S
        found: queue.SimpleQueue[tuple[_Hello, socket.socket]] = queue.SimpleQueue()
        ranks: dict[int, socket.socket] = {}
        with socket.create_server((host, 0)) as listener:
            broadcast(wire.encode(_Meeting(host, listener.getsockname()[1], token)))
            listener.settimeout(_ACCEPT_S)
            while len(ranks) < self._world - 1:
                with suppress(TimeoutError, ConnectionError):  # the second: it was reset before it was accepted
                    connection, _ = listener.accept()
                    greet = partial(_greet, connection, token, deadline, found)
                    threading.Thread(target=greet, name="a connection", daemon=True).start()
                while not found.empty():
                    hello, connection = found.get()
                    ranks[hello.rank] = _kept_alive(connection)
                    if hello.leads:
                        self.leaders[hello.rank] = hello.host
                if time.monotonic() > deadline:
                    missing = sorted({*range(1, self._world)} - {*ranks})
                    raise TimeoutError(f"the ranks {missing} did not connect within {_CONNECT_S:.0f} s")
        return ranks

    def _connect(self) -> socket.socket:
        meeting = wire.unpack(broadcast(b""), _Meeting)
        connection = socket.create_connection((meeting.host, meeting.port), _CONNECT_S)
        hello = _Hello(meeting.token, self._rank, leads=leads_its_node(), host=socket.gethostname())
        connection.sendall(msgspec.json.encode(hello) + b"\n")
        return _kept_alive(connection)

    def _read(self, rank: int, on_end: Callable[[int], None]) -> None:
        try:
            with self._connections[rank].makefile("rb") as lines:
                for line in lines:
                    channel, _, data = line.partition(b" ")
                    if (found := self._channels.get(channel.decode(errors="replace"))) is None:
                        log.warning("dropped a message of rank %d: nobody listens to %r", rank, channel)
                        continue
                    decoder, handler = found
                    handler(rank, decoder.decode(data))
        except (OSError, ValueError):  # the connection broke; a line that was cut off is no message either
            pass
        finally:
            on_end(rank)


def leads_its_node() -> bool:
    """Whether this rank is the first of its machine, as torchrun tells it; a rank without torchrun is rank 0 alone."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))) == 0


def _greet(
    connection: socket.socket, token: str, deadline: float, found: queue.SimpleQueue[tuple[_Hello, socket.socket]]
) -> None:
    """On a thread for each connection, until it has said which rank it is; one that is none is closed."""
    try:
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        with connection.makefile("rb", buffering=0) as lines:  # which reads no further than the line
            hello = msgspec.json.decode(lines.readline(_LONGEST_HELLO), type=_Hello)
        if secrets.compare_digest(hello.token.encode(), token.encode()):
            found.put((hello, connection))
            return
    except (OSError, ValueError):  # it said nothing, or broke: a rank would be missed
        pass
    connection.close()


def _kept_alive(connection: socket.socket) -> socket.socket:
    """With a deadline for sending and none for reading; the system notices by itself when a host is gone."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_S, 0))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in _KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    if (user_timeout := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:
        connection.setsockopt(socket.IPPROTO_TCP, user_timeout, _USER_TIMEOUT_MS)
    return connection
