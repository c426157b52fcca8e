"""The whole configuration of a run."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from common.config.actor import ActorConfig
from common.config.checks import check_nodes_can_meet, check_policy_may_choose
from common.config.learner import LearnerConfig
from common.config.reward import RewardConfig
from common.config.router import RouterConfig
from common.config.run import DataConfig, ModelConfig, RunConfig, SamplingConfig
from common.config.section import Section
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_policy_may_choose(self.model, self.router, self.learner)
        check_nodes_can_meet(self.run, self.learner)
        return self
