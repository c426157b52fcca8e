"""The strategies that are compared: the router in its settings, textbook bandits, and fixed strategies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

from common import config as configuration
from router.observations import Array, Context, Names, Observation
from router.router import Draw, Router
from router.simulation.textbook import LinearThompson, LinUcb


class Strategy(Protocol):
    """What draws languages and learns; :class:`router.Router` is one."""

    def route(self, contexts: Sequence[Context]) -> list[Draw]: ...
    def observe(self, observations: Sequence[Observation]) -> None: ...
    def distribution(self, question_language: str, topics: Names, regions: Names) -> Array: ...


Maker: TypeAlias = Callable[[Sequence[str], int, int], Strategy]  # of languages, seed and steps


def _router(**settings: Any) -> Maker:
    return partial(Router, configuration.RouterConfig(**settings))


def _textbook(kind: type[LinearThompson] | type[LinUcb], scale: float, keep: float = 1.0) -> Maker:
    return partial(kind, configuration.RouterConfig(), scale=scale, keep=keep)


TEXTBOOK: dict[str, Maker] = {
    "thompson-0.25": _textbook(LinearThompson, 0.25),
    "thompson-0.1": _textbook(LinearThompson, 0.1),
    "linucb-0.5": _textbook(LinUcb, 0.5),
    "linucb-0.2": _textbook(LinUcb, 0.2),
    "thompson-discounted": _textbook(LinearThompson, 0.1, 0.95),
    "linucb-discounted": _textbook(LinUcb, 0.2, 0.95),
}
BEST_FIXED = "best-fixed"  # the one language that would have been the best for all draws, known in hindsight
STRATEGIES: dict[str, Maker] = {
    "posterior": _router(),  # the defaults
    # the default with one setting changed: what diversity, the floor, a lower temperature and own[q, l] cost or bring
    "diversity-0": _router(diversity=0.0),
    "diversity-0.01": _router(diversity=0.01),
    "exploration-0": _router(exploration=0.0),
    "temperature-1": _router(temperature=1.0),
    "no-own-row": _router(question_language=False),
    "pooled": _router(credit="pooled"),
    "reference": _router(credit="reference"),
    "sharp-pooled": _router(credit="pooled", temperature=0.2, temperature_min=0.2, ema=0.3),
    "sharp-reference": _router(credit="reference", temperature=0.1, temperature_min=0.1),
    **TEXTBOOK,
    "uniform": _router(mode="uniform"),
    "monolingual": _router(mode="monolingual"),
    "input_dominant": _router(mode="input_dominant"),
    "english_dominant": _router(mode="english_dominant"),
    BEST_FIXED: _router(mode="monolingual"),  # stands in; compare.play computes its regret
}
