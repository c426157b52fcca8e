"""Measures whether two actors of very different speed in one pool both stay busy.

    python -m scripts.bench.pool [--json]

One engine takes 0.3 s for a group and the other 1.5 s, with four groups at a time. The learner's steps take no time.
The rate of both together is compared with the sum of their rates alone, and with a static split: with S = 0 each actor
gets four of the eight groups of a step at once, and the one that has finished its half waits.
"""

from __future__ import annotations

import json
from pathlib import Path

from scripts.bench.fleet import Fleet
from scripts.bench.table import Json, Row, run
from scripts.ops.command_line import command

_P, _SECONDS, _GOAL = 8, {"fast": 0.3, "slow": 1.5}, 0.95


def measure(directory: Path) -> list[Row]:
    # While the slow actor generates a group, the fast one finishes about twenty: window and queue must hold them.
    room = {"learner.groups_per_step": _P, "learner.staleness": 4, "learner.window": 48, "actor.groups_in_flight": 4}
    trace = {name: json.dumps({"lengths": [8], "seconds": seconds}) for name, seconds in _SECONDS.items()}
    with Fleet(directory, room) as fleet:
        fleet.start("fast", trace["fast"])
        alone = {"fast": _P / fleet.run(steps=17)[0]}
        fleet.start("slow", trace["slow"])
        pace, busy = fleet.run(steps=32)
        split = _P / fleet.run(steps=13, staleness=0)[0]
        fleet.stop("fast")
        alone["slow"] = _P / fleet.run(steps=9)[0]
    together = _P / pace
    total = sum(alone.values())
    rows = [Row(f"groups a second, {name} alone", rate, "groups") for name, rate in alone.items()]
    name, ratio = "groups a second, together", together / total
    rows.append(Row(name, together, "groups", f"sum {total:.3g}", ratio, f">= {_GOAL}x", ratio >= _GOAL))
    rows.append(Row(name, together, "groups", f"static split {split:.3g}", together / split))
    rows += [
        Row(f"share of time with work, {name}", share, "", goal=f">= {_GOAL}", ok=share >= _GOAL)
        for name, share in busy.items()
    ]
    return rows


@command()
def main(*, as_json: Json = False) -> None:
    run(measure, as_json)


if __name__ == "__main__":
    main()
