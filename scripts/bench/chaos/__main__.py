"""Checks that a run survives failures: processes are killed, stopped and doubled, connections cut, and nothing is lost.

``python -m scripts.bench.chaos --events 50 [--seed 0] [--engine sglang] [--json]`` trains a tiny model with a learner
of two ranks, a reward process and three actors with an engine each. All are real processes, which are restarted when
they die, as a cluster would do. Besides deaths, stops and cuts, an engine that an actor is attached to is started again
beneath it, a second actor of a name comes, messages arrive that belong to earlier lives, the learner's disk is full,
one of its ranks fails alone, it resumes with other numbers of groups in a step and of stale steps, wall clocks jump by
minutes to hours, and processes are stopped in the moment in which a weight sync enters its pause, its transfer, its
probe, or goes on; a rank of the learner that sends weights is killed in the moment of a transfer.

An event happens at a random moment after the run has made a step since the last event. After the last event the learner
is interrupted; it resumes and makes a few more steps. With ``--engine light`` the engine of ``tests/support/light``,
which starts in seconds, replaces SGLang. The exit code is 1, with the reasons, if a question was lost or trained on
twice, a token exceeded the staleness bound, the run made no step for longer than its deadlines allow, or a process was
left behind. An observer that reads what passes between the processes decides that. The exit code is 1, too, if the
run's own summary says otherwise.
"""

from __future__ import annotations

import json
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from scripts.bench.chaos.cluster import ATTACHED, Cluster
from scripts.bench.chaos.events import Events
from scripts.bench.chaos.observer import Observer
from scripts.bench.chaos.tap import Proxies
from scripts.bench.chaos.verdict import Bounds, figures, problems, stall_bound
from scripts.bench.chaos.world import prepare
from scripts.ops.command_line import command

_LONGEST_PAUSE_S = 1.5  # from a step to the next event, so that an event may hit any moment of a step
_FIRST_STEP_S = 1800.0  # until the first step, on a busy machine
_IN_SYNC = 0.3  # share of the events that come right after a step, when weights are sent


def chaos(directory: Path, count: int, seed: int, engine: str) -> dict[str, Any]:
    """Trains among events, and returns the figures of the run. Blocks until all processes have ended.

    SIGUSR1 ends the events early, and the run as after the last one.
    """
    enough = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: enough.set())
    prepare(directory, seed)
    cluster = Cluster(directory, seed, engine)
    events = Events(cluster, seed)
    observer, proxies = Observer(ATTACHED, events.reached), Proxies()
    proxies.add(cluster.ports["learner proxy"], cluster.ports["learner"], observer.read_learner)
    proxies.add(cluster.ports["engine proxy"], cluster.ports["engine"], observer.read_engine)
    struck, step, struck_at, began, concluded = 0, 0, 0, time.monotonic(), False
    progressed, longest, due, bound = began, 0.0, began, stall_bound(0.0)
    try:
        cluster.start()
        while not cluster.restart_dead():
            time.sleep(0.1)
            count = struck if enough.is_set() else count
            now, newest = time.monotonic(), cluster.step()
            if newest != step:
                if step:
                    longest = max(longest, now - progressed)
                else:
                    bound = stall_bound(now - began)
                step, progressed = newest, now
            if step != struck_at and now >= due:
                if struck < count and events.strike():
                    in_sync = random.random() < _IN_SYNC
                    due = now + (0.0 if in_sync else random.uniform(0, _LONGEST_PAUSE_S))
                    struck, struck_at = struck + 1, step
                elif struck == count and not concluded:
                    cluster.conclude()
                    concluded = True
            if now - progressed > (2 * bound if step else _FIRST_STEP_S):
                raise SystemExit(f"error: no step for {now - progressed:.0f} s; the logs are in {directory}")
    finally:
        events.wait_until_over()
        left = cluster.end()
        proxies.stop()
    if proxies.problem is not None:
        raise RuntimeError("the observer could not read what passed") from proxies.problem
    bounds = Bounds(directory / "run")
    observed = observer.conclude(directory / "run" / "ledger.jsonl", bounds.at)
    found = figures(cluster, events, observed, bounds, longest, bound)
    return found | {"leftover_processes": left, "seconds": round(time.monotonic() - began, 1)}


@command()
def main(
    *,
    events: Annotated[int, typer.Option(min=0, help="Number of events.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the events and of the run.")] = 0,
    engine: Annotated[Literal["sglang", "light"], typer.Option(help="The real engine, or a light one.")] = "sglang",
    dir: Annotated[
        Path | None, typer.Option(help="Directory for the logs and the run; default: a temporary one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The last line is one JSON object.")] = False,
) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as scratch:
        directory = (dir or Path(scratch)).absolute()
        if (directory / "run").exists():
            raise SystemExit(f"error: {directory} holds a run already; give another --dir, or remove it")
        directory.mkdir(parents=True, exist_ok=True)
        found = chaos(directory, events, seed, engine)
    found["wrong"] = problems(found)
    print(json.dumps(found) if as_json else "\n".join(f"{key:<20} {value}" for key, value in found.items()))
    raise SystemExit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
