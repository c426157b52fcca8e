"""One typed configuration for a run. Imports neither torch nor anything else that is slow."""

from common.config.actor import ActorConfig
from common.config.checks import HEARTBEAT_S, address_problem, is_address, languages_asked_for, unchecked_problem
from common.config.config import Config
from common.config.explain import explain
from common.config.learner import LearnerConfig, StageConfig
from common.config.load import given_keys, load, read_toml, usage
from common.config.lora import LoraConfig
from common.config.resume import ResumeConfig
from common.config.reward import RewardConfig
from common.config.router import RouterConfig
from common.config.run import DataConfig, ModelConfig, RunConfig, SamplingConfig
from common.config.section import ConfigError, Section
from common.config.sync import SyncConfig

__all__ = [
    "HEARTBEAT_S", "ActorConfig", "Config", "ConfigError", "DataConfig", "LearnerConfig", "LoraConfig",
    "ModelConfig", "ResumeConfig", "RewardConfig", "RouterConfig", "RunConfig", "SamplingConfig", "Section",
    "StageConfig", "SyncConfig", "address_problem", "explain", "given_keys", "is_address", "languages_asked_for",
    "load", "read_toml", "unchecked_problem", "usage",
]  # fmt: skip
