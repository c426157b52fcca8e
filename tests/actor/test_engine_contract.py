"""What the product relies on of an engine, shown of real SGLang and of the light engine that stands for it in tests.

Each engine is started once. Where the two would differ the light one is wrong: the other tests believe it.
"""

from __future__ import annotations

import asyncio
import base64
import pickle
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import Backend, GroupName, _new_process_group_helper, _world
from transformers import AutoModelForCausalLM

from actor.engine.client import Engine
from actor.engine.errors import EngineError, EngineReplaced, RequestRefused
from actor.engine.readiness import make_http_session
from actor.engine.server import EngineProcess
from common import wire
from common.config import load
from learner.data.problems import Place
from scripts.study.benchmarks.letters import letter_questions, likeliest
from scripts.study.benchmarks.prompts import harness_prompt
from scripts.study.benchmarks.rows import BenchmarkRow
from tests.support.processes import forked

LIGHT = Path(__file__).parents[1] / "support" / "light"
MEMORY, RUNNING, CONTEXT, EOS = 700, 12, 512, 2  # tokens, answers, tokens, and the token that ends an answer
BOLD = ", schedule_conservativeness = 0.01"  # lets answers run that there is hardly memory for, and puts some back
PROMPT = [1, 7, 8, 9]
NORM = "model.layers.0.input_layernorm.weight"
PATIENCE_S = 300.0  # on a busy machine
_TRIES = 10


@dataclass
class Running:
    """An engine, and the checkpoint that it began with."""

    name: str
    process: EngineProcess
    model: Path

    def try_it(self, body: Callable[[Calls], Coroutine[Any, Any, None]]) -> None:
        """Runs the body with a client of its own, and leaves the engine idle and not paused."""

        async def with_client() -> None:
            async with make_http_session() as session:
                engine = Engine(self.process.url, session, PATIENCE_S, "retract")
                try:
                    await asyncio.wait_for(body(Calls(engine, session)), PATIENCE_S)
                finally:
                    await engine.recover(PATIENCE_S)

        asyncio.run(with_client())


@dataclass
class Calls:
    """The engine by the product's client and by bare HTTP."""

    engine: Engine
    session: aiohttp.ClientSession

    async def post(self, route: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        async with self.session.post(self.engine.url + route, json=body or {}) as response:
            is_json = response.content_type == "application/json"
            return response.status, await (response.json() if is_json else response.text())

    async def get(self, route: str) -> Any:
        async with self.session.get(self.engine.url + route) as response:
            assert response.status == 200
            return await response.json()

    async def version(self) -> str:
        return str((await self.get("/model_info"))["weight_version"])

    async def generate(
        self, prompts: list[list[int]] | list[int], tokens: int, *, more: dict[str, Any] | None = None, **sampling: Any
    ) -> tuple[int, Any]:
        sampling = {"temperature": 1.0, "max_new_tokens": tokens, **sampling}
        body = {"input_ids": prompts, "sampling_params": sampling, "return_logprob": True, **(more or {})}
        return await self.post("/generate", body)

    async def until(self, condition: Callable[[dict[str, float]], object]) -> dict[str, float]:
        """The first load of which the condition holds."""
        deadline = time.monotonic() + PATIENCE_S / 2
        while not condition(load := await self.engine.read_gauges()):
            assert time.monotonic() < deadline, load
            await asyncio.sleep(0.02)
        return load

    async def interrupted(
        self, interrupt: Callable[[], Awaitable[object]], undo: Callable[[], Awaitable[object]] | None = None
    ) -> asyncio.Task[tuple[int, Any]]:
        """Two answers of 250 tokens that ``interrupt`` met under way.

        On a busy machine they may have ended before it came. Then ``undo``, or ``/continue_generation``, takes it back,
        and it is tried again.
        """
        for _ in range(_TRIES):
            task = asyncio.create_task(self.generate([PROMPT] * 2, 250, ignore_eos=True))
            await self.until(lambda load, task=task: load["running"] == 2 or task.done())  # type: ignore[misc]
            await asyncio.sleep(0.2)  # they are a few tokens long by then
            await interrupt()
            await asyncio.wait({task}, timeout=0.5)
            if not task.done() or any(
                answer["meta_info"]["finish_reason"]["type"] == "abort" for answer in task.result()[1]
            ):
                return task
            await (undo or partial(self.post, "/continue_generation"))()
        raise AssertionError(f"answers ended before they were interrupted, {_TRIES} times")


@pytest.fixture(scope="module", params=["light", "sglang"])
def engine(
    request: pytest.FixtureRequest, tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    scratch = tmp_path_factory.mktemp(request.param)
    flags = ["--model.path", str(tiny_policy), "--model.dtype", "float32", "--run.dir", str(scratch)]
    flags += ["--actor.engine_args", f"{{max_total_tokens = {MEMORY}, max_running_requests = {RUNNING}{BOLD}}}"]

    async def begin() -> EngineProcess:
        with forked():  # but for SGLang
            process = EngineProcess(load(flags), request.param, scratch / "engine.log")
        async with make_http_session() as session:
            await process.wait_until_ready(session, 2 * PATIENCE_S)
        return process

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(LIGHT) if request.param == "light" else "")
        environment.setenv("LIGHT_TOKEN_S", "0.003")
        process = asyncio.run(begin())
    yield Running(request.param, process, tiny_policy)
    process.stop()


def pickled(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The body of an update with tensors that are part of the message."""
    data = base64.b64encode(pickle.dumps([*weights.items()])).decode()
    return {"serialized_named_tensors": [data], "flush_cache": False}


def test_an_answer_is_told_with_its_log_probabilities_and_its_weights(engine: Running) -> None:
    model = AutoModelForCausalLM.from_pretrained(engine.model, dtype=torch.float32)

    async def body(calls: Calls) -> None:
        status, answers = await calls.generate([PROMPT, [*PROMPT, 11]], 12, temperature=0.7, ignore_eos=True)
        assert status == 200 and len(answers) == 2
        for prompt, answer in zip([PROMPT, [*PROMPT, 11]], answers, strict=True):
            meta, ids = answer["meta_info"], answer["output_ids"]
            assert len(ids) == 12 and meta["finish_reason"] == {"type": "length", "length": 12}
            assert meta["weight_versions"] == [{"version": "0", "start": 0, "end": 12}] and not meta["num_retractions"]
            assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(prompt), 12)
            told = meta["output_token_logprobs"]
            assert [token for _, token, _ in told] == ids
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            known = (logits / 0.7).log_softmax(-1)[range(12), ids]
            assert [value for value, _, _ in told] == pytest.approx(known.tolist(), abs=1e-4), "at the temperature"
        status, alone = await calls.generate(PROMPT, 3)
        assert status == 200 and set(alone) >= {"output_ids", "meta_info"}

    engine.try_it(body)


def test_a_probe_tells_the_log_probabilities_of_a_prompt(engine: Running) -> None:
    model = AutoModelForCausalLM.from_pretrained(engine.model, dtype=torch.float32)
    ids = np.arange(3, 43, dtype=np.int32)
    with torch.no_grad():
        table = model(torch.tensor(ids[None].astype(np.int64))).logits[0].log_softmax(-1)
    logp = table[range(39), ids[1:].astype(np.int64)].numpy()

    async def body(calls: Calls) -> None:
        assert (
            await calls.engine.measure_probe_error(wire.Probe(ids=ids, logprobs=logp, tolerance=0), PATIENCE_S) < 1e-4
        )
        more = {"logprob_start_len": 0}
        _, answer = await calls.generate(ids.tolist(), 1, temperature=0.0, more=more)
        told = answer["meta_info"]["input_token_logprobs"]
        assert told[0][0] is None and [token for _, token, _ in told] == ids.tolist()

    engine.try_it(body)


def test_chosen_tokens_after_a_prompt_have_their_log_probabilities(engine: Running, rng: np.random.Generator) -> None:
    """As ``lrpo bench`` asks for the letters of options, whose likeliest is the answer."""
    model = AutoModelForCausalLM.from_pretrained(engine.model, dtype=torch.float32)
    rows = [BenchmarkRow("de", f"{n}", "A", Place("f", n), choices=("x", "y", "z", "w")) for n in range(8)]
    letters = rng.choice(np.arange(3, 60), 4, replace=False).tolist()
    numbers = iter(rng.integers(3, 60, 10_000).tolist())
    texts: dict[str, list[int]] = {}

    class Numbers:
        """A tokenizer with random numbers for a prompt, and one for each letter that follows it."""

        def encode(self, text: str) -> list[int]:
            if text[-1] in "ABCD" and text[-2:-1] == " ":
                return [*self.encode(text[:-2]), letters["ABCD".index(text[-1])]]
            return texts.setdefault(text, [next(numbers) for _ in range(20)])

    tokenizer: Any = Numbers()
    found = likeliest(letter_questions(rows, tokenizer, harness_prompt), f"m@{engine.process.url}/v1")
    with torch.no_grad():
        known = [model(torch.tensor([prompt])).logits[0, -1, letters].argmax() for prompt in texts.values()]
    assert len(texts) == 8 and found == ["ABCD"[one] for one in known]


def test_each_answer_of_a_request_may_be_sampled_in_its_own_way(engine: Running) -> None:
    async def body(calls: Calls) -> None:
        own = [{"max_new_tokens": n, "ignore_eos": True, "sampling_seed": n} for n in (3, 5, 4)]
        more = {"input_ids": [PROMPT] * 3, "sampling_params": own}
        status, answers = await calls.post("/generate", {**more, "return_logprob": True})
        assert status == 200 and [len(answer["output_ids"]) for answer in answers] == [3, 5, 4]

    engine.try_it(body)


def test_an_answer_ends_with_the_models_own_end(engine: Running) -> None:
    async def body(calls: Calls) -> None:
        ended: list[Any] = []
        while len(ended) < 3:
            _, answers = await calls.generate([PROMPT] * RUNNING, 100)
            for answer in answers:
                finish, ids = answer["meta_info"]["finish_reason"], answer["output_ids"]
                assert EOS not in ids[:-1] and (ids[-1] == EOS) == (finish["type"] == "stop")
                assert finish in ({"type": "length", "length": 100}, {"type": "stop", "matched": EOS})
                ended += [answer] * (finish["type"] == "stop")
        token = ended[0]["output_ids"][0]
        seen: set[int] = set()
        while len(seen) < 2:
            _, answers = await calls.generate([PROMPT] * RUNNING, 100, stop_token_ids=[token], ignore_eos=False)
            seen |= {answer["meta_info"]["finish_reason"].get("matched") for answer in answers} - {None}
            assert seen <= {token, EOS}

    engine.try_it(body)


def test_what_does_not_fit_the_context_is_refused(engine: Running) -> None:
    async def body(calls: Calls) -> None:
        for prompt, tokens, words in (
            (CONTEXT, 1, "context length"),
            (CONTEXT - 12, 13, "context length"),
            (CONTEXT - 6, 1, "Input length"),
        ):
            status, told = await calls.generate([[5] * prompt], tokens)
            assert status == 400 and words in told["error"]["message"]
        with pytest.raises(RequestRefused, match="context length"):
            await calls.engine.generate([[5] * CONTEXT], {"temperature": 1.0, "max_new_tokens": 1})
        # Two tokens less than there is room for.
        status, [answer] = await calls.generate([[5] * (CONTEXT - 12)], 12, ignore_eos=True)
        assert status == 200 and answer["meta_info"]["finish_reason"] == {"type": "length", "length": 10}
        assert len(answer["output_ids"]) == 10

    engine.try_it(body)


def test_memory_in_use_is_told_and_answers_beyond_it_wait_or_are_put_back(engine: Running) -> None:
    async def body(calls: Calls) -> None:
        idle = await calls.engine.read_gauges()
        assert (idle["running"], idle["waiting"]) == (0, 0)
        task = asyncio.create_task(calls.generate([PROMPT] * (RUNNING + 4), 100, ignore_eos=True))
        while (
            not task.done()
        ):  # the engine publishes its gauges now and then: what a quick answer shows of them is chance
            gauges = await calls.engine.read_gauges()
            assert gauges["running"] <= RUNNING and gauges["running"] + gauges["waiting"] <= RUNNING + 4
            assert 0 <= gauges["usage"] <= 1
            await asyncio.sleep(0.01)
        status, answers = await task
        assert status == 200 and {len(answer["output_ids"]) for answer in answers} == {100}
        retractions = [answer["meta_info"]["num_retractions"] for answer in answers]
        assert max(retractions) > 0 == min(retractions)
        # Those that were put back are as right as the others: their keys and values are computed anew.
        model = AutoModelForCausalLM.from_pretrained(engine.model, dtype=torch.float32).eval()
        for answer in sorted(answers, key=lambda answer: -int(answer["meta_info"]["num_retractions"]))[:4]:
            meta = answer["meta_info"]
            assert meta["weight_versions"] == [{"version": meta["weight_version"], "start": 0, "end": 100}]
            told = meta["output_token_logprobs"]
            assert [entry[1] for entry in told] == answer["output_ids"]
            with torch.no_grad():
                logp = model(torch.tensor([[*PROMPT, *answer["output_ids"]]])).logits[0].log_softmax(-1)
            fresh = logp[range(len(PROMPT) - 1, len(PROMPT) + 99), answer["output_ids"]]
            assert np.allclose([entry[0] for entry in told], fresh.numpy(), atol=1e-4)

    engine.try_it(body)


def test_an_abort_returns_what_there_is_and_the_client_calls_it_an_error(engine: Running) -> None:
    async def body(calls: Calls) -> None:
        task = await calls.interrupted(partial(calls.post, "/abort_request", {"abort_all": True}))
        status, answers = await task
        assert status == 200
        for answer in answers:
            assert answer["meta_info"]["finish_reason"]["type"] == "abort" and 0 < len(answer["output_ids"]) < 250
            assert len(answer["meta_info"]["output_token_logprobs"]) == len(answer["output_ids"])
        sampling = {"temperature": 1.0, "max_new_tokens": 250, "ignore_eos": True}
        asked = asyncio.create_task(calls.engine.generate([PROMPT], sampling))
        await calls.until(lambda load: load["running"])
        await calls.post("/abort_request", {"abort_all": True})
        with pytest.raises(EngineError, match="abort"):
            await asked

    engine.try_it(body)


@pytest.mark.parametrize(("mode", "flushed", "retractions"), [("retract", 200, 1), ("in_place", 400, 0)])
def test_a_pause_keeps_answers_and_lets_none_begin(engine: Running, mode: str, flushed: int, retractions: int) -> None:
    async def body(calls: Calls) -> None:
        told: dict[str, int] = {}

        async def pause() -> None:
            told["flush"], _ = await calls.post("/flush_cache")
            told["pause"], _ = await calls.post("/pause_generation", {"mode": mode})

        task = await calls.interrupted(pause)
        assert told == {"flush": 400, "pause": 200}, "answers ran"
        assert (await calls.post("/flush_cache"))[0] == flushed
        late = asyncio.create_task(calls.generate([PROMPT], 3))
        await asyncio.sleep(0.5)
        assert not task.done() and not late.done()
        assert (await calls.post("/continue_generation"))[0] == 200
        status, answers = await task
        assert status == 200 and (await late)[0] == 200
        for answer in answers:
            assert len(answer["output_ids"]) == 250 and answer["meta_info"]["num_retractions"] == retractions

    engine.try_it(body)


def test_a_pause_that_aborts_returns_what_there_is(engine: Running) -> None:
    async def body(calls: Calls) -> None:
        task = await calls.interrupted(partial(calls.post, "/pause_generation", {"mode": "abort"}))
        status, answers = await task
        assert status == 200
        assert {answer["meta_info"]["finish_reason"]["type"] for answer in answers} == {"abort"}
        assert all(0 < len(answer["output_ids"]) < 250 for answer in answers)
        assert (await calls.post("/flush_cache"))[0] == 200

    engine.try_it(body)


def test_an_update_in_the_middle_of_an_answer_is_told_in_its_spans(engine: Running, tmp_path: Path) -> None:
    """And the engine calls the directory it has read its model from now on."""
    weights = load_file(engine.model / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, tmp_path / "model.safetensors")
    order = wire.Receive(
        group="", path=str(tmp_path), version=5, buckets=[], timeout_s=PATIENCE_S,
        probe=wire.Probe(ids=np.zeros(1, np.int32), logprobs=np.zeros(0, np.float32), tolerance=0),
    )  # fmt: skip

    async def body(calls: Calls) -> None:
        before = await calls.version()
        task = await calls.interrupted(
            lambda: calls.engine.pause(PATIENCE_S, 0), lambda: calls.engine.resume(PATIENCE_S)
        )
        await calls.engine.receive_weights(order)
        await calls.engine.resume(PATIENCE_S)
        given = calls.engine.labels.newest
        await calls.engine.check_identity(PATIENCE_S)
        for answer in (await task)[1]:
            spans = answer["meta_info"]["weight_versions"]
            assert [span["version"] for span in spans] == [before, given] and spans[0]["start"] == 0
            assert spans[0]["end"] == spans[1]["start"] > 0 and spans[1]["end"] == 250
        info = await calls.get("/model_info")
        assert (info["model_path"], info["weight_version"]) == (str(tmp_path), given)
        assert await calls.engine.read_checkpoint_shapes(PATIENCE_S) == {
            name: [*value.shape] for name, value in weights.items()
        }
        status, told = await calls.post(
            "/update_weights_from_disk", {"model_path": "/nowhere", "flush_cache": False, "weight_version": "6"}
        )
        assert status == 400 and not told["success"] and await calls.version() == given
        back = {"model_path": str(engine.model), "flush_cache": False, "weight_version": "0"}
        assert (await calls.post("/update_weights_from_disk", back))[0] == 200
        with pytest.raises(EngineReplaced):  # as if its supervisor had started it again
            await calls.engine.generate([PROMPT], {"temperature": 1.0, "max_new_tokens": 3})

    engine.try_it(body)


def test_an_update_is_opened_and_closed_once(engine: Running) -> None:
    weights = load_file(engine.model / "model.safetensors")

    async def body(calls: Calls) -> None:
        update = {**pickled({NORM: weights[NORM]}), "weight_version": "0"}
        assert (await calls.post("/end_weight_update"))[0] == 400
        assert (await calls.post("/update_weights_from_tensor", update))[0] == 400
        assert (await calls.post("/begin_weight_update"))[0] == 200
        assert (await calls.post("/begin_weight_update"))[0] == 400
        assert (await calls.post("/update_weights_from_tensor", update))[0] == 200
        assert (await calls.post("/end_weight_update"))[0] == 200

    engine.try_it(body)


def test_an_unknown_name_is_ignored_and_another_dtype_converted(engine: Running) -> None:
    weights = load_file(engine.model / "model.safetensors")

    async def body(calls: Calls) -> None:
        _, first = await calls.generate(PROMPT, 5, temperature=0.0)
        await calls.post("/begin_weight_update")
        for update in ({"model.nowhere": torch.zeros(3)}, {NORM: weights[NORM].bfloat16()}):
            status, told = await calls.post("/update_weights_from_tensor", pickled(update))
            assert status == 200 and told["success"]
        await calls.post("/update_weights_from_tensor", pickled({NORM: weights[NORM]}))
        await calls.post("/end_weight_update")
        _, then = await calls.generate(PROMPT, 5, temperature=0.0)
        assert then["output_ids"] == first["output_ids"]

    engine.try_it(body)


def test_weights_come_by_a_process_group(engine: Running) -> None:
    weights = load_file(engine.model / "model.safetensors")
    store = TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False)
    name = f"contract-{engine.name}"  # torch keeps the names of groups that a process has had

    def form() -> Any:
        group, _ = _new_process_group_helper(
            2, 0, [], Backend("gloo"), PrefixStore(name, store), group_name=GroupName(name),
            backend_options=None, timeout=timedelta(seconds=PATIENCE_S),
        )  # fmt: skip
        _world.pg_group_ranks[group] = {0: 0, 1: 1}
        return group

    async def body(calls: Calls) -> None:
        join = wire.Join(
            host="127.0.0.1", port=store.port, world=2, group=name, backend="gloo", timeout_s=PATIENCE_S
        )  # fmt: skip
        group, _ = await asyncio.gather(asyncio.to_thread(form), calls.engine.join_group(join))

        async def send(value: Tensor, version: str) -> tuple[int, Any]:
            fields = {"names": [NORM], "dtypes": [str(value.dtype).removeprefix("torch.")], "shapes": [[*value.shape]]}
            order = {**fields, "group_name": name, "load_format": "flattened_bucket", "flush_cache": False}
            options = dist.BroadcastOptions()
            options.rootRank = 0
            sent = asyncio.to_thread(lambda: group.broadcast([value.view(torch.uint8)], options).wait())
            (status, told), _ = await asyncio.gather(
                calls.post("/update_weights_from_distributed", {**order, "weight_version": version}), sent
            )
            return status, told

        await calls.post("/begin_weight_update")
        assert (await send(weights[NORM], "9"))[0] == 200 and await calls.version() == "9"
        assert (await send(weights[NORM], "0"))[0] == 200
        await calls.post("/end_weight_update")
        await calls.engine.leave_group(name, PATIENCE_S)
        status, told = await calls.post("/destroy_weights_update_group", {"group_name": name})
        assert status == 400 and not told["success"]

    engine.try_it(body)


def test_it_tells_what_the_actor_asks_for(engine: Running) -> None:
    async def body(calls: Calls) -> None:
        assert (await calls.get("/server_info"))["tp_size"] == 1
        async with calls.session.get(calls.engine.url + "/ready") as response:
            assert response.status == 200
        assert calls.engine.pause_mode == "retract"

    engine.try_it(body)


def test_a_tensor_of_another_shape_ends_the_engine(engine: Running) -> None:
    """The last test of this file, therefore. An actor compares the shapes before the first update."""

    async def body() -> None:
        async with make_http_session() as session:
            calls = Calls(Engine(engine.process.url, session, PATIENCE_S, "retract"), session)
            await calls.post("/begin_weight_update")
            with pytest.raises(aiohttp.ClientError):
                await calls.post("/update_weights_from_tensor", pickled({NORM: torch.zeros(65)}))
        deadline = time.monotonic() + PATIENCE_S
        with pytest.raises(EngineError, match=r"the engine ended(.|\n)*65"):
            while time.monotonic() < deadline:
                engine.process.check()
                await asyncio.sleep(0.1)

    asyncio.run(body())
