"""An engine that has other weights than it was given is recognised in every answer, also behind a router."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from actor.engine.client import Engine
from actor.engine.errors import EngineError, EngineLost, EngineReplaced, RequestRefused
from actor.engine.fleet import EngineFleet
from actor.engine.labels import ForeignWeights, WeightLabels
from actor.engine.readiness import make_http_session
from common import wire

PROBE = wire.Probe(ids=np.zeros(2, np.int32), logprobs=np.zeros(1, np.float32), tolerance=1.0)
SAMPLING = {"temperature": 1.0, "max_new_tokens": 4}


class Server:
    """What the client uses of SGLang: every answer has four tokens, made with the weights of now."""

    def __init__(self, label: str = "default") -> None:
        self.started_with = self.label = label
        self.spans: list[str] = []  # labels of the tokens of the next answers, instead of the one of now
        self.status = 200
        self.server: TestServer | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return str(self.server.make_url("")).rstrip("/")

    async def start(self) -> None:
        app = web.Application()
        for route in ("pause_generation", "continue_generation", "flush_cache", "end_weight_update"):
            app.router.add_post(f"/{route}", self._done)
        app.router.add_post("/update_weights_from_disk", self._update)
        app.router.add_post("/generate", self._generate)
        app.router.add_get("/model_info", self._info)
        self.server = TestServer(app)
        await self.server.start_server()

    def restart(self) -> None:
        """What a supervisor does: the same address, and the weights of the beginning."""
        self.label = self.started_with

    async def _done(self, request: web.Request) -> web.Response:
        return web.json_response({"success": True})

    async def _update(self, request: web.Request) -> web.Response:
        self.label = (await request.json())["weight_version"]
        return web.json_response({"success": True})

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.label, "model_path": "/model"})

    async def _generate(self, request: web.Request) -> web.Response:
        if self.status != 200:
            return web.json_response({"error": {"message": "it is too long"}}, status=self.status)
        body = await request.json()
        labels = self.spans or [self.label] * 4
        meta = {
            "finish_reason": {"type": "stop"}, "weight_version": labels[-1],
            "output_token_logprobs": [[-0.5, 7, None]] * 4, "input_token_logprobs": [[None, 0, None], [0.0, 0, None]],
            "weight_versions": [{"version": one, "start": n, "end": n + 1} for n, one in enumerate(labels)],
        }  # fmt: skip
        one = {"output_ids": [7] * 4, "meta_info": meta}
        return web.json_response(one if "logprob_start_len" in body else [one])


def order(version: int) -> wire.Receive:
    return wire.Receive(group="", path="/weights", version=version, buckets=[], probe=PROBE, timeout_s=60)


def play(scene: Callable[[Server, Engine], Awaitable[None]], label: str = "default") -> None:
    async def run() -> None:
        server = Server(label)
        await server.start()
        async with make_http_session() as http:
            await scene(server, Engine(server.url, http, 60, "in_place"))
        assert server.server is not None
        await server.server.close()

    asyncio.run(asyncio.wait_for(run(), 120))


def versions(answer: Any) -> list[int]:
    return [int(version) for version in answer[0].versions]


@pytest.mark.parametrize("label", ["default", "0", "7", ""])
def test_an_engine_started_again_by_its_own_supervisor_is_not_ours_whatever_it_is_called(label: str) -> None:
    async def scene(server: Server, engine: Engine) -> None:
        await engine.check_identity(60)  # before the first weights any are right
        await engine.receive_weights(order(0))
        assert versions(await engine.generate([[3]], SAMPLING)) == [0] * 4
        await engine.receive_weights(order(7))
        assert versions(await engine.generate([[3]], SAMPLING)) == [7] * 4
        await engine.check_identity(60)
        assert await engine.measure_probe_error(PROBE, 60) == 0
        server.restart()
        for call in (
            engine.generate([[3]], SAMPLING),
            engine.check_identity(60),
            engine.measure_probe_error(PROBE, 60),
        ):
            with pytest.raises(EngineReplaced, match="has not given it"):
                await call

    play(scene, label)


def test_weights_of_another_actor_and_older_ones_are_not_ours() -> None:
    async def scene(server: Server, engine: Engine) -> None:
        other = Engine(engine.url, engine._http, 60, "in_place")
        await engine.receive_weights(order(3))
        old = server.label
        await other.receive_weights(order(3))  # the same version, given by somebody else
        with pytest.raises(EngineReplaced, match="another actor uses it"):
            await engine.generate([[3]], SAMPLING)
        await engine.receive_weights(order(3))
        server.spans = [old, server.label, server.label, server.label]
        with pytest.raises(EngineReplaced, match="although newer ones had arrived"):
            await engine.generate([[3]], SAMPLING)
        server.spans = [server.label] * 3
        with pytest.raises(EngineReplaced, match="1 of 4 tokens"):
            await engine.generate([[3]], SAMPLING)

    play(scene)


def test_an_answer_may_span_weights_that_arrived_while_it_was_made() -> None:
    labels = WeightLabels()
    first = labels.make(4)
    labels.complete()
    second = labels.make(5)  # is on its way
    spans = [{"version": first, "start": 0, "end": 2}, {"version": second, "start": 2, "end": 5}]
    found = labels.read_versions({"weight_version": second, "weight_versions": spans}, 5, 4, labels.arrived)
    assert found.tolist() == [4, 4, 5, 5, 5]
    assert labels.read_versions({"weight_version": first}, 3, 4, 1).tolist() == [4, 4, 4], "SGLang before 0.5.19"
    with pytest.raises(ForeignWeights):
        labels.read_versions({"weight_version": "default"}, 3, 4, 1)


def test_one_engine_behind_a_router_that_was_started_again_ends_the_life() -> None:
    async def scene(_: Server, alone: Engine) -> None:
        servers = [Server(), Server()]
        for server in servers:
            await server.start()
        fleet = EngineFleet([server.url for server in servers], servers[1].url, alone._http, 60, "in_place")
        await fleet.receive_weights(order(2))
        assert servers[0].label == servers[1].label and await fleet.measure_probe_error(PROBE, 60) == 0
        await fleet.check_identity(60)
        servers[0].restart()  # generation goes to the other one
        assert versions(await fleet.generate([[3]], SAMPLING)) == [2] * 4
        for call in (fleet.check_identity(60), fleet.measure_probe_error(PROBE, 60)):
            with pytest.raises(EngineReplaced):
                await call
        servers[1].restart()
        with pytest.raises(EngineReplaced):
            await fleet.generate([[3]], SAMPLING)
        for server in servers:
            assert server.server is not None
            await server.server.close()

    play(scene)


def test_a_refusal_is_told_apart_from_a_failure_and_from_an_engine_that_is_gone() -> None:
    async def scene(server: Server, engine: Engine) -> None:
        server.status = 400
        with pytest.raises(RequestRefused, match="too long"):
            await engine.generate([[3]], SAMPLING)
        server.status = 503
        with pytest.raises(EngineError) as failure:
            await engine.generate([[3]], SAMPLING)
        assert type(failure.value) is EngineError
        assert server.server is not None
        await server.server.close()
        for call in (engine.generate([[3]], SAMPLING), engine.check_identity(60)):
            with pytest.raises(EngineLost, match="nothing listens"):
                await call

    play(scene)


@pytest.mark.parametrize(("start", "end"), [(-2, 4), (0, 5), (3, 2)])
def test_spans_outside_the_answer_are_not_read(start: int, end: int) -> None:
    """Python would count from the end of the answer, or cut, and the rest would seem to be said."""
    labels = WeightLabels()
    label = labels.make(3)
    labels.complete()
    whole = {"version": label, "start": 0, "end": 4}
    assert labels.read_versions({"weight_versions": [whole]}, 4, 3, 1).tolist() == [3] * 4
    strange = {"version": label, "start": start, "end": end}
    with pytest.raises(ForeignWeights, match=f"the tokens {start} to {end} of an answer of 4"):
        labels.read_versions({"weight_versions": [whole, strange]}, 4, 3, 1)
