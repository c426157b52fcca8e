"""ZeroMQ ROUTER and DEALER sockets with the limits that every socket of lrpo has.

Leases and acknowledgements bound what is in flight, and high-water marks would not: so these sockets have none. They
drop peers that send messages over ``MAX_MESSAGE_BYTES``, and close without waiting. With ``LRPO_KEYS``, a directory
that ``scripts/make_keys.sh`` makes, all traffic is encrypted and both ends prove who they are (CURVE). Without it, only
loopback addresses are allowed.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import zmq
from zmq.auth import load_certificate
from zmq.auth.thread import ThreadAuthenticator

from common.config import address_problem
from common.process import FatalError
from common.wire import MAX_MESSAGE_BYTES

_SEND_MS = 10_000
# Between two pings, and without a sign of life, which is a whole frame (``wire.FRAME_BYTES``). TCP alone would notice a
# vanished host after a quarter of an hour.
_PING_MS, _DEAD_MS = 2_000, 10_000


class _Router(zmq.Socket[bytes]):
    """A ROUTER socket that, when it closes, also ends the thread that authenticates its clients."""

    guard: ThreadAuthenticator | None = None

    def close(self, linger: int | None = None) -> None:
        super().close(linger)
        if self.guard is not None:
            self.guard.stop()
            self.guard = None


def check_address(address: str) -> None:
    """Accepts ``ipc://PATH`` and ``tcp://HOST:PORT``; without keys, the host must be loopback.

    Raises:
        FatalError: the address is malformed, or would carry prompts and answers unencrypted over a network.
    """
    if problem := address_problem(address):
        raise FatalError(f"address {address!r} {problem}")
    if address.startswith("ipc://"):
        return
    if not _is_loopback(str(urlsplit(address).hostname)) and _keys() is None:
        raise FatalError(
            f"address {address!r} is not loopback, and there are no keys to encrypt and authenticate with: "
            "make them with scripts/make_keys.sh DIR and set LRPO_KEYS=DIR for every process"
        )


def check_keys(addresses: Iterable[str], *, serves: bool, asks: bool) -> None:
    """Makes sure that the processes of a run will find the keys that their addresses need.

    Args:
        addresses: of the services of the run.
        serves: whether the processes include a service, which needs the whole directory.
        asks: whether they include an actor.

    Raises:
        FatalError: an address is malformed or needs keys, and there are none; or a key is missing or is none.
    """
    for address in addresses:
        check_address(address)
    if (keys := _keys()) is None:
        return
    for name in ["server.key", "clients/actor.key"] if serves else []:
        _load(keys / name)
    for name in (["server.key_secret"] if serves else []) + (["clients/actor.key_secret"] if asks else []):
        _load_pair(keys / name)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _keys() -> Path | None:
    return Path(os.environ["LRPO_KEYS"]) if os.environ.get("LRPO_KEYS") else None


def _identify(socket: Any, certificate: Path) -> None:
    socket.curve_publickey, socket.curve_secretkey = _load_pair(certificate)


def _load_pair(certificate: Path) -> tuple[bytes, bytes]:
    public, secret = _load(certificate)
    if secret is None:
        raise FatalError(f"cannot use the key {certificate} of LRPO_KEYS: it holds no secret key")
    return public, secret


def _load(certificate: Path) -> tuple[bytes, bytes | None]:
    try:
        return load_certificate(certificate)
    except (OSError, ValueError) as error:
        raise FatalError(f"cannot use the key {certificate} of LRPO_KEYS: {error}") from None


def _limit(socket: Any) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _PING_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _DEAD_MS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, _DEAD_MS)


def bind(context: zmq.Context[Any], address: str) -> zmq.Socket[bytes]:
    """A ROUTER socket that listens on ``address``.

    Raises:
        FatalError: the address is taken, or does not belong to this host.
    """
    check_address(address)
    socket: _Router = context.socket(zmq.ROUTER, socket_class=_Router)
    _limit(socket)
    if (keys := _keys()) is not None:
        _identify(socket, keys / "server.key_secret")
        socket.curve_server = True
        socket.guard = ThreadAuthenticator(context)
        socket.guard.start()
        socket.guard.configure_curve(domain="*", location=keys / "clients")
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a peer that has restarted may connect again under its name
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close()
        raise FatalError(
            f"cannot listen on {address}: {error}. Is another run using it? Then give this one "
            "another learner.address or reward.addresses"
        ) from None
    return socket


def server_key() -> str:
    """The public key of the servers, which clients must know; empty without ``LRPO_KEYS``."""
    keys = _keys()
    return _load(keys / "server.key")[0].decode() if keys is not None else ""


def connect(context: zmq.Context[Any], address: str, identity: str = "", key: str = "") -> Any:
    """A DEALER socket that is connected to ``address``. It is an asyncio socket if ``context`` is an asyncio context.

    Args:
        identity: the name by which the server knows this client.
        key: public key of the server; empty means the one in ``LRPO_KEYS``.

    Raises:
        FatalError: the address is not allowed, a key file cannot be used, or the server has a key and we have none.
    """
    check_address(address)
    socket = context.socket(zmq.DEALER)
    _limit(socket)
    socket.setsockopt(
        zmq.SNDTIMEO, _SEND_MS
    )  # else sending to a server that does not admit our key would block for ever
    if (keys := _keys()) is not None:
        _identify(socket, keys / "clients" / "actor.key_secret")
        socket.curve_serverkey = (key or server_key()).encode()
    elif key:
        raise FatalError(
            f"{address} accepts only clients with keys: set LRPO_KEYS to the directory that holds clients/"
        )
    if identity:
        socket.setsockopt(zmq.IDENTITY, identity.encode())
    socket.connect(address)
    return socket
