"""Checks that a run survives failures: processes are killed, stopped and doubled, connections cut, and nothing is lost.

``python -m scripts.bench.chaos --events 50 [--seed 0] [--engine sglang] [--json]`` trains a tiny model with a learner,
a reward process and three actors with an engine each. One actor gets weights through a process group, one through
shared memory, and one is attached to an engine that is not its own. All are real processes, which are restarted when
they die, as a cluster would do. Besides deaths, stops and cuts, the attached engine is started again beneath its actor,
a second actor of a name comes, messages arrive that belong to earlier lives, the learner's disk is full, and it resumes
with other numbers of groups in a step and of stale steps. An event happens at a random moment after the run has made a
step since the last event, and often right after the step, which is in a weight sync. After the last event the learner
is interrupted; it resumes and makes a few more steps. With ``--engine light`` the engine of ``tests/support/light``,
which starts in seconds, replaces SGLang. The exit code is 1 if a question was lost or trained on twice, a token
exceeded the staleness bound, the run made no step for longer than its deadlines allow, or a process was left behind.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import typer
import zmq
from transformers import Qwen3Config, Qwen3ForCausalLM

from actor.engine.client import EngineLost, make_http_session
from actor.engine.server import EngineProcess
from common import wire
from common.config import load
from common.net import sockets
from common.net.ports import reserve_port
from common.parent import die_with_parent
from common.process import FatalError
from learner.work.scheduler import staleness_bound
from scripts.ops.command_line import command
from scripts.world.tokenizer import build_tokenizer

_ROOT = Path(__file__).parents[2]
_LANGUAGES = ["de", "en", "zh"]
_PIDFD_GETFD = 438  # the system call's number, on every architecture
_ENDLESS, _LAST_STEPS = 10**6, 5  # steps: so many that the run outlasts its events, and those after the last event
_LONGEST_PAUSE_S = 1.5  # from a step to the next event, so that an event may hit any moment of a step
_IN_SYNC = 0.3  # share of the events that come right after a step, when weights are sent
_SIZES = ((4, 1), (4, 2), (2, 1), (6, 1))  # learner.groups_per_step and learner.staleness of a run that resumes
_ROOM_BYTES = 100_000  # of a disk that is as good as full; a checkpoint needs more
_LONGEST_STOP_S = 9.0  # of a SIGSTOP: longer than the deadlines of a lease and of a weight update
_LEASE_S, _SYNC_S, _START_S = 6.0, 4.0, 60.0
_WINDOW = 3  # learner.window
_END_S = 60.0  # until the last process must have ended
_SECOND_S = 120.0  # after which a second actor of a name is ended, if it has not been refused
_ATTACHED = "actor-2"  # the actor whose engine is not its own


def stall_bound(start_s: float) -> float:
    """How long the run may make no step because of one event, in seconds.

    One after the other, the run may have to wait for ``lease_timeout_s``, for ``sync.timeout_s`` in the pause and in
    the transfer, and for the start of a process. All of this may happen twice, because another event may hit the
    restart, and a stopped process comes on top.

    Args:
        start_s: how long all processes took to start at the beginning, which shows how busy the machine is.
    """
    return 2 * (_LEASE_S + 2 * _SYNC_S + max(_START_S, start_s)) + _LONGEST_STOP_S


class Cluster:
    """The processes of a run, started again when they die."""

    def __init__(self, directory: Path, seed: int, engine: str) -> None:
        self.directory = directory
        self._reserved = {name: reserve_port() for name in ("learner", "reward", "store", "engine")}
        self.ports = {name: holder.getsockname()[1] for name, holder in self._reserved.items()}
        flags = ["--run.dir", str(directory / "run"), "--run.seed", str(seed), *settings(directory)]
        flags += ["--learner.address", f"tcp://127.0.0.1:{self.ports['learner']}"]
        flags += ["--reward.addresses", f'["tcp://127.0.0.1:{self.ports["reward"]}"]']
        self._commands = {"learner": ["-m", "learner", *flags], "reward": ["-m", "reward", *flags]}
        for n, transport in enumerate(("group", "shared", "group")):
            own = ["--actor.name", f"actor-{n}", "--sync.transport", transport]
            self._commands[f"actor-{n}"] = ["-m", "actor", *flags, *own]
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": "0", "WORLD_SIZE": "1"}
        self._environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.ports["store"])}
        light = [str(_ROOT / "tests" / "support" / "light")] if engine == "light" else []
        self._environment["PYTHONPATH"] = os.pathsep.join([*light, str(_ROOT)])
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.restarts: Counter[str] = Counter()
        self.bounds = {staleness_bound(*_SIZES[0], _WINDOW)}  # those that the run has had
        self.seconds: list[Second] = []  # second actors of a name
        self._engine_config = load([*flags, "--actor.engine_port", str(self.ports["engine"])])
        self._reserved.pop("engine").close()  # the engine reserves it itself
        self.attached = self._start_engine()
        self._commands[_ATTACHED] += ["--actor.engine_url", self.attached.url]
        asyncio.run(_wait_until_ready(self.attached))
        for name in self._commands:
            self._start(name)

    def _start(self, name: str) -> None:
        self.processes[name] = self._popen(self._commands[name], self.directory / f"{name}.log")

    def _popen(self, words: list[str], path: Path) -> subprocess.Popen[bytes]:
        with path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *words], cwd=_ROOT, env=self._environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    def _start_engine(self) -> EngineProcess:
        with environment_of(PYTHONPATH=self._environment["PYTHONPATH"]):
            return EngineProcess(self._engine_config, "attached", self.directory / "engine-attached.log")

    def start_second(self, name: str) -> bool:
        """Starts a second actor of this name, unless one is there. Its supervisor ends it after a while."""
        if any(second.process.poll() is None for second in self.seconds):
            return False
        log = self.directory / f"second-{len(self.seconds)}.log"
        self.seconds.append(Second(self._popen(self._commands[name], log), log, time.monotonic() + _SECOND_S))
        return True

    def restart_dead(self) -> bool:
        """Starts processes again that have ended. Returns whether the learner has finished.

        An actor ends by itself when the learner is interrupted, and is needed again when that resumes.
        """
        if self.processes["learner"].poll() == 0:
            return True
        for name, process in self.processes.items():
            if process.poll() is not None:
                self.restarts[name] += 1
                self._start(name)
        try:
            self.attached.check()
        except EngineLost:
            self.attached.stop()
            with suppress(FatalError):  # the last of its processes may hold the port a moment longer
                self.attached = self._start_engine()
                self.restarts["attached engine"] += 1
        for second in self.seconds:
            if second.process.poll() is None and time.monotonic() > second.ends_at:
                second.process.terminate()
        return False

    def step(self) -> int:
        """The newest step in the learner's log; it counts steps that were lost because there was no checkpoint yet."""
        found = re.findall(r" step (\d+)/", (self.directory / "learner.log").read_text(errors="replace")[-20_000:])
        return int(found[-1]) if found else 0

    def resume_with(self, groups: int, staleness: int) -> None:
        """Interrupts the learner, which then resumes with so many groups in a step, and so many stale steps."""
        self._commands["learner"] += ["--learner.groups_per_step", str(groups), "--learner.staleness", str(staleness)]
        self._commands["learner"] += ["--resume.accept", "learner.groups_per_step,learner.staleness"]
        self.bounds.add(staleness_bound(groups, staleness, _WINDOW))
        self.processes["learner"].terminate()

    def conclude(self) -> None:
        """Interrupts the learner, which then resumes for a few last steps."""
        self._commands["learner"] += ["--learner.steps", str(self.step() + _LAST_STEPS)]
        self.processes["learner"].terminate()

    def engines(self) -> list[psutil.Process]:
        """The engines of all actors."""
        found = []
        for name, process in self.processes.items():
            if name.startswith("actor"):
                with suppress(psutil.Error):
                    for guard in psutil.Process(process.pid).children():
                        found += guard.children()
        return found

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
        found = [(p, p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]) if p.pid != os.getpid()]
        return [
            p for p, words in found if str(self.directory) in " ".join(words) and "scripts.bench.chaos" not in words
        ]


@dataclass(frozen=True)
class Second:
    """A second actor of a name that another one holds."""

    process: subprocess.Popen[bytes]
    log: Path
    ends_at: float  # when it is ended, on the monotonic clock; it may have got the name, if the first has died


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
        await engine.wait_until_ready(http, 10 * _START_S)


class Disasters:
    """Causes random events, drawn with a seed."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster, self._random = cluster, random.Random(seed)
        self._timers: list[threading.Timer] = []
        self.count: Counter[str] = Counter()

    def strike(self) -> bool:
        """Causes an event. Returns whether there was one: a process that is being started again cannot be hit."""
        kinds = {"kill": 4, "stop": 4, "cut": 2, "restart": 2, "double": 1, "replay": 2}
        kinds |= {"full disk": 1, "other sizes": 1}
        kind = self._random.choices(list(kinds), list(kinds.values()))[0]
        if kind in ("restart", "double", "replay"):
            return self._confuse(kind)
        victim = self._random.choices(["actor", "engine", "reward", "learner"], [4, 5, 2, 1])[0]
        if kind == "cut":
            victim = self._random.choice(["engine", "reward", "learner"])
        if kind in ("full disk", "other sizes"):
            victim = "learner"
        try:
            process = self._process(victim)
            if process is None or not self._harm(process, kind, victim):
                return False
        except PermissionError:
            raise
        except (psutil.Error, OSError):  # the process has ended, or its connection is closed
            return False
        self._enter(f"{kind} {victim}")
        return True

    def _enter(self, event: str) -> None:
        self.count[event] += 1
        print(f"{time.strftime('%X')} {event}", file=sys.stderr, flush=True)

    def _confuse(self, kind: str) -> bool:
        """Something that is there turns out to be something else. Returns whether it could be done."""
        if kind == "restart":
            try:
                self._cluster.attached.kill()
            except EngineLost:
                return False
            self._enter("restart engine beneath its actor")
            return True
        if kind == "double":
            name = self._random.choice([name for name in self._cluster.processes if name.startswith("actor")])
            if self._cluster.start_second(name):
                self._enter("second actor of a name")
                return True
            return False
        lives = re.findall(r"as life (\w+)", (self._cluster.directory / "learner.log").read_text(errors="replace"))
        if len(lives) < 2:
            return False
        self._replay(self._random.choice(lives[:-1]))
        self._enter("messages of an earlier life")
        return True

    def _replay(self, life: str) -> None:
        """Sends what an actor would, as an earlier life of one, to the learner."""
        context: zmq.Context[Any] = zmq.Context()
        address = f"tcp://127.0.0.1:{self._cluster.ports['learner']}"
        client = sockets.connect(context, address, f"replay/{self._random.getrandbits(48):x}")
        messages: list[wire.LifeMessage] = [
            wire.Leave(reason="replayed", generating=["0:train-0"]), wire.Heartbeat(holding=["0:train-0"], seconds={}),
            wire.Submit(id=f"{self._random.randrange(200)}:train-{self._random.randrange(100)}", rollouts=[]),
            wire.Release(id="0:train-0", reason="replayed", cause="refusal"),
            wire.Synced(version=self._cluster.step(), stage="done", pause_s=0.0),
        ]  # fmt: skip
        for message in messages:
            client.send(wire.encode(message.of(wire.Lives(life, ""))))
        client.close(linger=1000)
        context.term()

    def _process(self, victim: str) -> psutil.Process | None:
        if victim == "engine":
            engines = self._cluster.engines()
            return self._random.choice(engines) if engines else None
        names = [name for name in self._cluster.processes if name.startswith(victim)]
        return psutil.Process(self._cluster.processes[self._random.choice(names)].pid)

    def _harm(self, process: psutil.Process, kind: str, victim: str) -> bool:
        """Does to the process what ``kind`` says. Returns whether there was anything to harm."""
        if kind == "kill":
            process.kill()
            return True
        if kind == "full disk":  # until it starts again; its log, which grows, has room
            log_bytes = (self._cluster.directory / "learner.log").stat().st_size
            process.rlimit(psutil.RLIMIT_FSIZE, (log_bytes + _ROOM_BYTES, resource.RLIM_INFINITY))
            return True
        if kind == "other sizes":
            self._cluster.resume_with(*self._random.choice(_SIZES))
            return True
        if kind == "cut":
            return self._cut(process, victim)
        process.suspend()

        def go_on() -> None:
            with suppress(psutil.Error):
                process.resume()

        self._timers.append(threading.Timer(self._random.uniform(0.5, _LONGEST_STOP_S), go_on))
        self._timers[-1].start()
        return True

    def _cut(self, server: psutil.Process, victim: str) -> bool:
        """Cuts the connections of the clients of learner or reward, or those that carry weights to an engine.

        The latter are all connections of the engine except those to its HTTP port. Returns whether there were any.

        Raises:
            PermissionError: the kernel does not give us the sockets of another process.
        """
        command, found = server.cmdline(), False
        port = self._cluster.ports.get(victim) or int(command[command.index("--port") + 1])
        for process in [server, *server.children(recursive=True)]:
            handle = os.pidfd_open(process.pid)
            for connection in process.net_connections("tcp"):
                at_port = connection.laddr.port == port
                if connection.status == psutil.CONN_ESTABLISHED and at_port != (victim == "engine"):
                    taken = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, handle, connection.fd, 0)
                    if taken < 0:
                        raise OSError(ctypes.get_errno(), f"pidfd_getfd of process {process.pid}")
                    with socket.socket(fileno=taken) as ours:
                        ours.shutdown(socket.SHUT_RDWR)
                    found = True
            os.close(handle)
        return found

    def wait_until_over(self) -> None:
        """Blocks until every stopped process runs again."""
        for timer in self._timers:
            timer.join()


def chaos(directory: Path, events: int, seed: int, engine: str) -> dict[str, Any]:
    """Trains among events, and returns the figures of the run. Blocks until all processes have ended."""
    prepare(directory, seed)
    cluster = Cluster(directory, seed, engine)
    disasters = Disasters(cluster, seed)
    struck, step, struck_at, began, concluded = 0, 0, 0, time.monotonic(), False
    progressed, longest, due, bound = began, 0.0, began, stall_bound(0.0)
    try:
        while not cluster.restart_dead():
            time.sleep(0.1)
            now, newest = time.monotonic(), cluster.step()
            if newest != step:
                if step:
                    longest = max(longest, now - progressed)
                else:
                    bound = stall_bound(now - began)
                step, progressed = newest, now
            if step != struck_at and now >= due:
                if struck < events and disasters.strike():
                    in_sync = random.random() < _IN_SYNC
                    due = now + (0.0 if in_sync else random.uniform(0, _LONGEST_PAUSE_S))
                    struck, struck_at = struck + 1, step
                elif struck == events and not concluded:
                    cluster.conclude()
                    concluded = True
            if now - progressed > 2 * bound:
                raise SystemExit(f"error: no step for {now - progressed:.0f} s; the logs are in {directory}")
    finally:
        disasters.wait_until_over()
        left = cluster.end()
    summary = json.loads((directory / "run" / "summary.json").read_text())
    return {
        "events": struck, "lost": summary["questions_lost"], "doubled": summary["questions_duplicated"],
        "staleness_max": summary["staleness_max"], "staleness_bound": max(cluster.bounds),
        "longest_stall_s": round(longest, 1), "stall_bound_s": round(bound, 1), "leftover_processes": left,
        "steps": summary["steps"], "failed": summary["groups_failed"], "seconds": round(time.monotonic() - began, 1),
        "kinds": dict(sorted(disasters.count.items())), "restarts": dict(sorted(cluster.restarts.items())),
        "ejected": _count(directory, "giving up actor"),
        "engines_restarted": _count(directory, "starting the engine again"),
        "second_actors": len(cluster.seconds), "second_actors_refused": _count(directory, "learner refuses this actor"),
        "foreign_weights_found": _count(directory, "has not given it"),
    }  # fmt: skip


def _count(directory: Path, words: str) -> int:
    return sum(log.read_text(errors="replace").count(words) for log in directory.glob("*.log"))


def settings(directory: Path) -> list[str]:
    """The flags of a run with the policy and the questions that ``prepare`` writes."""
    settings: dict[str, object] = {
        "model.path": directory / "model", "model.dtype": "float32", "data.train": directory / "train.parquet",
        "run.languages": json.dumps(_LANGUAGES), "router.rollouts": 3, "router.own_language": 1,
        "sampling.max_new_tokens": 12, "actor.groups_in_flight": 4, "actor.request_timeout_s": 30,
        "actor.restarts": 1000, "reward.request_timeout_s": 10, "learner.steps": _ENDLESS,
        "learner.groups_per_step": _SIZES[0][0], "learner.staleness": _SIZES[0][1], "learner.window": _WINDOW,
        "learner.lr": 1e-4, "learner.kl": 0.0, "learner.param_dtype": "float32",
        "learner.checkpoint_every": 2, "learner.evaluate": "false", "learner.lease_timeout_s": _LEASE_S,
        "learner.group_attempts": 1000, "learner.group_engines": 1000, "sync.timeout_s": _SYNC_S, "sync.bucket_mb": 0.1,
        "actor.engine_args.max_total_tokens": 2048,
    }  # fmt: skip
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]


def prepare(directory: Path, seed: int) -> None:
    """Writes a tiny policy with random weights, and questions for it."""
    texts = [f"What is {n} and {n + 1}? It is {2 * n + 1}." for n in range(200)]
    tokenizer = build_tokenizer(texts, _LANGUAGES, 400)
    tokenizer.save_pretrained(directory / "model")
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True,
        initializer_range=0.2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(directory / "model")
    chooser = random.Random(seed)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {n} and {n + 1}?"}], "ability": "numbers",
            "reward_model": {"ground_truth": f"It is {2 * n + 1}."},
            "extra_info": {"language": chooser.choice(_LANGUAGES), "topic": "numbers", "region": None},
        }
        for n in range(500)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), directory / "train.parquet")


@command()
def main(
    *,
    events: Annotated[int, typer.Option(help="Number of events.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the events and of the run.")] = 0,
    engine: Annotated[Literal["sglang", "light"], typer.Option(help="The real engine, or a light one.")] = "sglang",
    dir: Annotated[
        Path | None, typer.Option(help="Directory for the logs and the run; default: a temporary one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The last line is one JSON object.")] = False,
) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as scratch:
        directory = (dir or Path(scratch)).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        found = chaos(directory, events, seed, engine)
    print(json.dumps(found) if as_json else "\n".join(f"{key:<20} {value}" for key, value in found.items()))
    good = not found["lost"] and not found["doubled"] and not found["leftover_processes"]
    good = good and found["staleness_max"] <= found["staleness_bound"]
    good = good and found["longest_stall_s"] <= found["stall_bound_s"]
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
