"""How much a model holds, and that what does not fit is refused with a number that would fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig

from common.config import load
from common.context import check_context, context_length
from common.process import FatalError


@pytest.mark.parametrize(
    ("rope", "holds"),
    [
        ({"rope_type": "default"}, 1000),
        ({"rope_type": "linear", "factor": 2.0}, 2000),
        ({"rope_type": "yarn", "factor": 4.0}, 4000),  # as Qwen2.5 and Qwen3 describe
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 250}, 1000),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 125}, 1000),
    ],
)  # fmt: skip
def test_the_context_is_that_of_the_rotary_embeddings(rope: dict[str, Any], holds: int, tmp_path: Path) -> None:
    LlamaConfig(max_position_embeddings=1000, rope_parameters={"rope_theta": 1e4, **rope}).save_pretrained(tmp_path)
    flags = ["--model.path", str(tmp_path), "--sampling.max_new_tokens", "600"]
    assert context_length(load(flags)) == holds
    check_context(load(flags), holds - 600)
    with pytest.raises(FatalError, match=rf"more than the {holds} tokens .* data\.max_prompt_tokens = {holds - 600},"):
        check_context(load(flags), holds - 599)
    engine = load([*flags, "--actor.engine_args.context_length", "700"])
    assert context_length(engine) == 700, "what the engine is told counts"
    with pytest.raises(FatalError, match=r"data\.max_prompt_tokens = 100,"):
        check_context(engine, 101)
    with pytest.raises(FatalError, match=r"holds: lower sampling\.max_new_tokens$"):
        check_context(load([*flags[:2], "--sampling.max_new_tokens", "4000"]), 1)


def test_several_kinds_of_rotary_embeddings(tmp_path: Path) -> None:
    Gemma3TextConfig(max_position_embeddings=512).save_pretrained(tmp_path)
    assert context_length(load(["--model.path", str(tmp_path)])) == 512
    with pytest.raises(FatalError, match=r"cannot load model\.path"):
        context_length(load(["--model.path", str(tmp_path / "nothing")]))
