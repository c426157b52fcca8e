"""Draws a forecast of the planner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.pool.planner import TRIAL_STEPS, forecast
from scripts.pool.simulation import Forecast, Scenario


def draw(scenario: Scenario, found: Forecast, advice: dict[str, Any], path: Path) -> None:
    """Draws when each process works, and what another staleness bound or number of actors would change."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ((when, use), (by_s, by_actors)) = pyplot.subplots(2, 2, figsize=(10, 6), layout="constrained")
    colors = {"train": "C0", "publish": "C1", "rest": "C4", "generate": "C2", "sync": "C1", "busy": "C3"}
    names = sorted(found.spans, key=lambda who: (who == "learner", who == "reward"))[-8:]
    end = max(until for spans in found.spans.values() for _, until, _ in spans)
    for row, who in enumerate(names):
        for start, until, state in found.spans[who]:
            if state in colors and until > end - 5 * found.step_s:
                when.barh(row, until - start, left=start, color=colors[state])
    when.set(xlim=(end - 5 * found.step_s, end), xlabel="seconds", title="the last steps: gaps are waits")
    when.set_yticks(range(len(names)), names)
    busy = {name: share for name, share in sorted(found.busy.items()) if name != "learner wait"}
    use.barh(list(busy), [100 * share for share in busy.values()])
    use.set(xlim=(0, 100), xlabel="% of time", title=f"step {found.step_s:.3g} s, staleness {found.lag_mean:.2f}")
    by = advice["by_staleness"]
    by_s.plot(list(by), [one["tokens_per_second"] for one in by.values()], "o-")
    by_s.plot([scenario.staleness], [found.tokens_per_second], "k*", markersize=14)
    by_s.set(ylim=(0, None), xlabel="S", ylabel="tokens/s", title=f"recommended: S = {advice['staleness']}")
    counts = sorted({max(1, round(len(scenario.engines) * share)) for share in (0.25, 0.5, 1, 1.5, 2, 3)})
    mixes = [[scenario.engines[n * len(scenario.engines) // count] for n in range(count)] for count in counts]
    by_actors.plot(
        counts, [forecast(scenario, engines=mix, steps=TRIAL_STEPS).tokens_per_second for mix in mixes], "o-"
    )
    by_actors.plot([len(scenario.engines)], [found.tokens_per_second], "k*", markersize=14)
    by_actors.axhline(advice["learner_tokens_s"], color="C0", linestyle=":", label="the learner's most")
    by_actors.set(ylim=(0, None), xlabel="actors in this mixture", ylabel="tokens/s")
    by_actors.legend()
    figure.savefig(path, dpi=90)
