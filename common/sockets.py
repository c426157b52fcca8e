"""ZeroMQ ROUTER and DEALER with the limits every lrpo socket has.

High-water marks bound nothing by themselves; leases and acknowledgements do. So sockets here never block on sending,
refuse messages over ``MAX_MESSAGE_BYTES`` and close at once.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import zmq

from common.process import FatalError
from common.wire import MAX_MESSAGE_BYTES

_LOOPBACK = ("127.", "localhost", "[::1]")


def check_address(address: str) -> None:
    """Refuses what is not ``tcp://HOST:PORT`` on loopback or ``ipc://PATH``.

    Raises:
        FatalError: the address is malformed, or would carry prompts and answers unencrypted over a network.
    """
    if address.startswith("ipc://"):
        return
    parts = urlsplit(address)
    try:
        complete = parts.scheme == "tcp" and parts.hostname and parts.port
    except ValueError:
        complete = False
    if not complete:
        raise FatalError(f"address {address!r} is not of the form tcp://HOST:PORT")
    if not parts.netloc.startswith(_LOOPBACK):
        raise FatalError(
            f"address {address!r} is not loopback: the sockets are neither encrypted nor authenticated. "
            "Use 127.0.0.1, over an ssh tunnel between machines"
        )


def _limit(socket: Any) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)


def bind(context: zmq.Context[Any], address: str) -> zmq.Socket[bytes]:
    """A ROUTER socket that serves ``address``.

    Raises:
        FatalError: the address is taken or not ours.
    """
    check_address(address)
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    _limit(socket)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a restarted peer may reconnect under its name
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close()
        raise FatalError(f"cannot listen on {address}: {error}. Is another run using it?") from None
    return socket


def connect(context: zmq.Context[Any], address: str, identity: str = "") -> Any:
    """A DEALER socket to ``address``; of an asyncio context it is an asyncio socket."""
    check_address(address)
    socket = context.socket(zmq.DEALER)
    _limit(socket)
    if identity:
        socket.setsockopt(zmq.IDENTITY, identity.encode())
    socket.connect(address)
    return socket
