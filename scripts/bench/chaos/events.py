"""What happens to the run: deaths, stops, cuts, mistaken identities, full disks, and clocks that jump."""

from __future__ import annotations

import ctypes
import os
import random
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import zmq

from actor.engine.errors import EngineLost
from common import wire
from common.net import sockets
from scripts.bench.chaos.cluster import ATTACHED, ATTACHED_ENGINE, GROUP_ACTORS, LEADER, Cluster
from scripts.bench.chaos.world import SIZES

LONGEST_STOP_S = 9.0  # of a SIGSTOP: longer than the deadlines of a lease and of a weight update
# How often each kind of event is drawn, in proportion.
_KINDS = {
    "kill": 4, "stop": 3, "stop in sync": 4, "cut": 2, "restart": 2, "double": 1, "replay": 2, "full disk": 1,
    "failing rank": 1, "other sizes": 1, "clock": 3, "kill leader": 2,
}  # fmt: skip
_PHASES = ("pause", "transfer", "probe", "continue")  # of a weight sync, in which a process is stopped
_AIM_S = 30.0  # after which a stop is given up whose phase has not come
_PIDFD_GETFD = 438  # the system call's number, on every architecture
_ROOM_BYTES = 100_000  # of a disk that is as good as full; a checkpoint needs more
_ROOM_OF_LOG_BYTES = 10_000
_JUMPS_S = (60.0, 6 * 3600.0)  # of a wall clock, forwards or backwards


@dataclass
class Aim:
    """A stop, or a death, that waits for its phase of a weight sync."""

    phase: str
    actor: str  # whose sync it is
    victim: str  # the process that is stopped
    until: float  # when it is given up, on the monotonic clock
    kills: bool = False
    hit: bool = False


class Events:
    """Causes random events, drawn with a seed."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster, self._random = cluster, random.Random(seed)
        self._timers: list[threading.Timer] = []
        self._aim: Aim | None = None
        self.count: Counter[str] = Counter()

    def strike(self) -> bool:
        """Causes an event. Returns whether there was one: a process that is being started again cannot be hit."""
        if self._aim is not None:
            return self._look_at_aim(self._aim)
        kind = self._random.choices(list(_KINDS), list(_KINDS.values()))[0]
        try:
            event = self._cause(kind)
        except PermissionError:
            raise
        except (psutil.Error, OSError):  # the process has ended, or its connection is closed
            return False
        if event:
            self._enter(event)
        return bool(event)

    def reached(self, actor: str, phase: str) -> None:
        """The weight sync of this actor's engine is about to enter a phase. Called from the thread of the proxies."""
        aim = self._aim
        if aim is None or aim.hit or (aim.actor, aim.phase) != (actor, phase):
            return
        with suppress(psutil.Error):
            process = self._cluster.process(aim.victim)
            if process is not None:
                process.kill() if aim.kills else self._stop(process)
                aim.hit = True

    def wait_until_over(self) -> None:
        """Blocks until every stopped process runs again."""
        self._aim = None
        for timer in self._timers:
            timer.join()

    def _enter(self, event: str) -> None:
        self.count[event] += 1
        print(f"{time.strftime('%X')} {event}", file=sys.stderr, flush=True)

    def _cause(self, kind: str) -> str:
        """Does what the kind says. Returns the event's name, empty if it could not be done."""
        match kind:
            case "kill" | "stop":
                victim = self._victim()
                process = self._cluster.process(victim)
                if process is None:
                    return ""
                process.kill() if kind == "kill" else self._stop(process)
                return f"{kind} {_kind_of(victim)}"
            case "stop in sync":
                return self._take_aim()
            case "kill leader":  # while it sends weights, to this actor's engine or to another one
                until = time.monotonic() + _AIM_S
                self._aim = Aim("transfer", self._random.choice(GROUP_ACTORS), LEADER, until, kills=True)
                return ""
            case "cut":
                victim = self._random.choice(["learner", "reward", f"{self._actor()}'s engine"])
                process = self._cluster.process(victim)
                return f"cut {_kind_of(victim)}" if process is not None and self._cut(process, victim) else ""
            case "restart":
                try:
                    self._cluster.attached.kill()
                except EngineLost:
                    return ""
                return "restart engine beneath its actor"
            case "double":
                return "second actor of a name" if self._cluster.start_second(self._actor()) else ""
            case "replay":
                return self._replay()
            case "full disk":
                self._fill_disk("learner", _ROOM_BYTES)
                return "full disk learner"
            case "failing rank":  # an error in one rank alone: in any moment, or in its part of a checkpoint
                if self._random.random() < 0.5:
                    self._fill_disk("learner-rank-1", _ROOM_OF_LOG_BYTES)
                    return "full disk of one rank"
                self._cluster.processes["learner-rank-1"].send_signal(signal.SIGINT)  # raises KeyboardInterrupt there
                return "interrupt of one rank"
            case "other sizes":
                self._cluster.resume_with(*self._random.choice(SIZES))
                return "resume with other sizes"
        return self._jump()

    def _actor(self) -> str:
        return self._random.choice([name for name in self._cluster.processes if name.startswith("actor")])

    def _victim(self) -> str:
        kind = self._random.choices(["actor", "engine", "reward", "learner"], [4, 5, 2, 1])[0]
        learner = self._random.choice([name for name in self._cluster.processes if name.startswith("learner")])
        names = {"actor": self._actor(), "engine": f"{self._actor()}'s engine", "learner": learner}
        return names.get(kind, kind)

    def _fill_disk(self, name: str, room_bytes: int) -> None:
        """This process can write no file over that size, until it starts again; its log, which grows, has room."""
        log_bytes = (self._cluster.directory / f"{name}.log").stat().st_size
        limits = (log_bytes + room_bytes, resource.RLIM_INFINITY)
        psutil.Process(self._cluster.processes[name].pid).rlimit(psutil.RLIMIT_FSIZE, limits)

    def _stop(self, process: psutil.Process) -> None:
        process.suspend()

        def go_on() -> None:
            with suppress(psutil.Error):
                process.resume()

        self._timers.append(threading.Timer(self._random.uniform(0.5, LONGEST_STOP_S), go_on))
        self._timers[-1].start()

    def _take_aim(self) -> str:
        """A stop that comes when a weight sync enters a phase; what it is aimed at becomes an event when it is hit.

        That generation goes on is seen only of the watched engine.
        """
        phase = self._random.choice(_PHASES)
        actor = ATTACHED if phase == "continue" else self._actor()
        victim = self._random.choice([actor, f"{actor}'s engine", f"{actor}'s engine", "learner"])
        self._aim = Aim(phase, actor, victim, time.monotonic() + _AIM_S)
        return ""

    def _look_at_aim(self, aim: Aim) -> bool:
        if aim.hit or time.monotonic() > aim.until:
            self._aim = None
        if aim.hit:
            self._enter(f"{'kill leader' if aim.kills else f'stop {_kind_of(aim.victim)}'} in {aim.phase}")
        return aim.hit

    def _replay(self) -> str:
        """Sends what an actor would, as an earlier life of one, to the learner."""
        log = (self._cluster.directory / "learner.log").read_text(errors="replace")
        lives = re.findall(r"as life (\w+)", log)
        if len(lives) < 2:
            return ""
        context: zmq.Context[Any] = zmq.Context()
        address = f"tcp://127.0.0.1:{self._cluster.ports['learner']}"
        client = sockets.connect(context, address, f"replay/{self._random.getrandbits(48):x}")
        messages: list[wire.LifeMessage] = [
            wire.Leave(reason="replayed", generating=["0:train-0"]), wire.Heartbeat(holding=["0:train-0"], seconds={}),
            wire.Submit(id=f"{self._random.randrange(200)}:train-{self._random.randrange(100)}", rollouts=[]),
            wire.Release(id="0:train-0", reason="replayed", cause="refusal"),
            wire.Synced(version=self._cluster.step(), stage="done", pause_s=0.0),
        ]  # fmt: skip
        life = self._random.choice(lives[:-1])
        for message in messages:
            client.send(wire.encode(message.of(wire.Lives(life, ""))))
        client.close(linger=1000)
        context.term()
        return "messages of an earlier life"

    def _jump(self) -> str:
        """The wall clock of a process, and of those that it started, is set to another time."""
        name = self._random.choice([*self._cluster.processes, ATTACHED_ENGINE])
        process = self._cluster.process(f"{ATTACHED}'s engine" if name == ATTACHED_ENGINE else name)
        if process is None or not self._cluster.clocks.holds(name, process.pid):
            return ""
        seconds = self._random.uniform(*_JUMPS_S) * self._random.choice([1, -1])
        self._cluster.clocks.jump(name, seconds)
        return f"clock {'forwards' if seconds > 0 else 'backwards'} {_kind_of(name)}"

    def _cut(self, server: psutil.Process, victim: str) -> bool:
        """Cuts the connections of the clients of learner or reward, or those that carry weights to an engine.

        The latter are all connections of the engine except those to its HTTP port. Returns whether there were any.

        Raises:
            PermissionError: the kernel does not give us the sockets of another process.
        """
        command, found, is_engine = server.cmdline(), False, _kind_of(victim) == "engine"
        port = int(command[command.index("--port") + 1]) if is_engine else self._cluster.ports[victim]
        for process in [server, *server.children(recursive=True)]:
            handle = os.pidfd_open(process.pid)
            for connection in process.net_connections("tcp"):
                at_port = connection.laddr.port == port
                if connection.status == psutil.CONN_ESTABLISHED and at_port != is_engine:
                    taken = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, handle, connection.fd, 0)
                    if taken < 0:
                        raise OSError(ctypes.get_errno(), f"pidfd_getfd of process {process.pid}")
                    with socket.socket(fileno=taken) as ours:
                        ours.shutdown(socket.SHUT_RDWR)
                    found = True
            os.close(handle)
        return found


def _kind_of(name: str) -> str:
    """What kind of process this is the name of: actor, engine, reward or learner."""
    return "engine" if name.endswith("engine") else name.partition("-")[0]
