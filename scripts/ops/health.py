"""``python -m scripts.ops.health learner|reward|actor CONFIG.toml [flags]`` ends with 0 when that process answers.

For probes, run where the process runs. The learner's queue and the reward process are asked by their own protocol, at
the address they have announced; of an actor its engine is asked, at ``actor.engine_url`` or ``actor.engine_port``.
"""

from __future__ import annotations

import os
import sys
import urllib.request

import zmq

from common import wire
from common.config import Config, load
from common.net.rendezvous import Route
from common.process import FatalError
from scripts.command import plain_errors

_PATIENCE_S = 5.0


def problem(role: str, config: Config) -> str:
    """Why the process is not well; empty when it is."""
    if role == "actor":
        url = config.actor.engine_url or f"http://127.0.0.1:{config.actor.engine_port}"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=_PATIENCE_S):
                return ""
        except OSError as error:
            return f"the engine at {url} does not answer: {error}"
    replica = config.reward.replica
    name, address = ("learner", config.learner.address)
    if role == "reward":
        name, address = f"reward-{replica}", config.reward.addresses[replica]
    route = Route(config.run, name, address, 0)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        route.connect(context, f"health-{os.getpid()}")
        route.socket.send(wire.encode(wire.Health()))
        if not route.socket.poll(int(1000 * _PATIENCE_S)):
            return f"nothing answers at {route.place.address} within {_PATIENCE_S:.0f} s"
        reply = wire.decode(route.socket.recv())  # the learner's is that it does not know us
        return "it is still loading its models" if isinstance(reply, wire.Healthy) and not reply.ready else ""
    finally:
        context.destroy(linger=0)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in ("learner", "reward", "actor"):
        raise SystemExit("usage: python -m scripts.ops.health learner|reward|actor CONFIG.toml [--section.key value]")
    with plain_errors(wire.WireError):
        if told := problem(sys.argv[1], load(sys.argv[2:])):
            raise FatalError(told)


if __name__ == "__main__":
    main()
