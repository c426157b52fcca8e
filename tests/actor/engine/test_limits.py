"""Engines that weight updates or seeds cannot reach are refused by name, before anything hangs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.request import proxy_bypass

import pytest

from actor.engine.client import Engine
from actor.engine.fleet import EngineFleet
from actor.engine.nccl import environment_of_server
from actor.engine.server import _environment, _gpu_flags
from common import wire
from common.config import load
from common.nccl import nccl_settings, set_nccl_defaults
from common.process import FatalError

_SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


class Answers(Engine):
    """An engine whose server answers ``/server_info`` so, and any other route with nothing."""

    def __init__(self, url: str = "http://127.0.0.1:1", /, **info: Any) -> None:
        self.info, self.called = {"tp_size": 1, **info}, list[str]()
        super().__init__(url, None, 1.0, "retract")  # type: ignore[arg-type]  # there is no HTTP here

    async def call(self, route: str, body: Any, timeout_s: float, *, missing_ok: bool = False) -> Any:
        self.called.append(route)
        return self.info if route == "/server_info" else {}


@pytest.fixture
def url() -> Iterator[str]:
    """Of a server whose environment switches one of NCCL's settings on."""
    environment = {**os.environ, "NCCL_CUMEM_ENABLE": "1"}
    environment.pop("NCCL_NVLS_ENABLE", None)
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.communicate()


def join(backend: str = "nccl", **settings: str) -> wire.Join:
    return wire.Join(
        group="g", host="h", port=1, world=2, backend=backend, timeout_s=1.0,
        nccl={"NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "0"} | settings,
    )  # fmt: skip


def test_an_engine_with_other_settings_of_nccl_is_refused_by_name(url: str) -> None:
    environment = environment_of_server(url)
    assert environment is not None and environment["NCCL_CUMEM_ENABLE"] == "1"
    wanted = "it has NCCL_CUMEM_ENABLE=1, the learner NCCL_CUMEM_ENABLE=0"
    with pytest.raises(FatalError, match=wanted) as error:
        asyncio.run(Answers(url).join_group(join()))
    assert url in str(error.value)
    for other in (join(NCCL_CUMEM_ENABLE="1"), join("gloo")):
        engine = Answers(url)
        asyncio.run(engine.join_group(other))
        assert engine.called[-1] == "/init_weights_update_group"


def test_flags_of_an_engine_come_before_its_environment(url: str) -> None:
    with pytest.raises(FatalError, match="NCCL_CUMEM_ENABLE=1 and NCCL_NVLS_ENABLE=1"):
        asyncio.run(Answers(enable_symm_mem=True).join_group(join()))
    with pytest.raises(FatalError, match="it has NCCL_NVLS_ENABLE=1, the learner NCCL_NVLS_ENABLE=0"):
        asyncio.run(Answers(url, enable_nccl_nvls=True).join_group(join(NCCL_CUMEM_ENABLE="1")))


def test_what_cannot_be_seen_is_not_guessed() -> None:
    assert environment_of_server("http://192.0.2.1:30000") is None
    assert environment_of_server("http://127.0.0.1:1") is None
    asyncio.run(Answers("http://192.0.2.1:30000").join_group(join()))


def test_settings_of_nccl_are_those_of_the_user_or_what_sglang_takes() -> None:
    environment = {"NCCL_CUMEM_ENABLE": "1"}
    set_nccl_defaults(environment)
    assert environment == {"NCCL_CUMEM_ENABLE": "1", "NCCL_NVLS_ENABLE": "0"} == nccl_settings(environment)
    assert nccl_settings({}) == {"NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "0"}


@pytest.mark.parametrize(("name", "kind"), [("pp_size", "pipeline"), ("dp_size", "data")])
def test_an_engine_whose_ranks_no_update_reaches_is_refused(name: str, kind: str) -> None:
    with pytest.raises(FatalError, match=rf"is {kind}-parallel \({name} = 2\)"):
        asyncio.run(Answers(**{name: 2}).recover(1.0))
    engine = Answers(**{name: 1}, tp_size=4)
    asyncio.run(engine.recover(1.0))
    assert engine.ranks == 4


class Sampled(Answers):
    """Keeps what it is asked to sample by, and answers with one token to each prompt."""

    asked: Any = None

    async def call(self, route: str, body: Any, timeout_s: float, *, missing_ok: bool = False) -> Any:
        if route != "/generate":
            return await super().call(route, body, timeout_s, missing_ok=missing_ok)
        self.asked = body["sampling_params"]
        meta = {"finish_reason": {"type": "stop"}, "output_token_logprobs": [[-1.0, 7, None]]}
        return [{"output_ids": [7], "meta_info": meta}] * len(body["input_ids"])


def test_each_answer_has_its_seed_where_the_engine_samples_by_seeds() -> None:
    async def asked(draws: object, **info: Any) -> Any:
        engine = Sampled(**info)
        await engine.recover(1.0)
        await engine.generate([[5, 6]] * 8, {"temperature": 0.5}, draws)
        return engine.asked

    assert asyncio.run(asked("a"))["temperature"] == 0.5, "one for all"
    one, again, other = (
        [one["sampling_seed"] for one in asyncio.run(asked(draws, enable_deterministic_inference=True))]
        for draws in ((0, "train-1"), (0, "train-1"), (1, "train-1"))
    )
    assert one == again and len({*one, *other}) == 16 and all(0 <= seed < 2**31 for seed in one)


def test_engines_behind_a_router_must_not_sample_by_seeds() -> None:
    fleet = EngineFleet(["http://127.0.0.1:1"], "http://127.0.0.1:2", None, 1.0, "retract")  # type: ignore[arg-type]
    info = {"tp_size": 1, "enable_deterministic_inference": True}
    fleet._engines = [Answers(**info)]
    with pytest.raises(FatalError, match="a router passes one seed on for all answers of a group"):
        asyncio.run(fleet.recover(1.0))


def test_cuda_graphs_are_for_all_answers_in_flight() -> None:
    config = load(["--actor.groups_in_flight", "64", "--router.rollouts", "8"])
    assert _gpu_flags(config) == {"cuda-graph-max-bs-decode": 512}


def test_an_engine_reaches_itself_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for given in ("", ".corp", "*"):
        monkeypatch.setenv("NO_PROXY", given)
        environment = _environment(on_gpu=False, with_adapters=False)
        told = {"no": environment.get("no_proxy") or environment["NO_PROXY"], "http": "http://proxy.example:3128"}
        assert proxy_bypass("127.0.0.1", told) and proxy_bypass("localhost", told)
        assert bool(proxy_bypass("a.corp", told)) == (given != "")
