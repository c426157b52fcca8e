"""The section ``router``: the bandit over languages. Symbols of the LRPO paper stand in brackets."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from common.config.section import Fraction, LanguageCode, Section


class RouterConfig(Section):
    """How the languages of a prompt group are chosen; docs/router.md explains the model."""

    # Who chooses: "learned" is the bandit; "policy" and "hybrid" leave all rollouts, or free_rollouts of them, to the
    # policy (docs/explang.md); the others are fixed strategies.
    mode: Literal["learned", "monolingual", "input_dominant", "english_dominant", "uniform", "policy", "hybrid"] = (
        "learned"
    )
    rollouts: int = Field(8, ge=2)  # answers to each question [K]
    free_rollouts: int = Field(4, ge=0)  # of these, in mode "hybrid", those in a language that the policy chooses
    own_language: int = Field(2, ge=0)  # of these, those reserved for the question's own language [K_on]
    # The temperature starts here [tau_0]. With credit = "posterior" it scales the standard deviations of the beliefs,
    # and 1 is Thompson sampling.
    temperature: float = Field(1.0, gt=0)
    temperature_min: float = Field(0.3, gt=0)
    temperature_decay: float = Field(0.999, gt=0, le=1)  # factor of each policy step
    exploration: Fraction = 0.2  # share of the routed draws that are uniform, at the start [epsilon_0]
    exploration_min: Fraction = 0.0
    exploration_decay: float = Field(0.995, gt=0, le=1)  # factor of each policy step
    # Above 0, temperature and exploration fall linearly to their minima over this share of the run, without the decays.
    anneal: Fraction = 0.0
    interval: int = Field(5, gt=0)  # policy steps between two updates of the router [M]
    # With logits, the rate at which a logit moves towards its credit [alpha]; with "posterior", the rate of forgetting.
    ema: float = Field(0.1, gt=0, lt=1)
    # What is learned: "posterior" are Gaussian beliefs, "pooled" and "reference" are the paper's logits.
    credit: Literal["posterior", "pooled", "reference"] = "posterior"
    prior: float = Field(16.0, gt=0)  # rollouts after which an arm's own evidence counts half; not for "reference"
    compliance_weight: float = Field(1.0, ge=0)  # what a lost language costs, in mean rewards; 0 counts quality alone
    # With "posterior", languages that are closer than this share of the rewards' noise are drawn about equally often.
    indifference: float = Field(0.2, ge=0)
    question_language: bool = True  # learn from the question's language too, and not from topic and region alone
    group_norm: Literal["none", "center", "zscore"] = "zscore"  # of the logits' credit, over a context's languages
    region_topics: tuple[str, ...] = ()  # with logits, regions count for these topics alone; empty means all topics
    # Where learning starts, by row ("topic:NAME", "region:NAME", "question:CODE", "shared:"): logits, or mean rewards
    # with "posterior".
    initial: dict[str, dict[LanguageCode, float]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("own_language", *(("free_rollouts",) if self.mode == "hybrid" else ())):
            if (value := getattr(self, name)) > self.rollouts:
                raise ValueError(f"{name} = {value} exceeds rollouts = {self.rollouts}")
        for name in ("temperature", "exploration"):
            if getattr(self, f"{name}_min") > getattr(self, name):
                raise ValueError(f"{name}_min = {getattr(self, f'{name}_min')} exceeds {name} = {getattr(self, name)}")
        rows = ("shared:", "topic:", "region:", "question:")
        if wrong := [name for name in self.initial if not name.startswith(rows)]:
            raise ValueError(f"initial: a row is topic:NAME, region:NAME, question:CODE or shared:, not {wrong[0]!r}")
        return self
