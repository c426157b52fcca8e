"""What is compared on the world of facts: ways to choose languages, and settings that may explain why one wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Name = Literal["router", "mechanism", "recipes"]

OURS = "ours"  # the arm that all others are compared with
BEST_FIXED = "best-fixed"  # needs a language that is known in hindsight: router.fixed_language
FIXED_ONLY = "fixed-only"  # likewise; no answer is in another language, so what others gain has carried over
IN_HINDSIGHT = (BEST_FIXED, FIXED_ONLY)

# Name of an arm -> its flags. Nothing but the choice of languages differs.
_ROUTER: dict[str, tuple[str, ...]] = {
    OURS: (),
    "paper": ("--router.credit", "reference", "--router.region_topics", '["Regional Knowledge"]'),  # the public code
    "uniform": ("--router.mode", "uniform"),
    BEST_FIXED: ("--router.mode", "fixed"),
    "english-dominant": ("--router.mode", "english_dominant"),
    "input-dominant": ("--router.mode", "input_dominant"),
    "monolingual": ("--router.mode", "monolingual"),
    "policy": ("--router.mode", "policy"),
    "hybrid": ("--router.mode", "hybrid"),
    "ours-signal": ("--router.value", "signal"),
}
# The exact term hardly counts in the reward, but tells the evaluation which answers are right.
_SIMILARITY = (
    "--reward.terms", "{default = {similarity = 1.0, exact = 0.001}}", "--reward.calibration", "{calibration}",
)  # fmt: skip
# One setting of the learned routing changed.
_MECHANISM: dict[str, tuple[str, ...]] = {
    OURS: (),
    # A quarter stays in the question's own language, or the arm would change the shares of the languages as well.
    **{
        f"rollouts-{count}": ("--router.rollouts", str(count), "--router.own_language", str(count // 4))
        for count in (4, 16)
    },
    **{f"staleness-{steps}": ("--learner.staleness", str(steps)) for steps in (0, 2, 4, 8)},
    **{f"own-{count}": ("--router.own_language", str(count)) for count in (0, 4)},
    FIXED_ONLY: ("--router.mode", "fixed", "--router.own_language", "0"),
    "diversity-0": ("--router.diversity", "0"),
    "split": ("--learner.advantage", "split"),
    "no-gate": ("--reward.gated", "false"),
    "similarity": (*_SIMILARITY, "--reward.calibration_mode", "mean"),
    "similarity-raw": (*_SIMILARITY, "--reward.calibration_mode", "raw"),
}
_ARMS: dict[Name, dict[str, tuple[str, ...]]] = {"router": _ROUTER, "mechanism": _MECHANISM}


def arms_of(study: Name) -> dict[str, tuple[str, ...]]:
    """The arms of a study, by name, with the flags that set each apart. The first is the one compared with.

    ``{calibration}`` in a flag stands for the calibration file of the world.
    """
    return _ARMS[study]


def needs_world(flags: Sequence[str]) -> bool:
    """Whether an arm is for the offline world alone, which has a calibration."""
    return any("{calibration}" in flag for flag in flags)


def has_own_reward(flags: Sequence[str]) -> bool:
    """Whether an arm has another reward than the others: what it earns, and its evaluation of the warm start, are on a
    scale of their own.
    """
    return any(flag.startswith("--reward.") for flag in flags)
