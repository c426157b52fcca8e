"""How the ranks of several machines find each other, and what is said where they cannot."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from common.config import LearnerConfig
from common.process import FatalError
from learner import launch


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_LOOK_UP_S", 0.5)
    monkeypatch.setattr(launch, "_LOOK_UP_POLL_S", 0.05)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of this machine that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def config(torchrun: str, address: str = "tcp://127.0.0.1:5700") -> LearnerConfig:
    return LearnerConfig(nodes=2, ranks=1, address=address, torchrun=torchrun)


@pytest.mark.parametrize("host", ["nowhere.invalid", f"{'long' * 30}.invalid"])
def test_a_host_that_nobody_knows_is_named_with_its_setting(host: str) -> None:
    with pytest.raises(FatalError, match=rf"^learner\.torchrun = {host}:29400: this machine finds no address for the"):
        launch.launch("learner", config(f"{host}:29400"), [])
    with pytest.raises(FatalError, match=rf"^learner\.address = tcp://{host}:5700: .* the host '{host}'"):
        launch.launch("learner", config("127.0.0.1:29400", f"tcp://{host}:5700"), [])


def test_a_host_may_get_its_name_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pod of a Kubernetes job may have its address after the second one."""
    look_up, asked = socket.gethostbyname, list[str]()

    def later(host: str) -> str:
        asked.append(host)
        if host != "first.pod":
            return look_up(host)
        if asked.count(host) < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return "127.0.0.1"

    monkeypatch.setattr(socket, "gethostbyname", later)
    assert "--rdzv-conf=is_host=True" in launch._on_many_machines(config("first.pod:29400"))
    assert asked.count("first.pod") == 3


def test_a_meeting_place_that_cannot_be_opened_is_one_line(taken: int) -> None:
    with pytest.raises(FatalError, match=rf"^learner\.torchrun = 127\.0\.0\.1:{taken}: the learner nodes cannot meet"):
        launch.launch("learner", config(f"127.0.0.1:{taken}"), [])
