"""Through a proxy goes what is on the internet, and nothing of our own."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from common.net.proxies import may_use_proxy

_NAMES = {
    "judge.example": ["93.184.216.34"],
    "judge.company.example": ["10.1.2.3", "fd00::1"],
    "both.company.example": ["10.1.2.3", "93.184.216.34"],
}
_INNER = [
    "127.0.0.1", "127.9.9.9", "::1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.1.1", "fe80::1%eth0", "fd00::1",
    "100.64.0.3", "0.0.0.0", "::ffff:10.1.2.3", "localhost", "judge", "gpu-node17", "judge.localhost", "judge.local",
    "judge.lrpo.svc", "judge.lrpo.svc.cluster.local", "metadata.google.internal", "gpu-node17.corp", "GPU.CORP.",
    "judge.company.example",
]  # fmt: skip
_OUTER = [
    "8.8.8.8",
    "2606:4700::1111",
    "judge.example",
    "both.company.example",
    "unknown.example",
    f"{'a' * 70}.example",
]


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were looked up; no proxy is set."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    asked = list[str]()

    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        if host not in _NAMES:
            host.encode("idna")
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in _NAMES[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"])
def test_hosts_of_our_own_are_told_from_those_of_the_internet(
    variable: str, looked_up: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://10.0.0.1:3128")
    assert [host for host in _INNER if may_use_proxy(host)] == []
    assert [host for host in _OUTER if not may_use_proxy(host)] == []
    assert set(looked_up) == {name for name in (*_INNER, *_OUTER) if name.endswith(".example")}, "and no other"


def test_without_a_proxy_nothing_is_looked_up(looked_up: list[str]) -> None:
    assert not any(may_use_proxy(host) for host in (*_INNER, *_OUTER)) and not looked_up
