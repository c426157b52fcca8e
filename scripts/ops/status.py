"""Shows the state of a run, as its learner reports it: a live table in a terminal, otherwise a line at a time.

``./scripts/status.sh RUN_DIR [--every SECONDS] [--once]``; from another host, ``ssh HOST ./scripts/status.sh RUN_DIR``.
"""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
import zmq
from pydantic import ValidationError
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from common import wire
from common.config import Config
from common.net.rendezvous import Route
from common.process import FatalError
from scripts.ops.command_line import command

_STATES = ("generate", "wait_work", "wait_reward", "sync")
_DEADLINE_S = 10.0  # a learner that unpacks a large batch may be slow to answer


def show(run_dir: Path, every_s: float, once: bool) -> None:
    """Shows the run every ``every_s`` seconds until it is over, or only once with ``once``.

    Raises:
        FatalError: there is no such run, or its learner does not answer before the run is over.
    """
    learner, console = _route_to_learner(run_dir), Console()
    learner.connect(zmq.Context.instance(), f"status-{uuid.uuid4().hex[:8]}")
    with Live(console=console, auto_refresh=False) as live:
        while (status := _ask_learner(learner.socket)) is not None:
            if console.is_terminal:
                live.update(view(status), refresh=True)
            else:
                print(line(status), flush=True)
            if once:
                return
            time.sleep(every_s)
    if not (run_dir / "summary.json").exists():
        raise FatalError(
            f"no answer from the learner at {learner.place.address} within {_DEADLINE_S:.0f} s: it does not run "
            f"any more (its last messages are in {run_dir}/logs, or in its terminal), or LRPO_KEYS differs from its"
        )
    print(f"the run is over; its figures are in {run_dir / 'summary.json'}")


def _route_to_learner(run_dir: Path) -> Route:
    path = run_dir / "config.json"
    try:
        config = Config.model_validate_json(path.read_text(encoding="utf-8"))
        return Route(config.run, "learner", config.learner.address, 0)
    except OSError as error:
        raise FatalError(f"{run_dir} holds no run that has started: cannot read {path}: {error.strerror}") from None
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FatalError(f"{path} is not a configuration of this program: {str(error).splitlines()[0]}") from None


def _ask_learner(socket: Any) -> wire.Status | None:
    deadline = time.monotonic() + _DEADLINE_S
    socket.send(wire.encode(wire.Health()))
    while (rest := deadline - time.monotonic()) > 0 and socket.poll(1000 * rest):
        message = wire.decode(socket.recv())
        if isinstance(message, wire.Status):
            return message
    return None


def _headline(status: wire.Status) -> str:
    groups = "  ".join(f"{name} {count}" for name, count in status.counts.items())
    return f"{status.line or 'before the first step'}  groups: {groups}"


def _rows(status: wire.Status) -> list[list[str]]:
    rows = []
    for name, actor in status.actors.items():
        total = sum(spent for state, spent in actor.seconds.items() if not state.startswith("reward_"))
        shares = [f"{actor.seconds.get(state, 0.0) / max(total, 1e-9):.0%}" for state in _STATES]
        state = "live" if actor.live else "waits for weights"
        state = f"silent {actor.silent_s:.0f} s" if actor.silent_s > _DEADLINE_S else state
        used = f"{actor.gauges['usage']:.0%}" if "usage" in actor.gauges else "?"
        rows.append([name, state, f"{actor.groups}/{actor.slots}", f"{status.rates.get(name, 0.0):.0f}", *shares, used])
    return rows


def view(status: wire.Status) -> Group:
    """A headline and a table of the actors."""
    table = Table("actor", "state", "groups", "tokens/s", *(state.replace("_", " for ") for state in _STATES), "KV use")
    for row in _rows(status):
        table.add_row(*row)
    return Group(_headline(status), table)


def line(status: wire.Status) -> str:
    """The headline and the actors in one line."""
    actors = "; ".join(f"{r[0]} {r[1]} {r[2]} groups {r[3]} tokens/s {r[4]} busy" for r in _rows(status)) or "no actors"
    return f"{_headline(status)}  [{actors}]"


@command(name="status.sh")
def main(
    run_dir: Annotated[Path, typer.Argument(help="Directory of the run.")],
    *,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two requests.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show the state once and end.")] = False,
) -> None:
    show(run_dir, every, once)


if __name__ == "__main__":
    main()
