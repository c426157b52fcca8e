"""An actor with an engine that answers what nobody foresaw."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from actor.engine.client import Engine, EngineError
from actor.life import Actor
from common import wire
from common.config import load
from common.tokenizer import load_tokenizer


class Speechless(Engine):
    async def call(self, route: str, body: dict[str, Any] | None, timeout_s: float, *, missing_ok: bool = False) -> Any:
        return {"meta_info": {}}


def test_an_engine_that_cannot_be_probed_is_given_up_instead_of_waited_for(tiny_policy: Path) -> None:
    probe = wire.Probe(ids=np.zeros(2, np.int32), logprobs=np.zeros(1, np.float32), tolerance=1.0)
    receive = wire.Receive(group="", path="", version=1, buckets=[], probe=probe, timeout_s=1.0)

    async def life() -> None:
        nothing = cast(Any, None)
        engine = Speechless("http://nowhere", nothing, 1.0, "retract")
        config = load(["--model.prompt_style", "select"])
        actor = Actor(config, "a", engine, nothing, nothing, load_tokenizer(str(tiny_policy)))
        actor._proving.cancel()
        await actor._prove(receive)
        await asyncio.wait_for(actor._weights(), 10)

    with pytest.raises(EngineError, match=r"probe.*input_token_logprobs"):
        asyncio.run(life())
