"""The settings that a user gives for all arms of a study: none may be one that the study or an arm sets itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.config import given_keys
from common.process import FatalError
from scripts.ops.command_line import files_first
from scripts.study.experiments.arms import IN_HINDSIGHT

_OF_ANY_STUDY = {"run.seed": "give --seeds", "run.dir": "give --out"}
_OF_A_WORLD = dict.fromkeys(
    ("data.train", "data.heldout", "model.path"),
    "it has the questions and the policy of its world; with --base, lrpo study router and mechanism have your own",
)


def check_given(given: Sequence[str], arms: Mapping[str, Sequence[str]], *, has_world: bool) -> None:
    """Refuses settings that would be without effect, or would take away what sets an arm apart.

    Args:
        given: files and flags for all arms.
        arms: name of an arm that is asked for -> its own flags.
        has_world: whether the study makes its questions and its policy itself.

    Raises:
        ConfigError: a file cannot be read, or a flag has no value.
        FatalError: a setting is the study's or an arm's.
    """
    keys = given_keys(files_first(given))
    for key, remedy in (_OF_ANY_STUDY | (_OF_A_WORLD if has_world else {})).items():
        if key in keys:
            raise FatalError(f"{key} is set by the study: leave it out; {remedy}")
    for arm, flags in arms.items():
        own = given_keys(flags) | ({"router.fixed_language"} if arm in IN_HINDSIGHT else set())
        if taken := sorted(own & keys):
            raise FatalError(
                f"{taken[0]} is what sets the arm {arm} apart, so it cannot be given for all arms: leave it out, or "
                f"leave out {arm} with --arms"
            )
