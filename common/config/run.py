"""The sections ``run``, ``data``, ``model`` and ``sampling``: what is trained, and on what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.config.section import LanguageCode, Section


class RunConfig(Section):
    """What all processes of a run share."""

    dir: Path = Path("runs/default")  # holds logs, TensorBoard events, checkpoints and the exported model
    # A directory that all hosts see, where services write their addresses. Without it, the configured addresses hold.
    rendezvous: Path | None = None
    # Where metrics go: TensorBoard's event files in ``dir``, and on request wandb or trackio, which pip installs.
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    seed: int = Field(0, ge=0, lt=2**63)
    languages: Annotated[tuple[LanguageCode, ...], Field(min_length=1)] = ("en",)  # those the router may pick [L]


class DataConfig(Section):
    """Parquet files in the row schema of verl; docs/data.md has the columns."""

    train: Path = Path("data/train.parquet")
    heldout: Path | None = None  # questions that are evaluated and never trained
    max_prompt_tokens: int = Field(512, gt=0)  # rows with a longer prompt are left out, and their number is logged


class ModelConfig(Section):
    """The policy."""

    path: str = ""  # a Hugging Face directory or hub name; learner and engines start from the same weights
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the engines, and so of the published weights
    # How a language is asked for: "tag" by a token that the warm start taught, "system" by an instruction in the system
    # prompt, "select" by a header with which the answer begins.
    prompt_style: Literal["tag", "system", "select"] = "tag"
    header: str = "<lang_select>\n{code}\n</lang_select>\n"  # the header of "select"; {code} is the language

    @model_validator(mode="after")
    def _header_has_one_code(self) -> Self:
        parts = self.header.split("{code}")
        if len(parts) != 2 or not all(part.strip() for part in parts):
            raise ValueError(f"header = {self.header!r} must have text, {{code}} once, and text again")
        return self


class SamplingConfig(Section):
    """How the engines sample training rollouts."""

    temperature: float = Field(1.0, gt=0)  # the learner divides its logits by it, too
    max_new_tokens: int = Field(1024, gt=0)
