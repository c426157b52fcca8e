"""Rules that tie settings of different sections together. Rules within a section stand with its fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.config.config import Config


def check(config: Config) -> None:
    """Raises ValueError, which names the settings, where two sections contradict each other."""
    _policy_chooses_only_with_select_prompts(config)
    _several_nodes_need_a_rendezvous(config)


def _policy_chooses_only_with_select_prompts(config: Config) -> None:
    chooses = f"router.mode = {config.router.mode!r}" if config.router.mode in ("policy", "hybrid") else ""
    chooses = chooses or ("learner.evaluate_samples" if config.learner.evaluate_samples else "")
    if chooses and config.model.prompt_style != "select":
        raise ValueError(
            f"{chooses} needs model.prompt_style = 'select', which leaves the language open; "
            f"{config.model.prompt_style!r} tells it"
        )


def _several_nodes_need_a_rendezvous(config: Config) -> None:
    if config.learner.nodes > 1 and config.run.rendezvous is None:
        raise ValueError(f"learner.nodes = {config.learner.nodes} needs run.rendezvous: any of them may lead")
