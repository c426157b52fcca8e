"""The learner's socket, with clients that behave, misbehave, fall silent and come back."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from common import wire
from common.net import sockets
from common.net.ports import reserve_port
from common.process import FatalError
from learner.groups import Group
from learner.work import server as server_module
from learner.work.actors import MAX_REPLIES, UNSCORABLE_GROUPS
from learner.work.scheduler import WorkQueue
from learner.work.server import WorkServer
from tests.support.groups import random_rollout, seeded_generator, work

LANGUAGES = ["en", "de"]
PATIENCE_S = 60.0  # how long to wait for what must come; long, because the machine may be busy
LEASE_S = 1000.0  # longer than any test; those about silence move the time of the last message instead


class Client:
    """The messages of an actor, without the actor."""

    def __init__(self, address: str, name: str, peer: str = "") -> None:
        self.name, self.lives = name, wire.Lives("", "")
        self.socket: Any = sockets.connect(zmq.Context.instance(), address, peer or f"{name}/process")

    def send(self, message: wire.Message) -> None:
        """Sends a message, marked with the lives of now unless it is marked already."""
        if isinstance(message, wire.LifeMessage) and not any(message.lives):
            message.of(self.lives)
        self.socket.send(wire.encode(message))

    def receive(self, kind: type[wire.Message] = wire.Message, timeout: float = PATIENCE_S) -> Any:
        deadline = time.monotonic() + timeout
        while self.socket.poll(max(0, int(1000 * (deadline - time.monotonic())))):
            message = wire.decode(self.socket.recv())
            if isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__} within {timeout} s")

    def say_hello(self, slots: int = 0, **fields: Any) -> wire.Hello:
        """Begins a new life; does not wait for the answer."""
        self.lives = wire.Lives(secrets.token_hex(4), "")
        fields = {"protocol": wire.PROTOCOL, "engine_ranks": 1, "transport": "group", "name": self.name, **fields}
        hello = wire.Hello(slots=slots, **fields)
        self.send(hello)
        return hello

    def hello(self, slots: int = 0, **fields: Any) -> None:
        self.say_hello(slots, **fields)
        self.lives = self.receive(wire.Welcome).lives

    def leases(self, count: int) -> list[wire.Work]:
        works: list[wire.Work] = []
        while len(works) < count:
            works += self.receive(wire.Leased).work
        return works

    def submit(self, leased: wire.Work) -> bool:
        rng = seeded_generator()
        rollouts = [random_rollout(rng).model_copy(update={"language": code}) for code in leased.languages]
        self.send(wire.Submit(id=leased.id, rollouts=rollouts))
        accepted: bool = self.receive(wire.Ack).accepted[leased.id]
        return accepted


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/queue"


@pytest.fixture
def server(address: str) -> Iterator[WorkServer]:
    server = WorkServer(address, LEASE_S)
    yield server
    server.close()


def serve(server: WorkServer, groups: int = 2, attempts: int = 2) -> tuple[WorkQueue[Group], list[str]]:
    queue: WorkQueue[Group] = WorkQueue(groups_per_step=groups, staleness=0, window=1, attempts=attempts, total=groups)
    failures: list[str] = []
    server.serve(queue, lambda sequence: work(sequence, LANGUAGES), lambda _, reason: failures.append(reason))
    return queue, failures


def join(server: WorkServer, *clients: Client, slots: int) -> None:
    for client in clients:
        client.hello(slots)
    server.mark_published(server.members())


def questions(works: list[wire.Work]) -> list[str]:
    """Ids without the number of the lease."""
    return [work.id.partition(":")[2] for work in works]


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_a_group_goes_its_way_once(server: WorkServer, address: str) -> None:
    serve(server)
    actor = Client(address, "a")
    join(server, actor, slots=8)
    leased = actor.leases(2)
    assert questions(leased) == ["train-0", "train-1"], "no more than admission allows"
    assert server.take(0.01) is None
    assert actor.submit(leased[1]) and actor.submit(leased[0])
    assert not actor.submit(leased[0]), "a duplicate is acknowledged and thrown away"
    for _ in range(2):
        actor.send(wire.Heartbeat(holding=[], seconds={}))
        assert isinstance(actor.receive(), wire.Alive), "every submit is acknowledged once"
    taken = server.take(1.0)
    assert taken is not None and questions([group.work for group in taken]) == ["train-0", "train-1"]


def test_no_lease_before_the_weights(server: WorkServer, address: str) -> None:
    serve(server)
    actor = Client(address, "a")
    actor.hello(slots=1)
    for _ in range(3):  # a lease would be sent before the answer to a heartbeat
        actor.send(wire.Heartbeat(holding=[], seconds={}))
        assert isinstance(actor.receive(), wire.Alive)
    assert server.has_newcomers()
    server.mark_published(server.members())
    assert questions(actor.receive(wire.Leased).work) == ["train-0"]
    assert not server.has_newcomers()


def test_groups_of_a_silent_actor_go_to_the_others(server: WorkServer, address: str) -> None:
    serve(server)
    silent, busy = Client(address, "silent"), Client(address, "busy")
    join(server, silent, slots=2)
    lost = silent.leases(2)
    join(server, busy, slots=2)
    with server.lock:
        server.members()["silent"].last_heard -= 2 * LEASE_S
    got = busy.leases(2)
    assert questions(got) == ["train-0", "train-1"]
    silent.send(wire.Leave(reason="its engine ended"))  # nobody waits for it
    silent.send(wire.Health())
    assert isinstance(silent.receive(), wire.Status), "it is not told to say hello, which it does by itself"
    silent.send(wire.Submit(id=lost[0].id, rollouts=[]))
    assert silent.receive(wire.Unknown).actor_life == silent.lives.actor
    silent.hello()
    assert not silent.submit(lost[0]), "its late answer does not count"
    assert busy.submit(got[0])


def test_time_in_which_the_server_stood_still_is_no_silence_of_the_actors(tmp_path: Path) -> None:
    """As when the process is stopped, or a thread that holds the lock waits for a file system."""
    server = WorkServer(f"ipc://{tmp_path}/queue", lease_timeout_s=2.0)
    try:
        serve(server)
        actor = Client(server.address, "a")
        join(server, actor, slots=2)
        leased = actor.leases(2)
        with server.lock:
            time.sleep(5)
        actor.send(wire.Health())
        told = actor.receive(wire.Status).actors["a"]
        assert told.groups == 2 and told.silent_s < 2, "it keeps its leases"
        assert actor.submit(leased[0])
        wait_for(lambda: not server.members())  # it says nothing more
    finally:
        server.close()


def test_groups_of_an_actor_that_leaves_go_to_the_others_at_once(server: WorkServer, address: str) -> None:
    serve(server)
    leaving, staying = Client(address, "leaving"), Client(address, "staying")
    join(server, leaving, slots=2)
    leaving.leases(2)
    join(server, staying, slots=2)
    leaving.send(wire.Leave(reason="its engine ended"))
    assert questions(staying.leases(2)) == ["train-0", "train-1"]
    assert list(server.members()) == ["staying"]


def test_a_message_shows_that_an_actor_is_not_silent(server: WorkServer, address: str) -> None:
    actor = Client(address, "a")
    actor.hello()
    state = server.members()["a"]
    with server.lock:
        state.last_heard -= LEASE_S / 2
        before = state.last_heard
    actor.send(wire.Heartbeat(holding=[], seconds={}))
    actor.receive(wire.Alive)
    assert state.last_heard > before + LEASE_S / 4


def test_released_and_malformed_groups_are_retried_then_given_up(
    server: WorkServer, address: str, rng: np.random.Generator
) -> None:
    _, failures = serve(server, groups=1, attempts=2)
    actor = Client(address, "a")
    join(server, actor, slots=3)
    first = actor.receive(wire.Leased).work[0]
    actor.send(wire.Release(id=first.id, reason="the engine said no"))
    again = actor.receive(wire.Leased).work[0]
    assert questions([again]) == questions([first])
    assert not actor.submit(first), "an answer counts under its own lease only"
    wrong = random_rollout(rng).model_copy(update={"language": "zh"})
    actor.send(wire.Submit(id=again.id, rollouts=[wrong, wrong]))
    assert questions(actor.receive(wire.Leased).work) == ["train-1"], "another one in its place"
    assert failures == ["the rollouts are not in the languages asked for"]


def test_nonsense_does_no_harm(server: WorkServer, address: str) -> None:
    serve(server)
    actor, noisy = Client(address, "a"), Client(address, "noisy")
    nameless: Any = zmq.Context.instance().socket(zmq.DEALER)
    nameless.setsockopt(zmq.LINGER, 0)
    nameless.setsockopt(zmq.IDENTITY, b"\xff\xfe")  # is not UTF-8
    nameless.connect(address)
    nameless.send(wire.encode(wire.Health()))
    for frames in ([b"\xff\x00"], [b""], [wire.encode(wire.Health()), b"one frame too many"]):
        noisy.socket.send_multipart(frames)
    noisy.send(wire.Welcome())  # is not for a learner
    noisy.send(wire.Heartbeat(holding=[], seconds={}))  # not refused: a stranger is told that it is unknown
    noisy.receive(wire.Unknown)
    wait_for(lambda: server.refused_messages == 5)
    noisy.say_hello(protocol=99)
    refusal = noisy.receive(wire.Stop)
    assert "protocol" in refusal.error and not any(refusal.lives)
    assert set(msgpack.unpackb(wire.encode(refusal))) == {"kind", "error"}, "older actors can read it"
    noisy.say_hello(name="")
    assert "name" in noisy.receive(wire.Stop).error
    join(server, actor, slots=1)
    assert actor.submit(actor.receive(wire.Leased).work[0])
    nameless.close()


# What an actor of lrpo with protocol 8 said; its process began at a time of day.
HELLO_8 = {
    "kind": "hello", "actor_life": "a1b2c3d4e5f6", "protocol": 8, "engine_ranks": 1, "slots": 4, "transport": "group",
    "name": "l40s-0",
    "process": {"host": "here", "pid": 4711, "started": 1764424800.25, "machine": "a kernel and a process namespace"},
}  # fmt: skip


def test_an_actor_of_another_version_is_told_why_it_is_refused(server: WorkServer, address: str) -> None:
    """Whatever its hello is made of. To one that hears nothing the learner seems to be dead."""
    actor = Client(address, "l40s-0")
    for protocol in (8, wire.PROTOCOL + 1):
        with pytest.raises(wire.WireError, match="unknown field `started`"):
            wire.decode(msgpack.packb(HELLO_8))
        actor.socket.send(msgpack.packb({**HELLO_8, "protocol": protocol}))
        refusal = msgpack.unpackb(actor.socket.recv() if actor.socket.poll(1000 * PATIENCE_S) else b"\x80")
        assert refusal == {
            "kind": "stop",
            "error": f"this learner speaks protocol {wire.PROTOCOL}, actor l40s-0 speaks {protocol}: update it",
        }
    actor.socket.send(msgpack.packb({**HELLO_8, "protocol": wire.PROTOCOL}))  # not another version, but nonsense
    actor.send(wire.Health())
    assert isinstance(actor.receive(), wire.Status) and server.refused_messages == 3 and not server.members()


def test_a_lease_that_runs_out_is_given_again_and_held_against_no_group(server: WorkServer, address: str) -> None:
    queue, failures = serve(server, groups=1, attempts=2)
    actor = Client(address, "a")
    join(server, actor, slots=3)
    for _ in range(4):
        leased = actor.receive(wire.Leased).work[0]
        with server.lock:
            queue.extend("a", [leased.sequence], time.monotonic() - 1)
    assert actor.submit(actor.receive(wire.Leased).work[0])
    assert not failures and server.counts()["retried"] == 4


def test_actors_with_other_settings_are_told_so(server: WorkServer, address: str) -> None:
    early, late = Client(address, "early"), Client(address, "late")
    early.hello(1)
    server.require({"sampling.temperature": "1.0"})
    told = early.receive(wire.Stop)
    assert told.lives == early.lives and "sampling.temperature is 1.0 here and not given in actor early" in told.error
    late.say_hello(1, settings={"sampling.temperature": "0.7"})
    assert late.receive(wire.Stop).error.startswith("sampling.temperature is 1.0 here and 0.7 in actor late: ")
    late.hello(1, settings={"sampling.temperature": "1.0"})
    assert list(server.members()) == ["late"]


def test_waiting_ends_when_every_group_handed_out_is_finished(server: WorkServer, address: str) -> None:
    leased: list[wire.Work] = []
    actor = Client(address, "a")

    def wait() -> None:
        pass

    def finish_one() -> None:
        assert not leased or actor.submit(leased.pop())

    def interrupted() -> None:
        raise InterruptedError

    assert server.wait_until_all_finished(5, wait), "nothing is served yet"
    serve(server)
    join(server, actor, slots=2)
    leased += actor.leases(2)
    assert not server.wait_until_all_finished(0.05, wait), "two are under way"
    with pytest.raises(InterruptedError):
        server.wait_until_all_finished(PATIENCE_S, interrupted)
    assert server.wait_until_all_finished(PATIENCE_S, finish_one) and not leased, "it waits for both"
    assert server.wait_until_all_finished(PATIENCE_S, wait), "finished ones may wait to be taken"
    Client(address, "b").hello(slots=1)
    assert not server.wait_until_all_finished(5, wait), "an actor has come, and has no weights yet"


def test_a_wait_for_the_last_groups_lasts_as_long_as_they_come(
    server: WorkServer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout_s, gone_s = 150.0, 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + gone_s, sleep=time.sleep)
    monkeypatch.setattr(server_module, "time", clock)
    serve(server, groups=4)
    actor = Client(address, "a")
    join(server, actor, slots=4)
    leased = actor.leases(4)

    def finish_one() -> None:
        nonlocal gone_s
        gone_s += 100
        assert actor.submit(leased.pop())

    assert server.wait_until_all_finished(timeout_s, finish_one) and not leased and server.accepted() == 4


def test_a_queue_that_is_served_again_leases_anew_what_was_out(server: WorkServer, address: str) -> None:
    queue, _ = serve(server, groups=1)
    actor = Client(address, "a")
    join(server, actor, slots=1)
    late = actor.receive(wire.Leased).work[0]
    serve(server, groups=0)
    server.serve(queue, lambda sequence: work(sequence, LANGUAGES), lambda *_: None)
    again = actor.receive(wire.Leased).work[0]
    assert questions([again]) == questions([late])
    assert not actor.submit(late) and actor.submit(again)


def test_nobody_waits_for_questions_that_were_all_given_up(server: WorkServer, address: str) -> None:
    queue, _ = serve(server, groups=1, attempts=1)
    server.serve(queue, lambda sequence: work(sequence, LANGUAGES), lambda *_: queue.lower_total())
    actor = Client(address, "a")
    join(server, actor, slots=1)
    actor.send(wire.Release(id=actor.receive(wire.Leased).work[0].id, reason="no reward process"))
    actor.receive(wire.Ack)
    with pytest.raises(FatalError, match="every question was given up"):
        server.take(0.1)


def test_a_reward_that_scores_nothing_ends_every_wait(server: WorkServer, address: str) -> None:
    serve(server, groups=UNSCORABLE_GROUPS, attempts=3)
    actor = Client(address, "a")
    join(server, actor, slots=UNSCORABLE_GROUPS)
    leased = actor.receive(wire.Leased).work
    assert len(leased) == UNSCORABLE_GROUPS
    for one in leased:
        actor.send(wire.Release(id=one.id, reason="m.py:3 in score: KeyError: 'hint'", cause="scoring"))
    wait_for(lambda: actor.receive(wire.Ack).accepted.keys() & {leased[-1].id})
    told = r"no answer can be scored: 16 groups came back .* m\.py:3 in score: KeyError: 'hint'\. Mend it"
    with pytest.raises(FatalError, match=told):
        server.take(0.1)
    with pytest.raises(FatalError, match=told):
        server.wait_until_all_finished(0.5, lambda: None)
    with pytest.raises(FatalError, match=told):
        server.members()


def test_an_ejected_actor_is_told_why(server: WorkServer, address: str) -> None:
    serve(server)
    actor = Client(address, "a")
    join(server, actor, slots=1)
    ejected = server.members()["a"]
    assert server.is_present("a", ejected)
    server.eject("a", ejected, "too slow")
    assert actor.receive(wire.Eject).reason == "too slow"
    assert not server.members() and not server.is_present("a", ejected)
    actor.hello(slots=1)
    server.eject("a", ejected, "much too slow")
    assert list(server.members()) == ["a"] and not server.is_present("a", ejected), "it has come back in the meantime"


def test_an_actor_whose_groups_break_rules_is_named_and_ejected_after_the_second(
    server: WorkServer, address: str, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    _, failures = serve(server, groups=2, attempts=9)
    actor = Client(address, "a")
    join(server, actor, slots=2)
    for version, leased in zip((-2_000_000_000, 1), actor.leases(2), strict=True):
        lies = [random_rollout(rng, version=version).model_copy(update={"language": code}) for code in LANGUAGES]
        actor.send(wire.Submit(id=leased.id, rollouts=lies))
    assert actor.receive(wire.Eject).reason == f"2 of its groups broke a rule, the last one {leased.id}"
    assert caplog.text.count("of actor a is refused: answer 1 (en): tokens of the policy versions") == 2
    assert server.counts()["refused"] == 2 and not server.members() and not failures
    actor.hello(slots=2)
    server.mark_published(server.members())
    assert all(actor.submit(leased) for leased in actor.leases(2)), "with an engine that was started again"


def test_an_order_reaches_the_life_that_it_is_meant_for_alone(server: WorkServer, address: str) -> None:
    """The socket of an actor outlives its lives, and what was sent to one of them may be received by the next."""
    actor = Client(address, "a")
    actor.hello(slots=1)
    first = server.members()["a"]
    before = actor.lives
    actor.say_hello(slots=1)
    wait_for(lambda: server.members()["a"] is not first)
    server.send(first, wire.Pause(version=1, timeout_s=1.0))  # the publisher has not noticed yet
    now = actor.receive(wire.Welcome).lives
    assert actor.receive(wire.Pause).lives == before != now
    actor.lives = before
    actor.send(wire.Synced(version=1, stage="ready", pause_s=0.0))  # an answer that comes late
    assert actor.receive(wire.Unknown).actor_life == before.actor
    assert server.members()["a"].replies.empty() and server.counts().get("foreign", 0) == 0
    serve(server)
    assert server.counts()["foreign"] == 1


def test_an_actor_that_answers_without_end_is_given_up(server: WorkServer, address: str) -> None:
    serve(server)
    actor, other = Client(address, "a"), Client(address, "other")
    join(server, actor, other, slots=1)
    state = server.members()["a"]
    for version in range(MAX_REPLIES + 1):
        actor.send(wire.Synced(version=version, stage="done", pause_s=0.0))
    assert "replies that no order had asked for" in actor.receive(wire.Eject).reason
    assert list(server.members()) == ["other"] and state.replies.qsize() == MAX_REPLIES


@pytest.mark.parametrize("field", ["seconds", "gauges"])
def test_an_actor_cannot_make_metrics_without_end(field: str, server: WorkServer, address: str) -> None:
    actor = Client(address, "a")
    actor.hello(slots=1)
    most = {f"{number:050}": 1.0 for number in range(50)}
    for figures in ({**most, "one more": 1.0}, {"x" * 51: 1.0}, most):
        given: dict[str, Any] = {"holding": [], "seconds": {}, field: figures}
        actor.send(wire.Heartbeat(**given))
    actor.receive(wire.Alive)
    assert server.refused_messages == 2 and getattr(server.members()["a"], field) == most


def test_a_second_actor_of_a_name_cannot_take_it_nor_what_is_sent_to_the_first(
    server: WorkServer, address: str
) -> None:
    serve(server)
    first, second = Client(address, "a"), Client(address, "a", peer="a/another process")
    first.hello(slots=1)
    second.say_hello(slots=1, process=wire.ActorProcess(host="elsewhere", pid=7))
    assert second.receive(wire.Taken).holder_life == first.lives.actor
    second.lives = first.lives  # it knows everything, and is still not the first
    second.send(wire.Leave(reason="the second says so"))
    second.say_hello(slots=1, waited_s=100.0)
    assert "the name 'a' is held by" in second.receive(wire.Stop).error
    server.mark_published(server.members())
    assert first.submit(first.leases(1)[0]), "its socket is its own"


def test_actors_are_told_that_the_run_is_over_only_where_it_is(tmp_path: Path) -> None:
    for over in (True, False):
        address = f"ipc://{tmp_path}/{over}"
        server, actor = WorkServer(address, 60), Client(address, "a")
        actor.hello()
        server.close(over=over)
        if over:
            assert not actor.receive(wire.Stop).error
        else:
            with pytest.raises(AssertionError, match="no Stop"):
                actor.receive(wire.Stop, timeout=0.3)


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with reserve_port() as holder:
        address = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        server = WorkServer(address, 1.0)
        try:
            with pytest.raises(FatalError, match=f"cannot listen on {address}"):
                WorkServer(address, 1.0)
        finally:
            server.close()
