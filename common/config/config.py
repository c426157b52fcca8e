"""The whole configuration of a run."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from common.config.actor import ActorConfig
from common.config.checks import mistakes
from common.config.learner import LearnerConfig
from common.config.resume import ResumeConfig
from common.config.reward import RewardConfig
from common.config.router import RouterConfig
from common.config.run import DataConfig, ModelConfig, RunConfig, SamplingConfig
from common.config.section import ConfigError, Section
from common.config.sync import SyncConfig


class Config(Section):
    """Every setting of a run; each process reads the sections it needs."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    router: RouterConfig = RouterConfig()
    sampling: SamplingConfig = SamplingConfig()
    actor: ActorConfig = ActorConfig()
    reward: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()
    sync: SyncConfig = SyncConfig()
    resume: ResumeConfig = ResumeConfig()

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
