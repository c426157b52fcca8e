"""The lives of actors as processes: of one name, asked to end, without an engine, and with one that starts again."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from actor import lives
from actor.engine.readiness import is_ready, make_http_session
from actor.engine.server import EngineProcess
from actor.engine.start import _attach
from actor.session import Session
from common.config import RunConfig, load
from common.net.rendezvous import Route
from common.process import FatalError
from learner.groups import Group
from learner.work import actors
from learner.work.scheduler import WorkQueue
from learner.work.server import WorkServer
from tests.support.actor_pool import LIGHT, ActorPool, kill
from tests.support.groups import work
from tests.support.processes import forked


@pytest.fixture
def pool(tiny_policy: Path, tmp_path: Path) -> Iterator[ActorPool]:
    pool = ActorPool(tiny_policy, tmp_path)
    yield pool
    pool.close()


def ended(pool: ActorPool, name: str) -> int:
    """The exit code of an actor, once it has ended."""
    pool.until(lambda: pool.processes[name].poll() is not None, f"{name} ends", timeout=300)
    return pool.processes[name].returncode


def test_a_name_is_never_taken_from_the_one_that_has_it_and_is_free_when_that_one_is_gone(
    pool: ActorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "_CLAIM_S", 1.0)
    pool.start("a")
    pool.here("a")
    first = pool.server.members()["a"]
    held, pool.processes["first"] = pool.log("a"), pool.processes["a"]
    pool.start("a")  # before it has an engine, it is told that the name is taken
    assert ended(pool, "a") == 1
    told = held.read_text()
    for part in ("the name 'a' is held by", f"process {pool.processes['first'].pid}", "actor.name"):
        assert part in told
    assert pool.server.members()["a"] is first and pool.processes["first"].poll() is None
    kill(pool.processes["first"])
    pool.start(
        "a", "--sampling.max_new_tokens", "20"
    )  # the lease of the first one lasts for minutes, but its process is known to be gone
    pool.until(lambda: pool.server.members().get("a") not in (None, first), "the heir comes", timeout=300)
    assert "which held the name 'a', is gone" in pool.log("a").read_text()
    assert set(pool.publish().members) == {"a"}

    # Asked to end, it leaves, and its group goes back without blame. Nobody scores them here, so none is finished.
    queue: WorkQueue[Group] = WorkQueue(groups_per_step=1, staleness=0, window=1, attempts=1, total=1)
    pool.server.serve(queue, lambda n: work(n, ["en", "de"]), lambda *_: None)
    pool.server.mark_published(pool.server.members())
    pool.until(lambda: queue.count_leased() == 1, "a group is leased", timeout=300)
    pool.processes["a"].send_signal(signal.SIGTERM)
    assert ended(pool, "a") == 130
    pool.until(lambda: not pool.server.members(), "it leaves", timeout=300)
    assert pool.server.counts()["orphaned"] == 1 and pool.server.counts()["failed"] == 0


def test_an_actor_whose_engine_starts_hears_that_the_run_is_over(
    pool: ActorPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIGHT, "LIGHT_START_S", "1000")
    pool.start("slow")
    pool.until(lambda: "slow" in pool.server.present(), "it says that it is there", timeout=300)
    assert not pool.server.members() and not pool.server.has_newcomers(), "but has no engine"
    pool.server.close(over=True)
    assert ended(pool, "slow") == 0
    assert "the run has ended" in pool.log("slow").read_text()


def test_an_engine_that_is_started_again_beneath_its_actor_ends_that_life(
    pool: ActorPool, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same address, with the weights of its checkpoint. Nothing that it makes then reaches the learner."""
    monkeypatch.setenv("PYTHONPATH", LIGHT["PYTHONPATH"])

    def start_engine(port: int) -> EngineProcess:
        flags = ["--model.path", str(tiny_policy), "--model.dtype", "float32", "--actor.engine_port", str(port)]
        started: list[EngineProcess] = []

        def start() -> bool:
            with suppress(FatalError), forked():  # the processes of the one before may hold the port a moment longer
                started.append(EngineProcess(load(flags), "attached", tmp_path / "attached.log"))
            return bool(started)

        pool.until(start, "the port is free", timeout=300)
        process = started[0]

        async def ready() -> None:
            async with make_http_session() as http:
                await process.wait_until_ready(http, 300)

        asyncio.run(ready())
        return process

    async def leave_paused() -> None:
        """As an actor does that dies in a weight update."""
        async with make_http_session() as http:
            for call, body in (("/pause_generation", {"mode": "retract"}), ("/begin_weight_update", {})):
                assert (await http.post(engine.url + call, json=body)).status == 200
            assert not await is_ready(engine.url, http)
            config = load(["--actor.engine_url", engine.url, "--sync.timeout_s", "2"])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_attach(config, http, 0.0), 0.5)
            assert not await is_ready(engine.url, http), "a pause may be that of another actor's weight update"
            await _attach(config, http, 0.0)
            assert await is_ready(engine.url, http)

    engine = start_engine(0)
    try:
        asyncio.run(leave_paused())
        pool.start("a", "--actor.engine_url", engine.url, "--sync.transport", "disk")
        pool.here("a")
        assert set(pool.publish().members) == {"a"}
        pool.until(lambda: pool.proved("a"), "proved", timeout=300)
        first = pool.server.members()["a"]
        engine.stop()
        engine = start_engine(int(engine.url.rpartition(":")[2]))
        pool.until(lambda: pool.server.members().get("a") not in (None, first), "a new life comes", timeout=300)
        told = pool.log("a").read_text()
        assert "has not given it" in told or "nothing listens" in told
        assert pool.server.has_newcomers() and set(pool.publish().members) == {"a"}
        pool.until(lambda: pool.proved("a"), "proved", timeout=300)
    finally:
        engine.stop()


@pytest.fixture
def _signals() -> Iterator[None]:
    """Handlers of signals, which an actor changes, are afterwards what they were."""
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FatalError("the engine has other settings of NCCL"), "the engine has other settings of NCCL"),
        (ZeroDivisionError("a mistake"), "an error that nobody expected, ZeroDivisionError('a mistake')"),
        (asyncio.CancelledError(), "it was asked to end at once"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_learner_hears_at_once_why_an_actor_ends(
    error: BaseException, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it, its leases and a weight update would wait for ``learner.lease_timeout_s``."""
    address, sessions, tasks = f"ipc://{tmp_path}/queue", list[Session](), list[asyncio.Task[None]]()

    def make_session(*arguments: Any, **settings: Any) -> Session:
        sessions.append(Session(*arguments, **settings))
        return sessions[-1]

    @asynccontextmanager
    async def open_engine(*_: Any, **__: Any) -> AsyncIterator[Any]:
        while not sessions[0]._lives.learner:
            await asyncio.sleep(0.01)
        if isinstance(error, asyncio.CancelledError):
            tasks[0].cancel()  # as a second signal does
            await asyncio.sleep(60)
        raise error
        yield

    monkeypatch.setattr(lives, "Session", make_session)
    monkeypatch.setattr(lives, "open_engine", open_engine)

    async def run() -> None:
        config, route = load(["--learner.address", address]), Route(RunConfig(), "learner", address, 0)
        no_tokenizer: Any = None
        tasks.append(asyncio.create_task(lives.LifeRunner(config, "a", no_tokenizer, route, [], {}).run()))
        with pytest.raises(type(error)):
            await tasks[0]

    server = WorkServer(address, lease_timeout_s=1000)
    try:
        with caplog.at_level(logging.WARNING):
            asyncio.run(asyncio.wait_for(run(), 120))
            deadline = time.monotonic() + 120
            while "a" in server.present() and time.monotonic() < deadline:
                time.sleep(0.05)
    finally:
        server.close(over=False)
    assert f"actor a leaves: {reason}" in caplog.text and "a" not in server.present()


@pytest.mark.usefixtures("_signals")
def test_an_actor_with_other_settings_ends_before_its_engine_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"ipc://{tmp_path}/queue"

    @asynccontextmanager
    async def open_engine(*_: Any, **__: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(600)
        yield

    monkeypatch.setattr(lives, "open_engine", open_engine)

    async def run() -> None:
        config, route = load(["--learner.address", address]), Route(RunConfig(), "learner", address, 0)
        no_tokenizer: Any = None
        settings = {"model.prompt_style": '"system"'}
        await lives.LifeRunner(config, "a", no_tokenizer, route, [], settings).run()

    server = WorkServer(address, lease_timeout_s=1000)
    server.require({"model.prompt_style": '"tag"'})
    try:
        with pytest.raises(FatalError, match=r'refuses this actor: model.prompt_style is "tag" here and "system" in a'):
            asyncio.run(asyncio.wait_for(run(), 120))
        assert not server.present()
    finally:
        server.close(over=False)
