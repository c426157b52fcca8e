"""The sections ``run``, ``data``, ``model`` and ``sampling``: what is trained, on what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.config.section import LanguageCode, Section


class RunConfig(Section):
    """What the whole run shares."""

    dir: Path = Path("runs/default")  # logs, TensorBoard events, checkpoints, the exported model
    rendezvous: Path | None = None  # a directory all hosts see, where services say where they are; none: as configured
    seed: int = Field(0, ge=0, lt=2**63)
    languages: Annotated[tuple[LanguageCode, ...], Field(min_length=1)] = ("en",)  # L: those the router may pick


class DataConfig(Section):
    """Parquet files in the verl row schema (see learner/work/questions.py)."""

    train: Path = Path("data/train.parquet")
    heldout: Path | None = None
    max_prompt_tokens: int = Field(512, gt=0)  # longer prompts are counted and left out


class ModelConfig(Section):
    path: str = ""  # a Hugging Face directory or hub name; learner and engines start from the same weights
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the engine, and so of published weights
    # How a language is asked for: by a token of the warm start, in words, or by a header that begins the answer.
    prompt_style: Literal["tag", "system", "select"] = "tag"
    header: str = "<lang_select>\n{code}\n</lang_select>\n"  # of select: how an answer begins

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        parts = self.header.split("{code}")
        if len(parts) != 2 or not all(part.strip() for part in parts):
            raise ValueError(f"header = {self.header!r} must have text, {{code}} once, and text again")
        return self


class SamplingConfig(Section):
    temperature: float = Field(1.0, gt=0)  # of training rollouts; the learner divides its logits by it too
    max_new_tokens: int = Field(1024, gt=0)
