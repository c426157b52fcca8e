"""Real SGLang through the client: updates in the middle of answers. ``pytest -m slow tests/test_engine.py``

With ``SGLANG_DIRS=DIR:DIR`` also other versions, each installed by ``pip install --no-deps --target DIR sglang==X``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from actor.engine import Engine, Generation, differences
from actor.process import client, start
from common import wire
from common.config import load
from learner.buckets import plan
from scripts.bench.pauses import PROMPT, TEMPERATURE, changed, distances, logprobs, update

OTHERS = [directory for directory in os.environ.get("SGLANG_DIRS", "").split(":") if directory]


async def interrupted(engine: Engine, new: PreTrainedModel, scratch: Path) -> tuple[Generation, float]:
    """An answer under way when the weights become ``new``, by file, and how far the probe is off afterwards."""
    shapes = {name: list(value.shape) for name, value in new.named_parameters()}
    assert not differences(plan(shapes, "float32", 1024), await engine.shapes(60))
    sampling = {"temperature": TEMPERATURE, "max_new_tokens": 450, "ignore_eos": True}
    answer = asyncio.create_task(engine.generate([PROMPT], sampling))
    await asyncio.sleep(0.35)
    await update(engine, new, scratch)
    ids = torch.randint(3, 320, (40,)).tolist()
    probe = wire.Probe(
        ids=np.array(ids, np.int32), logprobs=logprobs(new, ids).astype(np.float32), tolerance=1e-4
    )  # fmt: skip
    return (await answer)[0], await engine.probe(probe, 60)


async def with_engine(scratch: Path, use: Callable[[Engine], Awaitable[None]], *flags: str) -> None:
    async with client() as session:
        engine = await start(load(["--model.dtype", "float32", "--run.dir", str(scratch), *flags]), "a", session)
        assert engine.process is not None
        try:
            await use(engine)
        finally:
            engine.process.stop()


@pytest.mark.slow
@pytest.mark.parametrize("directory", ["", *OTHERS])
def test_every_part_of_an_answer_is_of_the_weights_it_is_marked_with(
    directory: str, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An SGLang that cannot flush while answers wait lets them end instead, and says so."""
    monkeypatch.setenv("PYTHONPATH", directory)
    policies: list[PreTrainedModel] = [AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)]

    async def all_modes(engine: Engine) -> None:
        retracts = engine.mode == "retract"
        assert retracts != ("updates wait until answers in flight have ended" in caplog.text)
        for mode in [engine.mode, "in_place", "drain", engine.mode]:
            engine.mode = mode
            policies.append(changed(policies[-1], 0.1))
            answer, off = await interrupted(engine, policies[-1], tmp_path)
            assert off < 1e-4, "the probe"
            old, new = engine.version - 1, engine.version
            found = distances(answer, policies)
            print(directory, mode, found, np.unique(answer.versions, return_counts=True))
            if mode == "drain":
                assert set(found) == {old}, "no answer spans two versions"
            elif retracts:  # spans are told, and the update came in the middle
                assert set(found) == {old, new}
                assert (found[new] < 1e-4) == (mode == "retract"), "in place: neither policy exactly"
            if mode != "in_place" or new in found:  # before 0.5.19 all of it counts as of the version at submit
                assert found[old] < 1e-4

    with caplog.at_level(logging.WARNING):
        asyncio.run(with_engine(tmp_path, all_modes, "--model.path", str(tiny_policy)))


def test_an_engine_that_cannot_flush_while_answers_wait_lets_them_end(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The light engine as of before 0.5.19: no spans, no updates in brackets, no flush while anything runs."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "light"))
    monkeypatch.setenv("LIGHT_OLD", "1")
    old = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)

    async def once(engine: Engine) -> None:
        answer, off = await interrupted(engine, changed(old, 0.1), tmp_path)
        assert off < 1e-4 and distances(answer, [old])[0] < 1e-4 and len(answer.ids) == 450

    with caplog.at_level(logging.WARNING):
        asyncio.run(with_engine(tmp_path, once, "--model.path", str(tiny_policy)))
    assert "updates wait until answers in flight have ended" in caplog.text
