"""Predicts how long a weight sync takes for many engines and learner nodes. Nothing is measured.

    python -m scripts.pool.sync [--json] [--weights-gb 15.2] [--network-gb-s 50]

Prints seconds by the number of engines and of learner nodes. Each node's leader sends to the share of the engines that
the learner itself would give it, and the connection of the busiest node is what takes long.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated

import typer

from learner.weights.assignment import assign_leaders
from scripts.ops.command_line import command

ENGINES, NODES = (8, 64, 512), (1, 2, 8)


def transfer_s(engines: int, nodes: int, weights_gb: float, network_gb_s: float) -> float:
    """Seconds in which the weights reach all engines through process groups.

    The busiest node sends them to each engine of its share, and sends its shard of each weight to the other nodes while
    all ranks gather: (share + (nodes - 1) / nodes) · weights / network. Left out are what does not grow with the bytes,
    and engines whose own connections are slower than their part of a learner node's.

    Args:
        engines: that take weights through process groups.
        nodes: of the learner.
        weights_gb: of the published weights, in their own dtype, in gigabytes (10^9 bytes).
        network_gb_s: what leaves a learner node in a second, in gigabytes.
    """
    given = assign_leaders({str(number): "" for number in range(engines)}, dict.fromkeys(range(nodes), ""), {})
    share = max(Counter(given.values()).values(), default=0)
    return (share + (nodes - 1) / nodes) * weights_gb / network_gb_s


@command()
def main(
    *,
    weights_gb: Annotated[float, typer.Option(min=0, help="Gigabytes of weights; 15.2 are 7.6B in bfloat16.")] = 15.2,
    network_gb_s: Annotated[float, typer.Option(min=1e-9, help="Gigabytes a second out of a learner node.")] = 50.0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")] = False,
) -> None:
    found = {
        engines: {nodes: transfer_s(engines, nodes, weights_gb, network_gb_s) for nodes in NODES} for engines in ENGINES
    }
    if as_json:
        print(json.dumps(found))
        return
    print(f"predicted seconds for {weights_gb:g} GB of weights, {network_gb_s:g} GB/s out of each learner node")
    print(f"{'engines':>10}" + "".join(f"{f'{nodes} node' + 's' * (nodes > 1):>10}" for nodes in NODES))
    for engines, by_nodes in found.items():
        print(f"{engines:>10}" + "".join(f"{seconds:>10.1f}" for seconds in by_nodes.values()))


if __name__ == "__main__":
    main()
