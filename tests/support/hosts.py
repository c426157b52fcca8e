"""Hosts of a test: network namespaces on a switch of our own, which can delay and lose frames. Needs root.

Nothing leaves the machine: the namespaces have no way out.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from common.parent import die_with_parent

ROOT = Path(__file__).parents[2]
_PACKET, _VNET_HEADER, _OUTGOING, _ALL = 263, 15, 4, 3  # SOL_PACKET, PACKET_VNET_HDR, PACKET_OUTGOING, ETH_P_ALL


class Host:
    """One namespace, with interface ``eth0`` and address ``10.77.0.N``."""

    def __init__(self, space: str, address: str) -> None:
        self.space, self.address = space, address
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.space, *command],
                cwd=ROOT, env={**os.environ, **environment, "LRPO_HOST": self.address, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                preexec_fn=die_with_parent,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def link(self, state: str) -> None:
        """Pulls the plug with ``down`` and puts it back with ``up``."""
        _ip("-n", self.space, "link", "set", "eth0", state)

    def sent_bytes(self) -> int:
        """How many bytes have left it so far, by the kernel's counter of its interface."""
        [found] = json.loads(_ip("-n", self.space, "-s", "-j", "link", "show", "eth0"))
        return int(found["stats64"]["tx"]["bytes"])

    def pids(self) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.space).split()]

    def kill(self) -> None:
        """All its processes, at once."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(10)


@contextmanager
def network(count: int, delay_s: float = 0.0, loss: float = 0.0) -> Iterator[list[Host]]:
    """Hosts that reach each other; each frame takes ``delay_s`` and is lost with probability ``loss``.

    Skips the test where namespaces are forbidden.
    """
    name = f"lrpo{os.getpid()}"
    hosts = [Host(f"{name}-{n}", f"10.77.0.{n}") for n in range(1, count + 1)]
    try:
        try:
            for space in (name, *(host.space for host in hosts)):
                _ip("netns", "add", space)
            for n, host in enumerate(hosts, start=1):
                _ip("link", "add", "eth0", "netns", host.space, "type", "veth", "peer", "name", f"p{n}", "netns", name)
                _ip("-n", name, "link", "set", f"p{n}", "up")
                for interface in ("lo", "eth0"):
                    _ip("-n", host.space, "link", "set", interface, "up")
                _ip("-n", host.space, "address", "add", f"{host.address}/24", "dev", "eth0")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', '') or error}")
        command = [sys.executable, "-m", "tests.support.hosts", str(count), str(delay_s), str(loss)]
        switch = subprocess.Popen(
            ["ip", "netns", "exec", name, *command], cwd=ROOT, stdout=subprocess.PIPE, preexec_fn=die_with_parent
        )
        assert switch.stdout is not None and switch.stdout.readline() == b"ready\n"
        yield hosts
        assert switch.poll() is None, "the switch has died"
        switch.kill()
        switch.wait()
    finally:
        for space in (*(host.space for host in hosts), name):
            with suppress(subprocess.CalledProcessError, OSError):
                Host(space, "").kill()
                _ip("netns", "delete", space)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def switch(ports: int, delay_s: float, loss: float) -> None:
    """Passes Ethernet frames between ``p1`` … ``pN``; headers for offloads travel along, so checksums stay right."""
    sockets = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)) for _ in range(ports)]
    for n, port in enumerate(sockets, start=1):
        port.setsockopt(_PACKET, _VNET_HEADER, 1)
        port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        port.bind((f"p{n}", 0))
        port.setblocking(False)
    print("ready", flush=True)
    known: dict[bytes, socket.socket] = {}
    waiting: list[tuple[float, int, bytes, list[socket.socket]]] = []
    numbers = itertools.count()
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for port in select.select(sockets, [], [], patience)[0]:
            with suppress(OSError):  # its host's link is down
                while True:
                    data, (_, _, kind, _, _) = port.recvfrom(1 << 17)
                    if kind == _OUTGOING or random.random() < loss:
                        continue
                    known[data[16:22]] = port  # after a header of 10 bytes: destination, source
                    to = known.get(data[10:16])
                    out = [to] if to else [other for other in sockets if other is not port]
                    heapq.heappush(waiting, (time.monotonic() + delay_s, next(numbers), data, out))
        while waiting and waiting[0][0] <= time.monotonic():
            *_, data, out = heapq.heappop(waiting)
            for port in out:
                with suppress(OSError):
                    port.send(data)


if __name__ == "__main__":
    switch(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
