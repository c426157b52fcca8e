"""The sections ``run``, ``data``, ``model`` and ``sampling``: what is trained, and on what."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.config.section import Directory, Fraction, LanguageCode, Section
from common.instructions import DEFAULT, names_the_language
from common.languages import code_of, count_as_one, declare


class RunConfig(Section):
    """What all processes of a run share."""

    dir: Directory = Path("runs/default")  # holds logs, TensorBoard events, checkpoints and the exported model
    # A directory that all hosts see, where services write their addresses. Without it, the configured addresses hold.
    rendezvous: Path | None = None
    # Where metrics go: TensorBoard's event files in ``dir``, and on request wandb or trackio, which pip installs.
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    seed: int = Field(0, ge=0, lt=2**63)
    # Languages that lid.176 does not know, by label: {tir = "Tigrinya"}. They are then given as any other, in settings
    # and data; docs/languages.md says what is checked of them.
    other_languages: dict[str, str] = {}
    languages: Annotated[tuple[LanguageCode, ...], Field(min_length=1)] = ("en",)  # those the router may pick [L]

    @field_validator("other_languages")
    @classmethod
    def _are_known_from_now_on(cls, given: dict[str, str]) -> dict[str, str]:
        """Before the fields and sections below are read, which may name them."""
        declare(given)
        return given

    @model_validator(mode="after")
    def _languages_differ(self) -> Self:
        for number, second in enumerate(self.languages):
            for first in self.languages[:number]:
                if count_as_one(first, second):
                    raise ValueError(
                        f"languages: {second!r} stands there twice, by whatever names" if first == second else
                        f"languages: {first!r} and {second!r} count as one language: name one of them"
                    )  # fmt: skip
        return self


class DataConfig(Section):
    """The questions; docs/data.md describes sources, rows and columns."""

    # Each is a parquet, JSON, JSONL, CSV or TSV file, a directory of such files, or a data set of the hub as
    # owner/name[:configuration][@split].
    train: str = Field("data/train.parquet", min_length=1)
    heldout: str | None = None  # questions that are evaluated and never trained
    # Where the rows have what a question needs: question, answer, language, topic, region, accepted; any other name is
    # a further column that reaches the rewards as a text. {language = "extra_info.lang", level = "difficulty"}
    columns: dict[str, str] = {}
    language: LanguageCode | None = None  # of the rows that name none
    broken_rows: Literal["skip", "refuse"] = "skip"  # listed in any case; "refuse" ends the run before it begins
    # Of a prompt as it is sent; rows with a longer one are left out and listed.
    max_prompt_tokens: int = Field(512, gt=0)
    # Training questions are used whose pass rate lies within [low, high]: the share of answers that were right when
    # scripts.data.pass_rate asked them, as a mean over the languages of the run. Without it all are used.
    pass_rate: tuple[Fraction, Fraction] | None = None
    # A question whose answers were all right, or all wrong, n times in a row is asked with the probability
    # max(0.05, curriculumⁿ) when its turn comes again; learner/work/curriculum.py. 1 asks every question each time.
    curriculum: float = Field(1.0, gt=0, le=1)
    # An answer is right for the curriculum if its accuracy (common/diagnostics.py) is at least this. Must be given
    # where the reward has no accuracy part: then its quality counts.
    curriculum_right: float = 0.5

    @field_validator("pass_rate")
    @classmethod
    def _bounds_are_ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(f"[{value[0]:g}, {value[1]:g}] holds nothing: the lower bound comes first")
        return value

    @field_validator("train", "heldout", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value


class ModelConfig(Section):
    """The policy."""

    path: str = ""  # a Hugging Face directory or hub name; learner and engines start from the same weights
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the engines, and so of the published weights
    # How a language is asked for: "tag" by a token that the warm start taught, "system" by an instruction in the system
    # prompt, "select" by a header with which the answer begins, "plain" by nothing: prompts are as the rows have them.
    prompt_style: Literal["tag", "system", "select", "plain"] = "tag"
    # With "system", instructions of one's own by language, in place of those of common/instructions.py. "default" is
    # that of all others. In each {language} stands for the language's English name and {native} for its own:
    # {de = "Antworte knapp und auf Deutsch.", default = "Answer in {language}."}
    instructions: dict[str, str] = {}
    header: str = "<lang_select>\n{code}\n</lang_select>\n"  # the header of "select"; {code} is the language

    # What the chat template takes besides the messages, as {enable_thinking = false} for Qwen3.
    template_args: dict[str, Any] = {}
    # The date for chat templates that write today's into every prompt; by default the one that Llama's falls back on.
    date: datetime.date = datetime.date(2024, 7, 26)

    @model_validator(mode="after")
    def _template_args_are_free(self) -> Self:
        if taken := sorted(
            {"messages", "tokenize", "add_generation_prompt", "conversation"} & self.template_args.keys()
        ):
            raise ValueError(f"template_args: {taken[0]!r} is not for the user to give")
        return self

    @field_validator("instructions")
    @classmethod
    def _by_code(cls, given: dict[str, str]) -> dict[str, str]:
        """Languages by their codes. Templates strip what they write, and so the texts are stripped."""
        found: dict[str, str] = {}
        for name, text in given.items():
            code = name if name == DEFAULT else code_of(name)
            if code in found:
                raise ValueError(f"{name!r} is {code!r}, which has an instruction already: keep one")
            if not text.strip():
                raise ValueError(f"that of {name!r} is empty: leave it out, or set model.prompt_style = 'plain'")
            found[code] = text.strip()
        return found

    @property
    def silent_about_language(self) -> str:
        """Which setting leaves open in which language an answer is to be, for a message; empty where prompts say it."""
        if self.prompt_style == "plain":
            return "model.prompt_style = 'plain'"
        default = self.instructions.get(DEFAULT) if self.prompt_style == "system" else None
        return "" if default is None or names_the_language(default) else f"model.instructions.{DEFAULT} = {default!r}"

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
