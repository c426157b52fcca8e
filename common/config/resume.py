"""The section ``resume``: what a run that goes on may do otherwise than it began."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from common.config.section import Section

CONFIG_FILE = "config.json"  # in run.dir: the configuration of the newest start
SKIPPED_UNTIL = "skipped-until-"  # and a step: that steps until there trained nothing


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


class ResumeConfig(Section):
    """Read by the learner when it finds a checkpoint in run.dir; docs/troubleshooting.md has the rules."""

    # Settings that may differ from those the run has had so far, as in "learner.lr"; a section's name means all of it.
    # In a shell also with commas: --resume.accept learner.lr,learner.kl
    # "config.json": whatever has changed, where that file of the run cannot be read.
    # "skipped-until-500": that many steps in a row until step 500 trained nothing, for which the run had ended.
    accept: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
