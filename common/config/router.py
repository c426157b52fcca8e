"""The section ``router``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from common.config.section import Fraction, LanguageCode, Section


class RouterConfig(Section):
    """The bandit over languages; symbols of the LRPO paper in brackets."""

    # Who picks: policy and hybrid leave all rollouts, or free_rollouts of them, to the policy; docs/explang.md
    mode: Literal["learned", "monolingual", "input_dominant", "english_dominant", "uniform", "policy", "hybrid"] = (
        "learned"
    )
    rollouts: int = Field(8, ge=2)  # answers to a question [K]
    free_rollouts: int = Field(4, ge=0)  # of hybrid: those in a language that the policy chooses [K_free]
    own_language: int = Field(2, ge=0)  # of which reserved for the question's language [K_on]
    temperature: float = Field(1.0, gt=0)  # at step 0 [tau_0]; posterior: scales deviations, 1 is Thompson sampling
    temperature_min: float = Field(0.3, gt=0)
    temperature_decay: float = Field(0.999, gt=0, le=1)  # a step
    exploration: Fraction = 0.2  # share of routed draws made uniformly [epsilon_0]
    exploration_min: Fraction = 0.0
    exploration_decay: float = Field(0.995, gt=0, le=1)  # a step
    anneal: Fraction = 0.0  # above 0: both fall linearly to their minima over this share of the run, not by the decays
    interval: int = Field(5, gt=0)  # policy steps between two router updates [M]
    ema: float = Field(0.1, gt=0, lt=1)  # rate of a logit towards its credit [alpha]; posterior: of forgetting
    credit: Literal["posterior", "pooled", "reference"] = "posterior"  # the paper's logits are the latter two
    prior: float = Field(16.0, gt=0)  # rollouts that it takes to half believe an arm's credit; not with reference
    compliance_weight: float = Field(1.0, ge=0)  # of a lost language, in mean rewards; 0: quality alone counts
    indifference: float = Field(0.2, ge=0)  # posterior: arms closer than this share of the rewards' noise stay even
    question_language: bool = True  # learn from the question's language too, not from topic and region alone
    group_norm: Literal["none", "center", "zscore"] = "zscore"  # of logits' credit, over the languages of a context
    region_topics: tuple[str, ...] = ()  # logits: regions count for these topics only; empty: for all
    initial: dict[
        str, dict[LanguageCode, float]
    ] = {}  # by row, "topic:NAME" or "region:NAME": logits; posterior: rewards

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("own_language", *(("free_rollouts",) if self.mode == "hybrid" else ())):
            if (value := getattr(self, name)) > self.rollouts:
                raise ValueError(f"{name} = {value} exceeds rollouts = {self.rollouts}")
        for name in ("temperature", "exploration"):
            if getattr(self, f"{name}_min") > getattr(self, name):
                raise ValueError(f"{name}_min = {getattr(self, f'{name}_min')} exceeds {name} = {getattr(self, name)}")
        if wrong := [
            name for name in self.initial if not name.startswith(("shared:", "topic:", "region:", "question:"))
        ]:
            raise ValueError(f"initial: a row is topic:NAME, region:NAME, question:CODE or shared:, not {wrong[0]!r}")
        return self
