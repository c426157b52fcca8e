"""Real SGLang through the client: an update in the middle of an answer. ``pytest -m slow tests/test_engine.py``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from actor.engine import Engine, EngineProcess, Generation, differences
from common import wire
from common.config import load
from learner.publisher import _pack

TEMPERATURE = 0.8


def logprobs(model: PreTrainedModel, ids: list[int], temperature: float) -> NDArray[np.float64]:
    """Of all tokens but the first."""
    with torch.no_grad():
        table = (model(torch.tensor([ids])).logits[0].double() / temperature).log_softmax(-1)
    return np.array(table[range(len(ids) - 1), ids[1:]].tolist())


async def interrupted(model: Path, new: PreTrainedModel, mode: str, scratch: Path) -> tuple[Generation, float]:
    """An answer that was under way when the weights became ``new``, and how far the probe is off afterwards."""
    config = load(["--model.path", str(model), "--model.dtype", "float32", "--run.dir", str(scratch)])
    process = EngineProcess(config, "a", scratch / "engine.log")
    try:
        async with aiohttp.ClientSession() as session:
            await process.ready(session, 200)
            engine = Engine(process.url, session, 120, process)
            sampling = {"temperature": TEMPERATURE, "max_new_tokens": 450, "ignore_eos": True}
            weights = [(name, value.detach()) for name, value in new.named_parameters()]
            save_file(dict(weights), scratch / "model.safetensors")
            ids = torch.arange(5, 40).tolist()
            told = logprobs(new, ids, 1.0).astype(np.float32)
            probe = wire.Probe(ids=np.array(ids, np.int32), logprobs=told, tolerance=1e-4)
            buckets, _ = _pack(weights, 2**30, torch.device("cpu"))
            assert not differences(buckets, await engine.shapes())
            order = wire.Receive(
                group="", path=str(scratch), version=1, buckets=buckets, probe=probe, timeout_s=60
            )  # fmt: skip
            answer = asyncio.create_task(engine.generate([[1, 7, 8, 9]], sampling))
            await asyncio.sleep(0.35)
            await engine.pause(mode, 60)
            await engine.receive(order)
            await engine.resume(60)
            return (await answer)[0], await engine.probe(probe, 60)
    finally:
        process.stop()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_both_parts_of_an_answer_are_of_the_weights_they_are_marked_with(
    mode: str, tiny_policy: Path, tmp_path: Path
) -> None:
    old = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    new = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    with torch.no_grad():
        for value in new.parameters():
            value.mul_(1 + 0.1 * torch.randn_like(value))
    answer, off = asyncio.run(interrupted(tiny_policy, new, mode, tmp_path))
    assert off < 1e-4, "the probe"
    assert set(answer.versions) == {0, 1}, "the update came in the middle"
    ids = [1, 7, 8, 9, *answer.ids.tolist()]
    errors = {
        version: np.abs(logprobs(model, ids, TEMPERATURE)[3:] - answer.logprobs)[answer.versions == version].max()
        for version, model in enumerate((old, new))
    }
    print(mode, errors, {version: int((answer.versions == version).sum()) for version in (0, 1)})
    assert errors[0] < 1e-4
    if mode == "retract":
        assert errors[1] < 1e-4
    else:
        assert errors[1] > 1e-4, "a cache of the old weights: neither policy exactly"
