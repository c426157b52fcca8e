"""The whole configuration of a run: all sections, and the rules that tie them to each other."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from common.config.checks import mistakes
from common.config.section import ConfigError
from common.config.sections import Sections


class Config(Sections):
    """Every setting of a run, of which none contradicts another."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if found := list(mistakes(self)):
            raise ValueError("\n  ".join(found))
        return self

    def with_questions(self, count: int) -> Self:
        """This configuration with ``learner.steps`` as ``count`` training questions make it; see LearnerConfig.

        Raises:
            ConfigError: so few questions make no step, or a stage has none.
        """
        steps = self.learner.steps_with(count)
        if steps == self.learner.steps:
            return self
        resolved = self.model_copy(update={"learner": self.learner.model_copy(update={"steps": steps})})
        if found := list(mistakes(resolved)):
            raise ConfigError("configuration: " + "\n  ".join(found))
        return resolved
