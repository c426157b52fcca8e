"""The size of the offline world's policy, and everything else that its warm start depends on. Imports without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.config import ModelConfig

Style = Literal["tag", "select"]
# Which languages surely know a fact: those of its region and topic; one language, the same for all facts; or some that
# are drawn for each fact, so that neither region nor topic tells anything.
Knowledge = Literal["region", "one-language", "equal"]


@dataclass(frozen=True)
class Settings:
    """Everything that the warm-started policy depends on, besides the world."""

    seed: int = 0
    style: Style = "tag"  # how the language is asked for: by a tag, or by the header that the policy selects
    header: str = ModelConfig().header
    favourite: str = "en"  # the language whose header is always a part of what is learned
    others: float = 0.1  # how often the header of another language is learned; else it is a part of the prompt
    unseen: str = "pt,ru"  # languages, separated by commas, whose header is always a part of the prompt
    steps: int = 1500
    batch: int = 16  # sequences a step
    lr: float = 4e-3  # peak; warmed up over 50 steps, then a cosine to a twentieth
    weight_decay: float = 0.05
    own_language: float = 0.4  # share of examples asked in the answer's language; else in a random one
    vocabulary: int = 4000
    hidden: int = 128
    intermediate: int = 1024  # wide, because facts are stored here, and a CPU is most efficient at large products
    layers: int = 4
    heads: int = 2
    head_dim: int = 64
