"""Checks whether a process of a run answers: ``scripts/ops/health.sh learner|reward|actor CONFIG.toml [flags]``.

The exit code is 0 if it does. The command is meant for health probes, on the machine of the process. The learner's
work server and the reward process are asked by their own protocol, at the address that they have announced. For an
actor, its engine is asked, at ``actor.engine_url`` or ``actor.engine_port``.
"""

from __future__ import annotations

import os
import urllib.request
from typing import Annotated, Literal

import typer
import zmq

from common import wire
from common.config import Config, load
from common.net.rendezvous import Route
from common.process import FatalError
from scripts.ops.command_line import command

_DEADLINE_S = 5.0
_STALLED_S = 120.0  # a reward process whose present step takes longer hangs
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy leads to an engine of ours


def find_problem(role: str, config: Config) -> str:
    """Why the process cannot work; empty if it can. Blocks for at most 5 seconds."""
    if role == "actor":
        if not config.actor.engine_url and not config.actor.engine_port:
            return (
                "with actor.engine_port = 0 the engine has any free port, which nobody knows here: give the actor and "
                "this command the same actor.engine_port"
            )
        url = config.actor.engine_url or f"http://127.0.0.1:{config.actor.engine_port}"
        try:
            with _DIRECT.open(f"{url}/health", timeout=_DEADLINE_S):
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
        if not route.socket.poll(int(1000 * _DEADLINE_S)):
            return f"nothing answers at {route.place.address} within {_DEADLINE_S:.0f} s"
        reply = wire.decode(route.socket.recv())  # the learner answers with its status, which needs no further check
        if not isinstance(reply, wire.Healthy):
            return ""
        if not reply.ready:
            return "it is still loading its models"
        if reply.stalled_s <= _STALLED_S:
            return ""
        hung = reply.counts.get("function_hung", 0)
        function = f" ({hung} calls of its reward function did not end in time)" if hung else ""
        return f"it has not got on as it should for {reply.stalled_s:.0f} s{function}"
    finally:
        context.destroy(linger=0)


@command(wire.WireError, passes_flags_on=True)
def main(
    context: typer.Context,
    role: Annotated[Literal["learner", "reward", "actor"], typer.Argument(help="The process to ask.")],
) -> None:
    if reason := find_problem(role, load(context.args)):
        raise FatalError(reason)


if __name__ == "__main__":
    main()
