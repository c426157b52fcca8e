"""The places of the studies ``router`` and ``mechanism``: the offline world of facts, or one's own model and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

from common.process import FatalError
from scripts.study.experiments.arms import IN_HINDSIGHT
from scripts.study.experiments.figures import (
    read_evaluation_before,
    read_figures,
    settings_hash,
)
from scripts.study.experiments.knowledge import best_language, read_knowledge
from scripts.study.experiments.place import Figures
from scripts.study.experiments.warm_start import WarmStart
from scripts.world import demo
from scripts.world.settings import Knowledge

_ROOT = Path(__file__).parents[3]
_CONFIGS = [str(_ROOT / "configs" / name) for name in ("demo.toml", "study.toml")]
REGIMES = ("region", "one-language", "equal")
OWN_DATA = "data"  # the regime of one's own data


class FactsWorld:
    """The offline world of facts; a :class:`~scripts.study.experiments.place.Place`.

    Args:
        regime: who knows what, one of ``REGIMES``.
        cache: directory of worlds and policies.
        arms: name -> flags that set it apart.
        given: further flags of all arms.
        warm_start: further flags of ``scripts.world.warm_start``.
    """

    def __init__(
        self,
        regime: str,
        seed: int,
        cache: Path,
        arms: Mapping[str, Sequence[str]],
        given: Sequence[str] = (),
        warm_start: Sequence[str] = (),
    ) -> None:
        self.regime, self.seed, self._arms, self._given, self._warm_start = regime, seed, arms, given, warm_start
        self._world, self._policy = cache / f"world-{regime}-{seed}", cache / f"policy-select-{regime}-{seed}"
        self._shared = [
            *_CONFIGS,
            *("--data.train", str(self._world / "train.parquet")),
            *("--data.heldout", str(self._world / "heldout.parquet")),
            *("--model.path", str(self._policy)),
        ]

    def prepare(self) -> None:
        # Every language can be chosen: the policy has seen the headers of all.
        flags = ["--style", "select", "--unseen", "", *self._warm_start]
        demo.prepare(self._world, self._policy, self.seed, flags, cast(Knowledge, self.regime))

    def settings(self, arm: str) -> list[str]:
        calibration = str(self._world / "facts.csv")
        flags = [flag.replace("{calibration}", calibration) for flag in self._arms[arm]]
        if arm in IN_HINDSIGHT:
            flags += ["--router.fixed_language", best_language(read_knowledge(self._world))]
        return [*self._shared, *flags, *self._given]

    def settings_hash(self, arm: str) -> str:
        return settings_hash(self._shared, [*self._arms[arm], *self._given, *self._warm_start])

    def around(self, arm: str, run: Path) -> AbstractContextManager[Sequence[str]]:
        return _evaluated_once(run, self.seed, self._arms[arm])

    def figures(self, arm: str, run: Path) -> Figures:
        return read_figures(run, read_knowledge(self._world), _evaluation_before(run, self.seed, self._arms[arm]))


class OwnData:
    """One's own model and data, which are there already; a :class:`~scripts.study.experiments.place.Place`.

    Args:
        base: files and flags that name them.
        arms: name -> flags that set it apart.
        best: the language of the arms ``best-fixed`` and ``fixed-only``; None: not known.
    """

    regime = OWN_DATA

    def __init__(self, seed: int, base: Sequence[str], arms: Mapping[str, Sequence[str]], best: str | None) -> None:
        self.seed, self._base, self._arms, self._best = seed, base, arms, best

    def prepare(self) -> None:
        pass

    def settings(self, arm: str) -> list[str]:
        if any("{calibration}" in flag for flag in self._arms[arm]):
            raise FatalError(f"the arm {arm} is for the offline world; leave it out with --arms")
        fixed: list[str] = []
        if arm in IN_HINDSIGHT:
            if self._best is None:
                raise FatalError(f"the arm {arm} needs --best-language, or leave it out with --arms")
            fixed = ["--router.fixed_language", self._best]
        return [*self._base, *self._arms[arm], *fixed]

    def settings_hash(self, arm: str) -> str:
        return settings_hash(self._base, self._arms[arm])

    def around(self, arm: str, run: Path) -> AbstractContextManager[Sequence[str]]:
        return _evaluated_once(run, self.seed, self._arms[arm])

    def figures(self, arm: str, run: Path) -> Figures:
        return read_figures(run, None, _evaluation_before(run, self.seed, self._arms[arm]))


@contextmanager
def _evaluated_once(run: Path, seed: int, flags: Sequence[str]) -> Iterator[Sequence[str]]:
    """A block in which a run is trained, that evaluates the warm start only if no run of its place has done so."""
    before = _evaluation_before(run, seed, flags)
    yield ("--learner.evaluate_before", str(not before).lower())
    if not before and not _has_own_reward(flags):
        _warm_start(run, seed).keep(read_evaluation_before(run))


def _evaluation_before(run: Path, seed: int, flags: Sequence[str]) -> dict[str, Any]:
    """The evaluation of the warm start by another run; empty where none is of use to an arm with these flags."""
    return {} if _has_own_reward(flags) else _warm_start(run, seed).evaluation


def _has_own_reward(flags: Sequence[str]) -> bool:
    """Whether an arm has another reward than the others, so that its evaluation of the warm start is its own."""
    return any(flag.startswith("--reward.") for flag in flags)


def _warm_start(run: Path, seed: int) -> WarmStart:
    return WarmStart(run.parent / f"warm-start-{seed}.json")
