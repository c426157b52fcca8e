"""The places of the studies ``router`` and ``mechanism``: the offline world of facts, or one's own model and data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import cast

from common.config import Config, load
from common.process import FatalError
from reward.calibration.files import quantile_path
from scripts.ops.command_line import files_first
from scripts.study.experiments.arms import IN_HINDSIGHT, has_own_reward, needs_world
from scripts.study.experiments.figures import (
    read_evaluation_before,
    read_figures,
)
from scripts.study.experiments.knowledge import best_language, read_knowledge
from scripts.study.experiments.place import Figures
from scripts.study.experiments.set_up import digest_of_model, digests_of_world, settings_hash
from scripts.study.experiments.sockets import own_sockets
from scripts.study.experiments.warm_start import WarmStart
from scripts.study.iterate.record import digest_of_file, digest_of_source
from scripts.world import demo
from scripts.world.settings import Knowledge

_ROOT = Path(__file__).parents[3]
_CONFIGS = [str(_ROOT / "configs" / name) for name in ("demo.toml", "study.toml")]
_PAST = {"learner.batch_timeout_s": 300.0}  # of configs/demo.toml, when the first records were made
REGIMES = ("region", "one-language", "equal")
OWN_DATA = "data"  # the regime of one's own data


class FactsWorld:
    """The offline world of facts; a :class:`~scripts.study.experiments.place.Place`.

    Args:
        regime: who knows what, one of ``REGIMES``.
        cache: directory of worlds and policies.
        arms: name -> flags that set it apart.
        given: further flags of all arms, none of which an arm has (:mod:`scripts.study.experiments.given`).
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
        self._world = cache / f"world-{regime}-{seed}"
        # Another warm start has a place of its own, so that it replaces none that another study is using.
        self._policy = cache / "-".join(["policy-select", regime, str(seed), *(word.strip("-") for word in warm_start)])
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

    def starts_from(self) -> Mapping[str, str]:
        return digests_of_world(self._world, self._policy)

    def settings(self, arm: str) -> list[str]:
        calibration = str(self._world / "facts.csv")
        flags = [flag.replace("{calibration}", calibration) for flag in self._arms[arm]]
        if arm in IN_HINDSIGHT:
            flags += ["--router.fixed_language", best_language(read_knowledge(self._world))]
        return [*self._shared, *self._given, *flags]  # the arm's last, so that it is what its name says

    def settings_hash(self, arm: str) -> str:
        # Which language is best in hindsight is known when the world is there.
        flags = [] if arm in IN_HINDSIGHT else [flag.replace("{calibration}", "facts.csv") for flag in self._arms[arm]]
        _check_evaluated(load(files_first([*self._shared, *self._given, *flags])))
        shared = files_first([*self._shared, *self._given])
        return settings_hash(shared, [*self._arms[arm], *self._given, *self._warm_start], _PAST)

    @contextmanager
    def around(self, arm: str, run: Path) -> Iterator[Sequence[str]]:
        with own_sockets() as sockets, _evaluated_once(run, self._start(run), self._arms[arm]) as flags:
            yield [*sockets, *flags]

    def figures(self, arm: str, run: Path) -> Figures:
        before = {} if has_own_reward(self._arms[arm]) else self._start(run).evaluation
        return read_figures(run, read_knowledge(self._world), before)

    def _start(self, run: Path) -> WarmStart:
        settings = settings_hash(self._shared, [*self._given, *self._warm_start])
        return _warm_start(run, self.seed, settings, self.starts_from())


class OwnData:
    """One's own model and data, which are there already; a :class:`~scripts.study.experiments.place.Place`.

    Args:
        base: files and flags that name them.
        arms: name -> flags that set it apart.
        best: the language of the arms ``best-fixed`` and ``fixed-only``; None: not known.
    """

    regime = OWN_DATA

    def __init__(self, seed: int, base: Sequence[str], arms: Mapping[str, Sequence[str]], best: str | None) -> None:
        self.seed, self._base, self._arms, self._best = seed, files_first(base), arms, best

    def prepare(self) -> None:
        pass

    def starts_from(self) -> Mapping[str, str]:
        return {}

    def settings(self, arm: str) -> list[str]:
        if needs_world(self._arms[arm]):
            raise FatalError(f"the arm {arm} is for the offline world; leave it out with --arms")
        fixed: list[str] = []
        if arm in IN_HINDSIGHT:
            if self._best is None:
                raise FatalError(f"the arm {arm} needs --best-language, or leave it out with --arms")
            fixed = ["--router.fixed_language", self._best]
        return [*self._base, *self._arms[arm], *fixed]

    def settings_hash(self, arm: str) -> str:
        settings = self.settings(arm)
        _check_evaluated(load(files_first(settings)))
        return settings_hash(self._base, [*settings[len(self._base) :], *self._content])

    def around(self, arm: str, run: Path) -> AbstractContextManager[Sequence[str]]:
        return _evaluated_once(run, self._start(run), self._arms[arm])

    def figures(self, arm: str, run: Path) -> Figures:
        return read_figures(run, None, {} if has_own_reward(self._arms[arm]) else self._start(run).evaluation)

    @cached_property
    def _content(self) -> list[str]:
        """What model and questions these are, which the hash of settings leaves out: a world's follow from its seed."""
        config = load(self._base)
        sources = {"data.train": config.data.train, "data.heldout": config.data.heldout}
        found = [f"{key} {digest_of_source(source)}" for key, source in sources.items() if source]
        if config.reward.calibration is not None:
            found.append(f"reward.calibration {digest_of_file(config.reward.calibration)}")
            if config.reward.calibration_mode == "quantile":
                found.append(f"its quantiles {digest_of_file(quantile_path(config.reward.calibration))}")
        return [f"model.path {digest_of_model(config.model.path)}", *found]

    def _start(self, run: Path) -> WarmStart:
        return _warm_start(run, self.seed, settings_hash(self._base, self._content))


@contextmanager
def _evaluated_once(run: Path, start: WarmStart, flags: Sequence[str]) -> Iterator[Sequence[str]]:
    """A block in which a run is trained, that evaluates the warm start only if no run of its place has done so.

    Args:
        flags: of the arm. One with its own reward evaluates the warm start by itself.
    """
    before = {} if has_own_reward(flags) else start.evaluation
    yield ("--learner.evaluate_before", str(not before).lower())
    if not has_own_reward(flags):
        start.keep(read_evaluation_before(run))


def _warm_start(run: Path, seed: int, settings: str, starts_from: Mapping[str, str] | None = None) -> WarmStart:
    return WarmStart(run.parent / f"warm-start-{seed}.json", settings, starts_from)


def _check_evaluated(config: Config) -> None:
    """Refuses runs that leave no figures behind, before they are trained.

    Raises:
        FatalError: they are not evaluated.
    """
    if not config.learner.evaluate:
        raise FatalError("learner.evaluate = false: the figures of this study are evaluations, so leave it out")
    if not config.data.heldout:
        raise FatalError("data.heldout is empty: this study needs questions that are not trained on, so name a file")
