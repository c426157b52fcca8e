"""The figures of a run that events have struck, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.bench.chaos.cluster import Cluster
from scripts.bench.chaos.events import LONGEST_STOP_S, Events
from scripts.bench.chaos.observer import Observed
from scripts.bench.chaos.world import LEASE_S, START_S, SYNC_S


def stall_bound(start_s: float) -> float:
    """How long the run may make no step because of one event, in seconds.

    One after the other, the run may have to wait for ``lease_timeout_s``, for ``sync.timeout_s`` in the pause and in
    the transfer, and for the start of a process. All of this may happen twice, because another event may hit the
    restart, and a stopped process comes on top.

    Args:
        start_s: how long all processes took to start at the beginning, which shows how busy the machine is.
    """
    return 2 * (LEASE_S + 2 * SYNC_S + max(START_S, start_s)) + LONGEST_STOP_S


class Bounds:
    """The staleness bound of every step: floor(((S + 1) P + W - 2) / P) of the sizes with which it was trained.

    Args:
        run: directory of the run, in which ``config.json`` has the sizes, and ``config-until-step-N.json`` those that
            were used until a resume with other ones.
    """

    def __init__(self, run: Path) -> None:
        self._until = [
            (int(path.stem.rpartition("-")[2]), _bound(path)) for path in sorted(run.glob("config-until-step-*.json"))
        ]
        self._last = _bound(run / "config.json")

    def at(self, step: int) -> int:
        """The bound of this step, counted from 1."""
        return next((bound for last, bound in self._until if step <= last), self._last)

    @property
    def largest(self) -> int:
        """The largest of them."""
        return max(self._last, *(bound for _, bound in self._until), 0)


def _bound(path: Path) -> int:
    sizes = json.loads(path.read_text())["learner"]
    groups, staleness, window = sizes["groups_per_step"], sizes["staleness"], sizes["window"]
    return int(((staleness + 1) * groups + window - 2) // groups) if staleness else 0


def figures(
    cluster: Cluster, events: Events, observed: Observed, bounds: Bounds, longest_stall_s: float, bound_s: float
) -> dict[str, Any]:
    """What came of the run, by the observer and by its own summary. It has ended."""
    directory = cluster.directory
    summary = json.loads((directory / "run" / "summary.json").read_text())
    return {
        "events": events.count.total(), "lost": len(observed.lost), "doubled": len(observed.doubled),
        "staleness_max": observed.lag_max, "staleness_bound": bounds.largest,
        "groups_over_bound": len(observed.over_bound),
        "longest_stall_s": round(longest_stall_s, 1), "stall_bound_s": round(bound_s, 1),
        "groups": observed.groups, "tokens": observed.tokens, "groups_never_submitted": len(observed.unseen),
        "wrong_versions": observed.wrong_versions, "versions_confirmed": observed.checked,
        "told": {
            "lost": summary["questions_lost"], "doubled": summary["questions_duplicated"],
            "staleness_max": summary["staleness_max"],
        },
        "steps": summary["steps"], "failed": summary["groups_failed"],
        "kinds": dict(sorted(events.count.items())), "restarts": dict(sorted(cluster.restarts.items())),
        "ejected": _count(directory, "giving up actor"),
        "engines_restarted": _count(directory, "starting the engine again"),
        "second_actors": len(cluster.seconds), "second_actors_refused": _count(directory, "learner refuses this actor"),
        "foreign_weights_found": _count(directory, "has not given it"),
        "clocks": cluster.clocks.missing or f"jumped {_clock_jumps(events)} times",  # none where processes are forked
    }  # fmt: skip


def problems(found: dict[str, Any]) -> list[str]:
    """What is wrong with the figures of a run; empty if it kept its promises."""
    wrong = [
        f"{found[name]} {name}"
        for name in ("lost", "doubled", "groups_over_bound", "leftover_processes", "groups_never_submitted")
        if found[name]
    ]
    if found["wrong_versions"]:
        wrong.append(f"{found['wrong_versions']} submitted tokens are not of the policy version that they claim")
    if found["staleness_max"] > found["staleness_bound"]:
        wrong.append(f"the lag was {found['staleness_max']}, the bound is {found['staleness_bound']}")
    if found["longest_stall_s"] > found["stall_bound_s"]:
        wrong.append(f"no step for {found['longest_stall_s']} s, the bound is {found['stall_bound_s']} s")
    for name, told in found["told"].items():
        if told != found[name]:
            wrong.append(f"the run says {name} = {told}, the observer {found[name]}")
    return wrong


def _clock_jumps(events: Events) -> int:
    return sum(count for kind, count in events.count.items() if kind.startswith("clock"))


def _count(directory: Path, words: str) -> int:
    return sum(log.read_text(errors="replace").count(words) for log in directory.glob("*.log"))
