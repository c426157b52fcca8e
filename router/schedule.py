"""How temperature and exploration fall during a run."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import RouterConfig


@dataclass(frozen=True)
class Schedule:
    """A value that falls from ``start`` to ``end``.

    With an anneal length it falls linearly and reaches ``end`` at that policy step; it equals
    ``start + (end - start) min(1, step / anneal_steps)``. Without one it is ``max(end, start * decay ** step)``.

    Attributes:
        start: the value at step 0.
        end: the value that it does not fall below.
        decay: factor for each policy step, without an anneal length.
        anneal_steps: the anneal length in policy steps; 0 for none.
    """

    start: float
    end: float
    decay: float
    anneal_steps: float

    def at(self, step: int) -> float:
        """The value at a policy step."""
        if self.anneal_steps:
            return self.start + (self.end - self.start) * min(1.0, step / self.anneal_steps)
        return max(self.end, self.start * self.decay**step)


def temperature_schedule(config: RouterConfig, steps: int) -> Schedule:
    """The schedule of the temperature tau in a run of so many policy steps."""
    return Schedule(config.temperature, config.temperature_min, config.temperature_decay, config.anneal * steps)


def exploration_schedule(config: RouterConfig, steps: int) -> Schedule:
    """The schedule of the exploration rate epsilon in a run of so many policy steps."""
    return Schedule(config.exploration, config.exploration_min, config.exploration_decay, config.anneal * steps)
