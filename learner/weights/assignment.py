"""Which leader sends the weights to which engine."""

from __future__ import annotations

from collections.abc import Mapping


def assign_leaders(engines: Mapping[str, str], leaders: Mapping[int, str], before: Mapping[str, int]) -> dict[str, int]:
    """Gives every engine a leader.

    A leader sends to all its engines over one connection, so the one with most engines decides how long a sync takes:
    none has more than its share, ceil(engines / leaders). Within it an engine stays with the leader that it had, which
    saves forming a group anew, and otherwise gets one of its own machine, or the one with the fewest engines.

    Args:
        engines: the name of the machine by the name of the engine's actor; empty where it is not known.
        leaders: the name of the machine by rank; not empty.
        before: the leader that each engine had, also of engines that are gone.

    Returns:
        The rank of the leader, by the name of the actor.
    """
    most = -(-len(engines) // len(leaders))
    found: dict[str, int] = {}
    load = dict.fromkeys(sorted(leaders), 0)

    def give(name: str, rank: int) -> None:
        found[name] = rank
        load[rank] += 1

    def is_near(name: str, rank: int) -> bool:
        return bool(engines[name]) and engines[name] == leaders[rank]

    stays = [name for name in engines if before.get(name) in leaders]
    for name in sorted(stays, key=lambda name: (not is_near(name, before[name]), name)):
        if load[before[name]] < most:
            give(name, before[name])
    for name in sorted(engines.keys() - found.keys()):
        free = [rank for rank in load if load[rank] < most]
        give(name, min(free, key=lambda rank: (not is_near(name, rank), load[rank], rank)))
    return found
