"""The place of the study ``recipes``: the offline world of sums that are thought through in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common.config import Config, load
from common.process import FatalError
from scripts.ops.command_line import files_first
from scripts.ops.recipes import find_recipe
from scripts.study.experiments.place import Figures
from scripts.study.experiments.reasoning_figures import SAMPLES, measure_policy, measure_warm_start, read_figures
from scripts.study.experiments.recipes import adaptation
from scripts.study.experiments.set_up import digests_of_world, settings_hash
from scripts.study.experiments.sizes import world_sizes
from scripts.study.experiments.sockets import own_sockets
from scripts.world.reasoning import demo
from scripts.world.reasoning.judge import serve_judge

REGIME = "reasoning"


class ReasoningWorld:
    """The offline world of sums; a :class:`~scripts.study.experiments.place.Place`, whose arms are recipes.

    Args:
        cache: directory of worlds and policies.
        given: further flags of all arms, none of which an arm has (:mod:`scripts.study.experiments.given`).
        warm_start_steps: of the warm start; None: as many as usual.
    """

    regime = REGIME

    def __init__(self, seed: int, cache: Path, given: Sequence[str] = (), warm_start_steps: int | None = None) -> None:
        self.seed, self._given, self._warm_start_steps = seed, given, warm_start_steps
        self.world = cache / f"reasoning-world-{seed}"
        # Another warm start has a place of its own, so that it replaces none that another study is using.
        own = "" if warm_start_steps is None else f"-steps-{warm_start_steps}"
        self.policy = cache / f"reasoning-policy-{seed}{own}"

    def prepare(self) -> None:
        demo.prepare(self.world, self.policy, self.seed, self._warm_start_steps)

    def starts_from(self) -> Mapping[str, str]:
        return digests_of_world(self.world, self.policy)

    def settings(self, arm: str) -> list[str]:
        needs, recipe = adaptation(arm), find_recipe(arm)
        if load([str(recipe)]).reward.judges and not needs.judged:
            raise FatalError(f"the recipe {arm} needs a judge, and the reasoning world has none that knows its prompts")
        return [
            str(recipe),
            *world_sizes(load([str(recipe)]), _world_config()),
            *needs.flags,
            *("--data.train", str(self.world / "train.parquet")),
            *("--data.heldout", str(self.world / "heldout.parquet")),
            *("--model.path", str(self.policy)),
            *self._given,
        ]

    def settings_hash(self, arm: str) -> str:
        warm_start = [] if self._warm_start_steps is None else ["--steps", str(self._warm_start_steps)]
        return settings_hash(files_first(self.settings(arm)), [f"samples={SAMPLES}", *warm_start])

    @contextmanager
    def around(self, arm: str, run: Path) -> Iterator[Sequence[str]]:
        with ExitStack() as stack:
            flags = stack.enter_context(own_sockets())
            if adaptation(arm).judged:
                judge = stack.enter_context(serve_judge())
                flags += ["--reward.judges", json.dumps([judge])]
                flags += ["--resume.accept", json.dumps(["reward.judges"])]  # a resumed run has it at another port
            yield flags

    def figures(self, arm: str, run: Path) -> Figures:
        before = measure_warm_start(self.policy, self.world, self.seed)
        return read_figures(run, before, measure_policy(run / "model", self.world, self.seed))


def _world_config() -> Config:
    """The configuration of the world's demo, which has its sizes."""
    return load([str(path) for path in demo.CONFIGS])
