"""The section ``lora``: low-rank adapters, trained in place of all weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from common.config.section import Section


class LoraConfig(Section):
    """LoRA: a frozen matrix W becomes W + (alpha / rank) · B · A; docs/lora.md explains the choices."""

    rank: int = Field(0, ge=0)  # of A and B; 0 trains all weights, without adapters
    alpha: float = Field(32.0, gt=0)  # scales what the adapters add, as alpha / rank
    # The linear layers inside the decoder's layers that get an adapter, by the last part of their names.
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip
    dropout: float = Field(0.0, ge=0, lt=1)  # of the adapters' inputs in training; the engines have none
    # What the engines get: "adapter" is A and B alone, loaded beside those before them without a pause; "merged" is all
    # weights, with the adapters added to them, which any engine takes.
    sync: Literal["adapter", "merged"] = "adapter"

    @property
    def sends_adapters(self) -> bool:
        """Whether the engines hold the frozen weights and load adapters, instead of taking all weights."""
        return self.rank > 0 and self.sync == "adapter"
