"""Rules that tie settings of different sections together. Rules within a section stand with its fields."""

from __future__ import annotations

from common.config.learner import LearnerConfig
from common.config.router import RouterConfig
from common.config.run import ModelConfig, RunConfig


def check_policy_may_choose(model: ModelConfig, router: RouterConfig, learner: LearnerConfig) -> None:
    """The policy can choose its language only where the prompt leaves it open.

    Raises:
        ValueError: it chooses, and the prompt names a language.
    """
    chooses = f"router.mode = {router.mode!r}" if router.mode in ("policy", "hybrid") else ""
    chooses = chooses or ("learner.evaluate_samples" if learner.evaluate_samples else "")
    if chooses and model.prompt_style != "select":
        raise ValueError(
            f"{chooses} needs model.prompt_style = 'select', which leaves the language open; "
            f"{model.prompt_style!r} tells it"
        )


def check_nodes_can_meet(run: RunConfig, learner: LearnerConfig) -> None:
    """Several learner nodes need a rendezvous, because any of them may lead.

    Raises:
        ValueError: there is none.
    """
    if learner.nodes > 1 and run.rendezvous is None:
        raise ValueError(f"learner.nodes = {learner.nodes} needs run.rendezvous: any of them may lead")
