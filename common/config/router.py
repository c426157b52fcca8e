"""The section ``router``: the bandit over languages. Symbols of the LRPO paper stand in brackets."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.config.section import Fraction, LanguageCode, Section
from common.languages import code_of

_QUESTION = "question:"  # how the name of a row of ``initial`` begins that is of a question's language

# The defaults that the paper's logits have instead of those of the beliefs.
PUBLISHED = {
    "temperature": 1.0, "temperature_min": 0.3, "temperature_decay": 0.999,
    "exploration": 0.2, "exploration_min": 0.0, "exploration_decay": 0.995, "interval": 5,
}  # fmt: skip


class RouterConfig(Section):
    """How the languages of a prompt group are chosen; docs/router.md explains the model."""

    # Who chooses: "learned" is the bandit; "policy" and "hybrid" leave all rollouts, or free_rollouts of them, to the
    # policy (docs/explang.md); the others are fixed strategies.
    mode: Literal[
        "learned", "monolingual", "input_dominant", "english_dominant", "fixed", "uniform", "policy", "hybrid"
    ] = "learned"
    fixed_language: LanguageCode | None = None  # with mode "fixed", that of all rollouts but the reserved ones
    rollouts: int = Field(8, ge=2)  # answers to each question [K]
    free_rollouts: int = Field(4, ge=0)  # of these, in mode "hybrid", those in a language that the policy chooses
    own_language: int = Field(2, ge=0)  # of these, those reserved for the question's own language [K_on]
    # What is learned: "posterior" are Gaussian beliefs, "pooled" and "reference" are the paper's logits; "reference" is
    # the update of LRPO's public code, and has nothing to do with reference answers or the reference policy. With
    # logits, the defaults of temperature, exploration and interval are those of the paper (PUBLISHED).
    credit: Literal["posterior", "pooled", "reference"] = "posterior"
    # What a language is valued by: what its answers earn, or how much they teach, which is the squared deviation of
    # their rewards from the mean of their group (docs/router.md).
    value: Literal["reward", "signal"] = "reward"
    # With "posterior", the expected reward that each drawn answer may give up so that languages are drawn more evenly.
    diversity: float = Field(0.002, ge=0)
    # The temperature starts here [tau_0]. With "posterior" it scales the standard deviations of the beliefs, and 1 is
    # Thompson sampling; lower values explore less, which pays within the few steps of a run.
    temperature: float = Field(0.5, gt=0)
    temperature_min: float = Field(0.3, gt=0)
    temperature_decay: float = Field(1.0, gt=0, le=1)  # factor of each policy step
    # Share of the routed draws that are uniform, at the start [epsilon_0]. With "posterior" it only keeps propensities
    # from vanishing: the beliefs explore by themselves.
    exploration: Fraction = 0.002
    exploration_min: Fraction = 0.0
    exploration_decay: float = Field(1.0, gt=0, le=1)  # factor of each policy step
    # Above 0, temperature and exploration fall linearly to their minima over this share of the run, without the decays.
    anneal: Fraction = 0.0
    interval: int = Field(1, gt=0)  # policy steps between two updates of the router [M]
    ema: float = Field(0.1, gt=0, lt=1)  # with logits, the rate at which a logit moves towards its credit [alpha]
    prior: float = Field(16.0, gt=0)  # with "pooled", the rollouts after which a logit moves half as far as with many
    # What a lost language costs, in mean rewards; 0 counts quality alone. Neither this nor the next is of "reference".
    compliance_weight: float = Field(1.0, ge=0)
    question_language: bool = True  # learn from the question's language too, and not from topic and region alone
    group_norm: Literal["none", "center", "zscore"] = "zscore"  # of the logits' credit, over a context's languages
    region_topics: tuple[str, ...] = ()  # with logits, regions count for these topics alone; empty means all topics
    # Where learning starts, by row ("topic:NAME", "region:NAME", "question:CODE", "shared:"): logits, or mean rewards
    # with "posterior".
    initial: dict[str, dict[LanguageCode, float]] = {}

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: Any) -> Any:
        """Fills in the paper's values with logits."""
        logits = isinstance(given, dict) and given.get("credit") in ("pooled", "reference")
        return PUBLISHED | given if logits else given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("own_language", *(("free_rollouts",) if self.mode == "hybrid" else ())):
            if (value := getattr(self, name)) > self.rollouts:
                raise ValueError(f"{name} = {value} exceeds rollouts = {self.rollouts}")
        if (self.mode == "fixed") != (self.fixed_language is not None):
            raise ValueError(
                "mode = 'fixed' needs fixed_language, and no other mode has one: set both, or leave fixed_language out"
            )
        for name in ("temperature", "exploration"):
            if getattr(self, f"{name}_min") > getattr(self, name):
                raise ValueError(f"{name}_min = {getattr(self, f'{name}_min')} exceeds {name} = {getattr(self, name)}")
        idle = {
            "posterior": ("ema", "prior", "group_norm", "region_topics"),
            "pooled": ("diversity",),
            "reference": ("diversity", "prior", "compliance_weight", "question_language"),
        }[self.credit]
        if changed := [name for name in idle if self.differs(name)]:
            raise ValueError(
                f"{changed[0]} has no effect with credit = {self.credit!r}: leave it out, or choose another credit"
                + (" (how fast old rewards fade is estimated)" if changed[0] == "ema" else "")
            )
        learns_question = self.question_language or self.credit != "posterior"  # logits have its row in any case
        if idle_rows := [name for name in self.initial if name.startswith(_QUESTION) and not learns_question]:
            raise ValueError(f"initial: {idle_rows[0]!r} has no effect without question_language: leave it out")
        return self

    @field_validator("initial")
    @classmethod
    def _named(cls, initial: dict[str, dict[LanguageCode, float]]) -> dict[str, dict[LanguageCode, float]]:
        """Every row by the name that the router looks up: languages by their codes."""
        named: dict[str, dict[LanguageCode, float]] = {}
        for given, values in initial.items():
            if given != "shared:" and not given.startswith(("topic:", "region:", _QUESTION)):
                raise ValueError(f"a row is topic:NAME, region:NAME, question:CODE or shared:, not {given!r}")
            name = _QUESTION + code_of(given.removeprefix(_QUESTION)) if given.startswith(_QUESTION) else given
            if name in named:
                raise ValueError(f"{given!r} is the row {name!r}, which occurs twice")
            named[name] = values
        return named
