"""The processes of the run: a learner of two ranks, a reward process and three actors, started again when they die.

Two actors get weights through a process group, each from another rank of the learner, and one through shared memory.
One of the former is attached to an engine that is not its own. What the actors say to the learner, and the attached one
to its engine, passes through the observer's proxies.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from actor.engine.errors import EngineLost
from actor.engine.readiness import make_http_session
from actor.engine.server import EngineProcess
from common.config import load
from common.net.ports import reserve_port
from common.parent import die_with_parent
from common.process import FatalError
from scripts.bench.chaos.clock import Clocks
from scripts.bench.chaos.world import START_S, settings
from scripts.bench.support.light_engine import light_engine

ROOT = Path(__file__).parents[3]
ATTACHED = "actor-2"  # the actor whose engine is not its own
ATTACHED_ENGINE = "attached engine"
GROUP_ACTORS = ("actor-0", ATTACHED)  # whose engines get weights through process groups
LEADER = "learner-rank-1"  # sends the weights to the engine of one of them; rank 0 sends them to the other
# Steps after the last event. They take more groups than can be alive, so that nothing that was leased is left over.
_LAST_STEPS = 8
_RANKS = ("learner", LEADER)  # the learner's processes
_RANK_S = 15.0  # from the death of a rank until the others are ended, as torchrun would do
_END_S = 60.0  # until the last process must have ended
_SECOND_S = 120.0  # after which a second actor of a name is ended, if it has not been refused


@dataclass(frozen=True)
class Second:
    """A second actor of a name that another one holds."""

    process: subprocess.Popen[bytes]
    ends_at: float  # when it is ended, on the monotonic clock; it may have got the name, if the first has died


class Cluster:
    """The processes of a run.

    Attributes:
        ports: of the services by name; ``NAME proxy`` is the one through which others reach them.
        processes: by name, without engines.
        clocks: their wall clocks.
    """

    def __init__(self, directory: Path, seed: int, engine: str) -> None:
        self.directory = directory
        names = ("learner", "learner proxy", "reward", "store", "engine", "engine proxy")
        self._reserved = {name: reserve_port() for name in names}
        self.ports = {name: holder.getsockname()[1] for name, holder in self._reserved.items()}
        flags = ["--run.dir", str(directory / "run"), "--run.seed", str(seed), *settings(directory)]
        flags += ["--reward.addresses", f'["tcp://127.0.0.1:{self.ports["reward"]}"]']
        learner = ["--learner.address", f"tcp://127.0.0.1:{self.ports['learner']}"]
        proxy = ["--learner.address", f"tcp://127.0.0.1:{self.ports['learner proxy']}"]
        self._commands = {rank: ["-m", "learner", *flags, *learner] for rank in _RANKS}
        self._commands["reward"] = ["-m", "reward", *flags]
        for n, transport in enumerate(("group", "shared", "group")):
            own = ["--actor.name", f"actor-{n}", "--sync.transport", transport]
            self._commands[f"actor-{n}"] = ["-m", "actor", *flags, *proxy, *own]
        self._commands[ATTACHED] += ["--actor.engine_url", f"http://127.0.0.1:{self.ports['engine proxy']}"]
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(len(_RANKS))}
        self._environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.ports["store"])}
        light = [str(light_engine())] if engine == "light" else []
        self._environment["PYTHONPATH"] = os.pathsep.join([*light, str(ROOT)])
        self.clocks = Clocks(directory)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.restarts: Counter[str] = Counter()
        self._rank_died: float | None = None  # when one of the ranks was found dead while another lived
        self.seconds: list[Second] = []  # second actors of a name
        self._engine_config = load([*flags, "--actor.engine_port", str(self.ports["engine"])])
        self._reserved.pop("engine").close()  # the engine reserves it itself
        self.attached = self._start_engine()

    def start(self) -> None:
        """Starts all processes. Blocks until the attached engine is ready, because its actor does not wait for it."""
        asyncio.run(_wait_until_ready(self.attached))
        for name in self._commands:
            self._start(name)

    def _start(self, name: str) -> None:
        self.processes[name] = self._popen(name, self.directory / f"{name}.log")

    def _popen(self, name: str, path: Path) -> subprocess.Popen[bytes]:
        environment = self._environment | self.clocks.environment(name)
        if name in _RANKS:
            # Each rank is the first one of a node, so that each sends weights to engines.
            environment |= {"RANK": str(_RANKS.index(name)), "LOCAL_RANK": "0"}
        with path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *self._commands[name]], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    def _start_engine(self) -> EngineProcess:
        own = {"PYTHONPATH": self._environment["PYTHONPATH"], **self.clocks.environment(ATTACHED_ENGINE)}
        with environment_of(**own):
            return EngineProcess(self._engine_config, "attached", self.directory / "engine-attached.log")

    def start_second(self, name: str) -> bool:
        """Starts a second actor of this name, unless one is there. Its supervisor ends it after a while."""
        if any(second.process.poll() is None for second in self.seconds):
            return False
        log = self.directory / f"second-{len(self.seconds)}.log"
        self.seconds.append(Second(self._popen(name, log), time.monotonic() + _SECOND_S))
        return True

    def restart_dead(self) -> bool:
        """Starts processes again that have ended. Returns whether the learner has finished.

        An actor ends by itself when the learner is interrupted, and is needed again when that resumes.
        """
        if self._restart_learner():
            return True
        for name, process in self.processes.items():
            if name not in _RANKS and process.poll() is not None:
                self._restart(name)
        try:
            self.attached.check()
        except EngineLost:
            self.attached.stop()
            with suppress(FatalError):  # the last of its processes may hold the port a moment longer
                self.attached = self._start_engine()
                self.restarts[ATTACHED_ENGINE] += 1
        for second in self.seconds:
            if second.process.poll() is None and time.monotonic() > second.ends_at:
                second.process.terminate()
        return False

    def _restart_learner(self) -> bool:
        """Starts all ranks together, once all are gone. Returns whether the learner has finished instead."""
        codes = {name: self.processes[name].poll() for name in _RANKS}
        alive = [name for name, code in codes.items() if code is None]
        if codes["learner"] == 0:
            return True
        if len(alive) == len(_RANKS):
            self._rank_died = None
        elif not alive:
            for name in _RANKS:
                self._restart(name)
        elif self._rank_died is None:
            self._rank_died = time.monotonic()
        elif time.monotonic() > self._rank_died + _RANK_S:
            for name in alive:
                self.restarts[f"{name} ended by its supervisor"] += 1
                self.processes[name].kill()
        return False

    def _restart(self, name: str) -> None:
        self.restarts[name] += 1
        print(f"{time.strftime('%X')}   {name} ended with code {self.processes[name].returncode}", file=sys.stderr)
        self._start(name)

    def step(self) -> int:
        """The newest step in the learner's log; it counts steps that were lost because there was no checkpoint yet."""
        found = re.findall(r" step (\d+)/", (self.directory / "learner.log").read_text(errors="replace")[-20_000:])
        return int(found[-1]) if found else 0

    def resume_with(self, groups: int, staleness: int) -> None:
        """Interrupts the learner, which then resumes with so many groups in a step, and so many stale steps."""
        self._change_learner("--learner.groups_per_step", str(groups), "--learner.staleness", str(staleness))
        self._change_learner("--resume.accept", "learner.groups_per_step,learner.staleness")
        self.processes["learner"].terminate()

    def conclude(self) -> None:
        """Interrupts the learner, which then resumes for a few last steps."""
        self._change_learner("--learner.steps", str(self.step() + _LAST_STEPS))
        self.processes["learner"].terminate()

    def _change_learner(self, *flags: str) -> None:
        for name in _RANKS:
            self._commands[name] += flags

    def process(self, name: str) -> psutil.Process | None:
        """The process of this name, or the engine of ``NAME's engine``; None if it is not there."""
        owner = name.removesuffix("'s engine")
        if name in self.processes:
            return psutil.Process(self.processes[name].pid)
        own = psutil.Process() if owner == ATTACHED else psutil.Process(self.processes[owner].pid)
        guards = [one for one in own.children() if "actor.engine.guard" in one.cmdline()]
        return next((engine for guard in guards for engine in guard.children()), None)

    def end(self) -> int:
        """Asks all processes to end, and kills those that do not. Returns how many had to be killed."""
        processes = [*self.processes.values(), *(second.process for second in self.seconds)]
        for process in processes:
            process.terminate()  # actors know that the run is over, unless their connection was cut just then
        deadline = time.monotonic() + _END_S
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        self.attached.stop()
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.1)  # an engine dies with its actor, and a little later
        for process in left:
            process.kill()
        return len(left)

    def _left(self) -> list[psutil.Process]:
        own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}  # a parent may name the directory
        found = [(p, p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]) if p.pid not in own]
        return [
            p for p, words in found if str(self.directory) in " ".join(words) and "scripts.bench.chaos" not in words
        ]


@contextmanager
def environment_of(**variables: str) -> Iterator[None]:
    """Sets environment variables for the processes that are started within."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


async def _wait_until_ready(engine: EngineProcess) -> None:
    async with make_http_session() as http:
        await engine.wait_until_ready(http, 10 * START_S)
