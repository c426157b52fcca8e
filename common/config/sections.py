"""All sections of a configuration together, before the rules that tie them to each other."""

from __future__ import annotations

from common.config.actor import ActorConfig
from common.config.learner import LearnerConfig
from common.config.lora import LoraConfig
from common.config.resume import ResumeConfig
from common.config.reward import RewardConfig
from common.config.router import RouterConfig
from common.config.run import DataConfig, ModelConfig, RunConfig, SamplingConfig
from common.config.section import Section
from common.config.sync import SyncConfig


class Sections(Section):
    """Every setting of a run; each process reads the sections it needs."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    router: RouterConfig = RouterConfig()
    sampling: SamplingConfig = SamplingConfig()
    actor: ActorConfig = ActorConfig()
    reward: RewardConfig = RewardConfig()
    learner: LearnerConfig = LearnerConfig()
    lora: LoraConfig = LoraConfig()
    sync: SyncConfig = SyncConfig()
    resume: ResumeConfig = ResumeConfig()
