"""Weight updates in the middle of answers, through the client of the engine.

With real SGLang: ``pytest -m slow tests/actor/engine/test_client.py``. ``SGLANG_DIRS=DIR:DIR`` adds other versions,
each installed by ``pip install --no-deps --target DIR sglang==X``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestServer
from transformers import AutoModelForCausalLM, PreTrainedModel

from actor.engine.checkpoint_shapes import describe_differences
from actor.engine.client import Engine
from actor.engine.generation import Generation
from actor.engine.readiness import make_http_session
from actor.engine.start import open_engine
from common import wire
from common.config import load
from learner.weights.buckets import bytes_of, cut_into_buckets
from learner.weights.shared_memory import SharedBuffer
from scripts.bench.pauses import (
    NO_PROBE,
    PROMPT,
    TEMPERATURE,
    compute_logprobs,
    distance_by_version,
    perturbed,
    update,
    write_weights,
)
from tests.support.processes import forked

OTHERS = [directory for directory in os.environ.get("SGLANG_DIRS", "").split(":") if directory]


def by_memory(model: PreTrainedModel, version: int, kept: list[SharedBuffer]) -> wire.Receive:
    buckets = cut_into_buckets({name: list(value.shape) for name, value in model.named_parameters()}, "float32", 0.05)
    weights = iter(model.parameters())
    for bucket in buckets:
        flat = SharedBuffer(bytes_of(bucket), torch.device("cpu"))
        flat.tensor.view(torch.float32).copy_(torch.cat([next(weights).detach().flatten() for _ in bucket.names]))
        kept.append(flat)
    handles = [[flat.create_handle()] for flat in kept[-len(buckets) :]]
    return wire.Receive(
        group="", path="", version=version, buckets=buckets, probe=NO_PROBE, timeout_s=60, handles=handles
    )  # fmt: skip


async def interrupted(
    engine: Engine, new: PreTrainedModel, order: wire.Receive, tokens: int = 450
) -> tuple[Generation, float]:
    """Returns an answer that was under way when the weights became ``new``, and the error of the probe afterwards."""
    shapes = {name: list(value.shape) for name, value in new.named_parameters()}
    assert not describe_differences(cut_into_buckets(shapes, "float32", 1024), await engine.read_checkpoint_shapes(60))
    sampling = {"temperature": TEMPERATURE, "max_new_tokens": tokens, "ignore_eos": True}
    answer = asyncio.create_task(engine.generate([PROMPT], sampling))
    await asyncio.sleep(0.35)
    assert not answer.done(), "the update comes in the middle"
    await update(engine, order)
    ids = torch.randint(3, 320, (40,)).tolist()
    probe = wire.Probe(
        ids=np.array(ids, np.int32), logprobs=compute_logprobs(new, ids).astype(np.float32), tolerance=1e-4
    )  # fmt: skip
    return (await answer)[0], await engine.measure_probe_error(probe, 60)


async def with_engine(scratch: Path, use: Callable[[Engine], Awaitable[None]], *flags: str) -> None:
    config = load(["--model.dtype", "float32", "--run.dir", str(scratch), *flags])
    async with make_http_session() as http, open_engine(config, "a", http) as (engine, _):
        await use(engine)


def test_what_an_attached_server_prefers_has_no_effect() -> None:
    """SGLang lets a request's own values win over its ``--preferred-sampling-params``."""
    preferred = {
        "temperature": 0.3, "top_p": 0.8, "top_k": 20, "min_p": 0.1, "frequency_penalty": 0.5, "presence_penalty": 0.5,
        "repetition_penalty": 1.2, "min_new_tokens": 8, "stop": ["."], "ignore_eos": True, "n": 2,
    }  # fmt: skip
    used: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        used.append(preferred | body["sampling_params"])
        meta = {"finish_reason": {"type": "stop"}, "output_token_logprobs": [[-0.5, 7, None]]}
        scored = {"input_token_logprobs": [[None, 3, None], [-1.0, 4, None]]}
        one = {"output_ids": [7], "meta_info": meta | scored}
        return web.json_response(one if "logprob_start_len" in body else [one])

    async def use() -> None:
        app = web.Application()
        app.add_routes([web.post("/generate", answer)])
        async with TestServer(app) as server, make_http_session() as http:
            engine = Engine(str(server.make_url("")).rstrip("/"), http, 60, "drain")
            await engine.generate([[3]], {"temperature": 0.7, "max_new_tokens": 5, "stop_token_ids": [2]})
            probe = wire.Probe(ids=np.array([3, 4], np.int32), logprobs=np.array([-1.0], np.float32), tolerance=1e-4)
            assert await engine.measure_probe_error(probe, 60) == 0

    asyncio.run(use())
    neutral = {
        "top_p": 1, "top_k": -1, "min_p": 0, "frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1,
        "min_new_tokens": 0, "stop": None, "ignore_eos": False, "n": 1,
    }  # fmt: skip
    assert used == [
        neutral | {"temperature": 0.7, "max_new_tokens": 5, "stop_token_ids": [2]},
        neutral | {"temperature": 0, "max_new_tokens": 1},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("directory", ["", *OTHERS])
def test_every_token_of_an_answer_is_of_the_version_that_it_is_marked_with(
    directory: str, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An SGLang that cannot flush its cache while answers wait lets them end instead, and a warning says so."""
    monkeypatch.setenv("PYTHONPATH", directory)
    policies: list[PreTrainedModel] = [AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)]
    kept: list[SharedBuffer] = []

    async def all_modes(engine: Engine) -> None:
        retracts = engine.pause_mode == "retract"
        assert retracts != ("updates wait until answers in flight have ended" in caplog.text)
        for mode, memory in itertools.product(
            [engine.pause_mode, "in_place", "drain", engine.pause_mode], [True, False]
        ):
            engine.pause_mode = mode
            policies.append(perturbed(policies[-1], 0.1))
            version = engine.version + 1
            order = by_memory(policies[-1], version, kept) if memory else write_weights(policies[-1], version, tmp_path)
            answer, off = await interrupted(engine, policies[-1], order)
            assert off < 1e-4, "the probe"
            old, new = engine.version - 1, engine.version
            found = distance_by_version(answer, policies)
            print(directory, mode, memory, found, np.unique(answer.versions, return_counts=True))
            if mode == "drain":
                assert set(found) == {old}, "no answer spans two versions"
            elif retracts:  # the versions of the tokens are known, and the update came in the middle
                assert set(found) == {old, new}
                assert (found[new] < 1e-4) == (mode == "retract"), "in place, the tokens are of neither policy exactly"
            if mode != "in_place" or new in found:  # before 0.5.19 all tokens count as of the version at submit
                assert found[old] < 1e-4

    with caplog.at_level(logging.WARNING):
        asyncio.run(with_engine(tmp_path, all_modes, "--model.path", str(tiny_policy)))


def test_an_old_engine_lets_answers_end_before_an_update(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The light engine as of before 0.5.19.

    It does not say which tokens are of which version, has no routes to begin and end an update, and does not flush its
    cache while anything runs.
    """
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "support" / "light"))
    monkeypatch.setenv("LIGHT_OLD", "1")
    monkeypatch.setenv("LIGHT_TOKEN_S", "0.01")
    old = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)

    async def once(engine: Engine) -> None:
        new = perturbed(old, 0.1)
        answer, off = await interrupted(engine, new, write_weights(new, 1, tmp_path), tokens=100)
        assert off < 1e-4 and distance_by_version(answer, [old])[0] < 1e-4 and len(answer.ids) == 100

    with caplog.at_level(logging.WARNING), forked():
        asyncio.run(with_engine(tmp_path, once, "--model.path", str(tiny_policy)))
    assert "updates wait until answers in flight have ended" in caplog.text
