"""How the processes of a run find each other: a directory that all hosts see, with a small file for each service.

The files ``learner.json``, ``reward-0.json``, … hold address, public key, and how often the service has started. A
client waits for the file of the service that it needs, and reads it again when the service falls silent, because the
service may run on another host by then. Without ``run.rendezvous`` nothing is written, and the configured addresses
hold.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import psutil
import zmq
from pydantic import BaseModel, ConfigDict, ValidationError

from common.config import RunConfig
from common.net import sockets
from common.process import FatalError
from common.wire import MAX_MESSAGE_BYTES, AnyMessage, WireError, encode

log = logging.getLogger("rendezvous")

_POLL_S = 0.25
_MOST_MIB = MAX_MESSAGE_BYTES >> 20
_WILDCARDS = ("0.0.0.0", "*")


class Place(BaseModel):
    """Where a service is: the content of its file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    key: str = ""  # public CURVE key; empty when it has none
    run: str = ""  # its run.dir
    life: int = 0  # how often the service has started
    over: bool = False  # it has ended, and there is nothing left to do for those who use it


def reachable(address: str) -> str:
    """The address as other hosts reach it. A wildcard host is replaced by ``LRPO_HOST``, or by this host's own address.

    Raises:
        FatalError: this host's name resolves to loopback, or does not resolve to an IPv4 address.
    """
    parts = urlsplit(address)
    if parts.hostname not in _WILDCARDS:
        return address
    name = os.environ.get("LRPO_HOST") or socket.gethostname()
    if ":" in name:
        raise FatalError(
            f"LRPO_HOST = {name!r} is an IPv6 address, and lrpo speaks IPv4: give an IPv4 address, or a name that "
            "stands for one"
        )
    try:
        host = socket.gethostbyname(name)
    except OSError:
        host = ""
    if not host or host.startswith("127."):
        raise FatalError(
            f"other hosts cannot reach {address}: the name {name!r} of this one means {host or 'nothing'}. "
            "Set LRPO_HOST to its address"
        )
    return f"tcp://{host}:{parts.port}"


def host_of(address: str) -> str:
    """The host part of a ZeroMQ address, as other hosts reach it; loopback for ``ipc:``."""
    return "127.0.0.1" if address.startswith("ipc:") else str(urlsplit(reachable(address)).hostname)


def use_interface(host: str) -> None:
    """Makes gloo use the network interface that leads to ``host``. By default it takes the one of this host's name.

    Raises:
        FatalError: no interface leads there.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # of a datagram socket: sends nothing
        except OSError as error:
            raise FatalError(f"no network interface of this host leads to {host}: {error}") from None
        own = probe.getsockname()[0]
    names = [name for name, has in psutil.net_if_addrs().items() if own in (one.address for one in has)]
    if names and not own.startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0])


def announce(run: RunConfig, name: str, address: str) -> Place | None:
    """Writes the file of a service of this run, and returns its content; None without ``run.rendezvous``.

    Raises:
        FatalError: the file cannot be written, or other hosts cannot reach the address.
    """
    if run.rendezvous is None:
        return None
    path = run.rendezvous / f"{name}.json"
    before = _read(path, run)
    life = before.life + 1 if before else 1
    place = Place(address=reachable(address), key=sockets.server_key(), run=str(run.dir), life=life)
    try:
        _write(path, place)
    except OSError as error:
        raise FatalError(f"cannot write {path} (run.rendezvous): {error.strerror}") from None
    return place


def find(run: RunConfig, name: str) -> Place | None:
    """What the file of a service of this run says now; None without ``run.rendezvous``, or if there is no file.

    Raises:
        FatalError: the file is unreadable or of another run.
    """
    return _read(run.rendezvous / f"{name}.json", run) if run.rendezvous else None


def retire(run: RunConfig, name: str, place: Place | None) -> None:
    """Notes that a service has ended for good, so that those who come later need not wait for it.

    Does nothing without a rendezvous, or if another process has announced itself as this service since. A file that
    cannot be written is logged: nobody depends on it.
    """
    if run.rendezvous is None or place is None:
        return
    path = run.rendezvous / f"{name}.json"
    try:
        if _read(path, run) == place:
            _write(path, place.model_copy(update={"over": True}))
    except (OSError, FatalError) as error:
        log.warning("cannot note in %s that the run is over: %s", path, error)


def confirm(run: RunConfig, name: str, place: Place | None) -> None:
    """Makes sure that this process is still the one that the file of its service names.

    Raises:
        FatalError: another process has announced itself as the same service since.
    """
    now = find(run, name)
    if None not in (now, place) and now != place:
        raise FatalError(f"another {name} of this run has started since and has taken over: {run.rendezvous}")


class Route:
    """Finds one service, and connects to it again when it has moved.

    The constructor blocks until the service's file exists, at most ``timeout_s`` seconds. Without a rendezvous the
    service is at the address ``fixed``.

    Raises:
        FatalError: the file does not appear in time, is unreadable or of another run, or its address needs keys.
    """

    def __init__(self, run: RunConfig, name: str, fixed: str, timeout_s: float) -> None:
        self._run, self._name = run, name
        self._path = run.rendezvous / f"{name}.json" if run.rendezvous else None
        self.place, self.socket = Place(address=fixed), cast(Any, None)  # a DEALER socket once ``connect`` was called
        deadline = time.monotonic() + timeout_s
        while self._path is not None and (found := _read(self._path, run)) is None:
            if time.monotonic() > deadline:
                raise FatalError(
                    f"{self._path} did not appear within actor.start_timeout_s = {timeout_s:.0f} s: has the {name} "
                    "started, with the same run.rendezvous, and does this host see that directory?"
                )
            time.sleep(_POLL_S)
        if self._path is not None and found is not None:
            self.place = found
        sockets.check_address(self.place.address)

    def connect(self, context: Any, identity: str = "") -> None:
        """Opens ``socket``; ``identity`` is the name by which the service will know this client."""
        self.socket = sockets.connect(context, self.place.address, identity, self.place.key)

    async def send(self, message: AnyMessage) -> None:
        """Sends a message; the socket must be an asyncio one.

        Raises:
            FatalError: the service does not admit us.
            WireError: the message is larger than the service takes.
        """
        data = encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            raise WireError(f"a message of {len(data) / 2**20:.0f} MiB, and the {self._name} takes {_MOST_MIB} at most")
        try:
            await self.socket.send(data)
        except zmq.Again:
            raise FatalError(
                f"the {self._name} at {self.place.address} takes no messages: is LRPO_KEYS the same here?"
            ) from None

    def look(self) -> Place | None:
        """What the service's file says now; None without a rendezvous, or if there is no file.

        Blocks for as long as the file system does, so not on an event loop; any thread may call it.

        Raises:
            FatalError: the file is unreadable or of another run.
        """
        return _read(self._path, self._run) if self._path is not None else None

    def follow(self, place: Place | None) -> bool:
        """Connects to the service again if ``place``, from ``look``, says that it has started anew, perhaps elsewhere.

        Returns:
            Whether it has.
        """
        if place is None or place.over or place == self.place:
            return False
        sockets.check_address(place.address)
        self.reconnect(place)
        return True

    def reconnect(self, place: Place | None = None) -> None:
        """Connects anew, to ``place`` if one is given. Messages that were on their way, or waited for it, are lost."""
        self.socket.disconnect(self.place.address)
        self.place = place or self.place
        if self.place.key:
            self.socket.curve_serverkey = self.place.key.encode()
        self.socket.connect(self.place.address)


def _write(path: Path, place: Place) -> None:
    partial = path.with_suffix(f".{socket.gethostname()}-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(place.model_dump_json(), encoding="utf-8")
    partial.replace(path)


def _read(path: Path, run: RunConfig) -> Place | None:
    try:
        place = Place.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:  # it is not there yet, or the shared file system is away for a moment
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        raise FatalError(f"{path} is not a rendezvous file: {error}. Delete it and start the run again") from None
    if place.run != str(run.dir):
        raise FatalError(f"{path} is of run.dir = {place.run}, not {run.dir}: give each run its own run.rendezvous")
    return place
