"""Adapters in an engine: what is loaded, when it is used and proved, and what becomes of those before it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import AutoModelForCausalLM

from actor.adapters import AdapterUpdates
from actor.engine.adapters import describe_misfit
from actor.engine.client import Engine
from actor.engine.errors import EngineError, EngineReplaced, RequestRefused
from actor.engine.fleet import EngineFleet
from actor.engine.generation import Generation
from actor.engine.readiness import make_http_session
from actor.engine.start import open_engine
from common import wire
from common.config import LoraConfig, SyncConfig, load
from common.process import FatalError
from learner.train.lora import Adapters, merge
from tests.support.processes import forked
from tests.support.routers import engines, sglang_router, stand_in

LIGHT = Path(__file__).parents[1] / "support" / "light"
PATIENCE_S = 300.0  # on a busy machine
PROMPT = [1, 7, 8, 9]
LORA = LoraConfig(rank=4, alpha=8)
FLAGS = ["--lora.rank", "4", "--lora.alpha", "8"]
LIVES = wire.Lives("actor", "learner")


class Versions:
    """Policies that differ by their adapters: what the learner would send of each, and what each says.

    Args:
        model: directory of the frozen weights.
    """

    def __init__(self, model: Path) -> None:
        self._plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        changed = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._adapters = Adapters(changed, LORA, 0)
        self._policies: dict[int, Any] = {}
        self.config = json.dumps(self._adapters.peft_config(str(model)))

    def make(self, version: int) -> dict[str, Tensor]:
        """The tensors of a new adapter, far from those before it."""
        policy = AutoModelForCausalLM.from_config(self._plain.config).eval()
        policy.load_state_dict(self._plain.state_dict())
        tensors = {}
        with torch.no_grad():
            for name, layer in self._adapters.layers.items():
                a, b = 0.3 * torch.randn_like(layer.lora_A), 0.3 * torch.randn_like(layer.lora_B)
                weight = policy.get_parameter(f"{name}.weight")
                weight.copy_(merge(weight, a, b, layer.scale))
                tensors[f"base_model.model.{name}.lora_A.weight"] = a
                tensors[f"base_model.model.{name}.lora_B.weight"] = b
        self._policies[version] = policy
        return tensors

    def order(self, version: int, tensors: dict[str, Tensor] | None = None) -> wire.LoadAdapter:
        data = save(self.make(version) if tensors is None else tensors)
        ids = torch.randint(3, 320, (30,))
        probe = wire.Probe(ids=ids.numpy().astype(np.int32), logprobs=self.logprobs(version, ids), tolerance=1e-4)
        return wire.LoadAdapter(
            version=version, config=self.config, data=data, path="", sha256=hashlib.sha256(data).hexdigest(),
            probe=probe, timeout_s=PATIENCE_S,
        ).of(LIVES)  # fmt: skip

    @torch.no_grad()
    def logprobs(self, version: int, ids: Tensor, temperature: float = 1.0) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Log-probabilities of all tokens but the first."""
        policy = self._policies.get(version, self._plain)
        table = (policy(ids[None]).logits[0] / temperature).log_softmax(-1)
        return cast("np.ndarray[Any, np.dtype[np.float32]]", table[range(len(ids) - 1), ids[1:]].numpy())

    def distance(self, answer: Generation, version: int, temperature: float) -> float:
        """Mean absolute difference of an answer's log-probabilities from those of a version, in nats."""
        ids = torch.tensor([*PROMPT, *answer.ids.tolist()])
        wanted = self.logprobs(version, ids, temperature)[len(PROMPT) - 1 :]
        return float(np.abs(answer.logprobs - wanted).mean())


@pytest.fixture(scope="module")
def versions(tiny_policy: Path) -> Versions:
    return Versions(tiny_policy)


class Updates(AdapterUpdates):
    """The updates of an engine, with a learner that writes down what it is told."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.sent: list[wire.Joined | wire.Synced] = []

        async def receive(message: wire.Joined | wire.Synced) -> None:
            self.sent.append(message)

        super().__init__(engine, receive, SyncConfig(directory=directory), PATIENCE_S)

    async def load(self, order: wire.LoadAdapter) -> None:
        """Returns when the adapter is in use, and what is idle is unloaded; it may have yet to be proved."""
        before = len(self.sent)
        self.take_order(order)
        await self.until(lambda: len(self.sent) > before)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.01)


def play(updates: Updates, scene: Callable[[], Awaitable[None]]) -> Awaitable[None]:
    """Plays a scene beside the running updates, whose error it raises."""

    async def run() -> None:
        running, playing = asyncio.create_task(updates.run()), asyncio.ensure_future(scene())
        await asyncio.wait([running, playing], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            playing.cancel()
            await running
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await playing

    return run()


# -- with an engine ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["light", pytest.param("sglang", marks=pytest.mark.slow)])
def test_answers_keep_their_adapter_and_new_ones_use_the_newest(
    kind: str, tiny_policy: Path, tmp_path: Path, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three updates while answers are under way; every token is of the version that its answer is marked with."""
    monkeypatch.setenv("PYTHONPATH", str(LIGHT) if kind == "light" else "")
    monkeypatch.setenv("LIGHT_TOKEN_S", "0.02")
    config = load(["--model.path", str(tiny_policy), "--model.dtype", "float32", "--run.dir", str(tmp_path), *FLAGS])
    temperature, tokens = 0.7, 80
    sampling = {"temperature": temperature, "max_new_tokens": tokens, "ignore_eos": True}
    orders = [versions.order(version) for version in (1, 2, 3, 4)]
    errors, distances = [], []

    async def use(engine: Engine) -> None:
        updates = Updates(engine, tmp_path / "adapters")

        async def scene() -> None:
            under_way: list[asyncio.Task[list[Generation]]] = []
            for version in (1, 2, 3):
                await updates.load(orders[version - 1])
                assert version != 2 or not under_way[0].done(), "the update comes in the middle"
                under_way.append(asyncio.create_task(engine.generate([PROMPT, PROMPT], sampling)))
                assert await updates.wait_until_proved({version})
                assert updates.proved_updates == version and updates.probe_error is not None
                errors.append(updates.probe_error)
            for version, task in enumerate(under_way, start=1):
                for answer in await task:
                    assert set(answer.versions.tolist()) == {version} and len(answer.ids) == tokens
                    own, other = (versions.distance(answer, n, temperature) for n in (version, version - 1))
                    distances.append((own, other))
            await updates.load(orders[3])
            await updates.until(lambda: len(list((tmp_path / "adapters").glob("*/lrpo-*"))) == 1)
            with pytest.raises(EngineError):
                await engine.call("/unload_lora_adapter", {"lora_name": "unknown"}, PATIENCE_S)

        await play(updates, scene)

    async def run() -> None:
        async with make_http_session() as http, open_engine(config, "a", http) as (engine, _):
            await use(engine)

    with forked():  # but for SGLang
        asyncio.run(run())
    assert max(errors) < 1e-4
    assert max(own for own, _ in distances) < 1e-4 and min(other for _, other in distances) > 0.05
    assert not list((tmp_path / "adapters").glob("*")), "the files are gone"
    print(kind, "probe", errors, "answers", distances)


@pytest.mark.parametrize(
    ("router", "kind"),
    [(stand_in, "light"), pytest.param(sglang_router, "sglang", marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_adapters_reach_every_engine_behind_a_router(
    router: Any, kind: str, tiny_policy: Path, tmp_path: Path, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every engine proves each version, and whichever answers has the adapter that was asked for."""
    sampling = {"temperature": 1.0, "max_new_tokens": 6, "ignore_eos": True}
    orders = [versions.order(version) for version in (1, 2)]
    found: list[tuple[int, Generation]] = []

    async def use(urls: list[str], url: str) -> None:
        async with make_http_session() as http:
            fleet = EngineFleet(urls, url, http, PATIENCE_S, "retract")
            await fleet.recover(PATIENCE_S)
            updates = Updates(fleet, tmp_path / "adapters")

            async def scene() -> None:
                for order in orders:
                    await updates.load(order)
                    assert await updates.wait_until_proved({order.version})
                    for _ in range(4):
                        (answer,) = await fleet.generate([PROMPT], sampling)
                        found.append((order.version, answer))

            await play(updates, scene)

    with engines(kind, tiny_policy, tmp_path, monkeypatch, *FLAGS) as urls, router(urls) as (url, sent):
        asyncio.run(use(urls, url))
        assert set(sent()) == set(urls), "both have answered"
    for version, answer in found:
        assert set(answer.versions.tolist()) == {version}
        assert versions.distance(answer, version, 1.0) < 1e-4 < 0.05 < versions.distance(answer, version - 1, 1.0)


# -- with an engine that writes down what it is asked ------------------------------------------------------------------


class FakeEngine(Engine):
    """Answers every call at once, except those of the routes in ``refused`` and answers that are held."""

    def __init__(self, shapes: dict[str, list[int]], probe_off: float = 0.0) -> None:
        super().__init__("http://nowhere", cast(Any, None), PATIENCE_S, "retract")
        self.asked: list[tuple[str, str]] = []
        self.refused: dict[str, str] = {}
        self.shapes, self.probe_off = shapes, probe_off
        self.release = asyncio.Event()  # of answers
        self.probe_logprobs: list[float] = []

    async def call(self, route: str, body: dict[str, Any] | None, timeout_s: float, *, missing_ok: bool = False) -> Any:
        body = body or {}
        self.asked.append((route.strip("/"), body.get("lora_name") or body.get("lora_path") or ""))
        if route in self.refused:
            kind = RequestRefused if route == "/generate" else EngineError
            raise kind(f"{route}: {self.refused[route]}")
        if body.get("logprob_start_len") == 0:
            return {"meta_info": {"input_token_logprobs": [[None], *[[one] for one in self.probe_logprobs]]}}
        if route == "/generate":
            await self.release.wait()
            meta = {
                "finish_reason": {"type": "stop"}, "output_token_logprobs": [[-1.0, 5, None]],
                "weight_versions": [{"version": "17", "start": 0, "end": 1}],
            }  # fmt: skip
            return [{"output_ids": [5], "meta_info": meta} for _ in body["input_ids"]]
        return {}

    async def read_checkpoint_shapes(self, timeout_s: float) -> dict[str, list[int]]:
        return self.shapes

    def count(self, route: str) -> int:
        return sum(asked == route for asked, _ in self.asked)


def shapes_of(model: Path) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in load_file(model / "model.safetensors").items()}


def run_scene(
    engine: Callable[[], FakeEngine], directory: Path, scene: Callable[[FakeEngine, Updates], Awaitable[None]]
) -> None:
    async def run() -> None:
        made = engine()
        updates = Updates(made, directory)
        await play(updates, lambda: scene(made, updates))

    asyncio.run(run())


def test_what_a_request_uses_is_not_unloaded_and_its_version_is_that_of_its_adapter(
    versions: Versions, tiny_policy: Path, tmp_path: Path
) -> None:
    async def scene(engine: FakeEngine, updates: Updates) -> None:
        orders = [versions.order(version) for version in (1, 2, 3)]
        engine.probe_logprobs = orders[0].probe.logprobs.tolist()
        await updates.load(orders[0])
        assert await updates.wait_until_proved({1})
        answer = asyncio.create_task(engine.generate([PROMPT], {}))
        for order in orders[1:]:
            engine.probe_logprobs = order.probe.logprobs.tolist()
            await updates.load(order)
            assert await updates.wait_until_proved({1, order.version})
        await updates.until(lambda: engine.count("unload_lora_adapter") == 1)
        first, second, third = (name for route, name in engine.asked if route == "load_lora_adapter")
        assert ("unload_lora_adapter", second) in engine.asked, "nothing used it"
        engine.release.set()
        (one,) = await answer
        assert one.versions.tolist() == [1], "the engine's own version is that of the frozen weights"
        assert ("generate", first) in engine.asked and engine.adapter is not None and engine.adapter.name == third
        await updates.load(orders[2])  # the learner publishes again, to somebody who has come since
        await updates.until(lambda: ("unload_lora_adapter", first) in engine.asked)
        assert engine.count("load_lora_adapter") == 3 and updates.proved_updates == 3
        assert [message.version for message in updates.sent if isinstance(message, wire.Synced)] == [1, 2, 3, 3]
        assert {message.lives for message in updates.sent} == {LIVES}, "they answer orders of these lives"

    run_scene(lambda: FakeEngine(shapes_of(tiny_policy)), tmp_path, scene)


def test_the_same_version_with_other_weights_is_loaded_under_another_name(
    versions: Versions, tiny_policy: Path, tmp_path: Path
) -> None:
    """As after a learner that has started again from a checkpoint, and has trained the step anew."""

    async def scene(engine: FakeEngine, updates: Updates) -> None:
        for _ in range(2):
            order = versions.order(1)
            engine.probe_logprobs = order.probe.logprobs.tolist()
            await updates.load(order)
            await updates.wait_until_proved({order.version})
        names = [name for route, name in engine.asked if route == "load_lora_adapter"]
        assert len(set(names)) == 2

    run_scene(lambda: FakeEngine(shapes_of(tiny_policy)), tmp_path, scene)


def test_answers_wait_for_the_proof_and_a_wrong_one_ends_the_life(
    versions: Versions, tiny_policy: Path, tmp_path: Path
) -> None:
    async def scene(engine: FakeEngine, updates: Updates) -> None:
        order = versions.order(1)
        engine.probe_logprobs = (order.probe.logprobs + 0.01).tolist()
        await updates.load(order)
        await updates.wait_until_proved({1})
        raise AssertionError("it must not be proved")

    with pytest.raises(EngineError, match=r"with the adapter of version 1 .* 0.01 nats from the learner's"):
        run_scene(lambda: FakeEngine(shapes_of(tiny_policy)), tmp_path, scene)


@pytest.mark.parametrize("route", ["/load_lora_adapter", "/unload_lora_adapter"])
def test_an_engine_that_does_not_load_or_unload_is_given_up(
    route: str, versions: Versions, tiny_policy: Path, tmp_path: Path
) -> None:
    async def scene(engine: FakeEngine, updates: Updates) -> None:
        engine.refused = {route: "TimeoutError after at most 60 s"}
        for version in (1, 2):
            order = versions.order(version)
            engine.probe_logprobs = order.probe.logprobs.tolist()
            await updates.load(order)
            await updates.wait_until_proved({order.version})
        await asyncio.Event().wait()

    with pytest.raises(EngineError, match="TimeoutError"):
        run_scene(lambda: FakeEngine(shapes_of(tiny_policy)), tmp_path, scene)


def test_an_engine_that_has_lost_its_adapter_is_given_up(versions: Versions, tiny_policy: Path, tmp_path: Path) -> None:
    """As one does that its own supervisor has started again."""

    async def scene(engine: FakeEngine, updates: Updates) -> None:
        order = versions.order(1)
        engine.probe_logprobs = order.probe.logprobs.tolist()
        await updates.load(order)
        await updates.wait_until_proved({1})
        assert engine.adapter is not None
        engine.refused = {"/generate": f"Got LoRA adapter that has never been loaded: {engine.adapter.name}"}
        with pytest.raises(EngineReplaced, match="has lost its adapter"):
            await engine.generate([PROMPT], {})
        engine.refused = {"/generate": "the prompt is too long"}
        with pytest.raises(RequestRefused, match="too long"):
            await engine.generate([PROMPT], {})

    run_scene(lambda: FakeEngine(shapes_of(tiny_policy)), tmp_path, scene)


def test_an_engine_that_was_not_started_for_adapters_is_named(
    versions: Versions, tiny_policy: Path, tmp_path: Path
) -> None:
    async def scene(engine: FakeEngine, updates: Updates) -> None:
        engine.refused = {"/load_lora_adapter": "status 400: LoRA is not enabled. Please set `--enable-lora`"}
        await updates.load(versions.order(1))

    with pytest.raises(FatalError, match=r"http://nowhere was not started for adapters.*lora.sync = 'merged'"):
        run_scene(lambda: FakeEngine(shapes_of(tiny_policy)), tmp_path, scene)


Q, UP = "base_model.model.model.layers.1.self_attn.q_proj", "base_model.model.model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{Q}.lora_A.weight": torch.zeros(4, 65)}, r"self_attn.q_proj is made for \[64, 65\], the engine's is \[64"),
        ({f"{Q}.lora_B.weight": torch.zeros(64, 5)}, "self_attn.q_proj has the rank 4 or 5 and not 4"),
        ({f"{Q}.lora_B.weight": torch.zeros(64)}, "self_attn.q_proj has the rank 4 or -1"),
        ({f"{Q}.lora_B.weight": None}, "self_attn.q_proj has no lora_B"),
        ({f"{UP}.lora_A.weight": None, f"{UP}.lora_B.weight": None}, "layers.0.mlp.up_proj has no adapter"),
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}, "lm_head.lora_A.weight is no part of an"),
        ({f"{Q}.bias": torch.zeros(4)}, "q_proj.bias is no part of an adapter"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_engine_is_not_loaded(
    change: dict[str, Tensor | None], words: str, versions: Versions, tiny_policy: Path, tmp_path: Path
) -> None:
    """SGLang loads it with success, and ends when it is first used."""
    tensors = {name: value for name, value in {**versions.make(1), **change}.items() if value is not None}
    engines: list[FakeEngine] = []

    async def scene(engine: FakeEngine, updates: Updates) -> None:
        engines.append(engine)
        await updates.load(versions.order(1, tensors))

    with pytest.raises(FatalError, match=rf"serves another model than the learner's: .*{words}"):
        run_scene(lambda: FakeEngine(shapes_of(tiny_policy)), tmp_path, scene)
    assert not engines[0].count("load_lora_adapter")


def test_an_adapter_fits_an_engine_whose_checkpoint_cannot_be_read(versions: Versions, tiny_policy: Path) -> None:
    shapes = {name: list(value.shape) for name, value in versions.make(1).items()}
    assert describe_misfit(versions.config, shapes, {}) == ""
    assert describe_misfit(versions.config, shapes, shapes_of(tiny_policy)) == ""


def test_layers_are_found_where_a_checkpoint_with_an_image_encoder_has_them(
    versions: Versions, tiny_policy: Path
) -> None:
    shapes = {name: list(value.shape) for name, value in versions.make(1).items()}
    text = {name.replace("model.", "language_model.model.", 1): s for name, s in shapes_of(tiny_policy).items()}
    tower = {f"vision_tower.encoder.layers.{n}.self_attn.q_proj.weight": [32, 32] for n in range(9)}
    assert describe_misfit(versions.config, shapes, {**tower, **text}) == ""
    del text["language_model.model.layers.1.mlp.up_proj.weight"]
    assert (
        describe_misfit(versions.config, shapes, {**tower, **text}) == "layers.1.mlp.up_proj is unknown to the engine"
    )


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_an_adapter_that_arrives_damaged_is_not_loaded(
    damage: str, versions: Versions, tiny_policy: Path, tmp_path: Path
) -> None:
    order = versions.order(1)
    data = bytearray(order.data)
    data[-1] ^= 1
    file = tmp_path / "file"
    file.write_bytes(bytes(data) if damage == "changed" else order.data[:-1])

    async def scene(engine: FakeEngine, updates: Updates) -> None:
        await updates.load(order.model_copy({"data": b"", "path": str(file)}))

    with pytest.raises(EngineError, match="the adapter of version 1 arrived damaged"):
        run_scene(lambda: FakeEngine(shapes_of(tiny_policy)), tmp_path, scene)


def test_a_file_system_that_hangs_is_given_up_in_time(versions: Versions, tiny_policy: Path, tmp_path: Path) -> None:
    """A pipe that nobody writes into hangs when it is opened, like a file of a server that is gone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    async def scene(engine: FakeEngine, updates: Updates) -> None:
        order = versions.order(1)
        await updates.load(order.model_copy({"data": b"", "path": str(pipe), "timeout_s": 1.0}))

    try:
        with pytest.raises(EngineError, match=r"the adapter of version 1 were not written to .* within 1 s"):
            run_scene(lambda: FakeEngine(shapes_of(tiny_policy)), tmp_path, scene)
    finally:
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
