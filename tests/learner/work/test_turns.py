"""Who gets a group that others could not do, and when it is given up: for pools of all kinds, by example and by chance.

The promises: what says nothing about a group keeps no free actor from it; one bad machine gives up nothing that another
could do; every group comes to an end; and where one actor is alone, what it refuses is given up at once.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import wire
from tests.learner.work.test_actors import LEASE_S, Setting, answers

FAILURES: list[wire.Cause] = ["generation", "scoring", "refusal", "unforeseen"]
ATTEMPTS = 3


def give_back(setting: Setting, name: str, cause: wire.Cause) -> None:
    """The actor gives back all that it holds."""
    for one in setting.held(name):
        assert setting.registry.release(name, wire.Release(id=one.id, reason=cause, cause=cause))


def submit(setting: Setting, name: str) -> None:
    """The actor does all that it holds."""
    for one in setting.held(name):
        assert setting.registry.submit(name, answers(one))


def fail_together(setting: Setting, name: str, slots: int, host: str = "") -> None:
    """The engine of an actor ends while it generates all that the actor holds, and the actor comes back."""
    generating = [one.id for one in setting.held(name)]
    setting.registry.leave(name, wire.Leave(reason="out of memory", generating=generating))
    setting.join(name, slots, host=host)


@pytest.mark.parametrize("what", ["outage", "lost", "engine"])
@pytest.mark.parametrize(("slots", "groups"), [({"big": 200, "small": 10}, 210), ({"a": 1, "b": 20, "c": 3}, 48)])
def test_an_unequal_pool_is_as_fast_as_before_after_what_says_nothing(
    what: str, slots: dict[str, int], groups: int
) -> None:
    """In as many turns of generation as it takes where every actor may do every group."""
    setting = Setting(groups=groups, attempts=ATTEMPTS)
    for name, most in slots.items():
        setting.join(name, most)
    setting.grant()
    if what == "lost":
        setting.registry.release_expired(now=LEASE_S + 1)
    for name, most in slots.items():
        if what == "outage":
            give_back(setting, name, "outage")
        elif what == "engine":
            fail_together(setting, name, most)
    assert not setting.queue.count_leased()
    turns = 0
    while len(setting.queue.finished()) < groups:
        setting.grant(now=20.0)
        turns += 1
        for name in slots:
            submit(setting, name)
    assert turns == math.ceil(groups / sum(slots.values())) and not setting.failures


def test_failures_of_different_causes_are_not_two_that_failed_alike() -> None:
    """An engine runs out of memory with four groups in it, the next actor's context is too short for them."""
    setting = Setting(groups=4, attempts=ATTEMPTS)
    setting.join("a", 4)
    setting.grant()
    setting.join("b", 4)
    fail_together(setting, "a", 4)
    assert setting.grant() == {"b": [0, 1, 2, 3]}, "others first"
    give_back(setting, "b", "refusal")
    assert setting.grant() == {"a": [0, 1, 2, 3]} and not setting.failures
    setting.say_hello("c", 0, engine_ranks=0)
    setting.registry.remove("b")
    for _ in range(ATTEMPTS):
        give_back(setting, "a", "generation")
        setting.grant()
    assert not setting.failures, "one refusal, and failures to generate by another"
    setting.join("c", 4)
    assert setting.grant() == {"c": [0, 1, 2, 3]}
    submit(setting, "c")
    assert len(setting.queue.finished()) == 4


def test_two_actors_must_fail_for_the_same_cause() -> None:
    setting = Setting(groups=1, attempts=ATTEMPTS)
    causes: list[tuple[str, wire.Cause]] = [("a", "generation"), ("b", "refusal"), ("a", "scoring"), ("b", "outage")]
    for name in ("a", "b"):
        setting.join(name, 1)
    for name, cause in causes:
        assert setting.grant() == {name: [0]}
        give_back(setting, name, cause)
        assert not setting.failures
    assert setting.grant() == {"a": [0]}
    give_back(setting, "a", "refusal")
    assert setting.failures == [(0, "refusal")]


def test_one_engine_that_ended_with_others_in_it_says_nothing_about_a_group() -> None:
    setting = Setting(groups=2, attempts=ATTEMPTS)
    setting.join("a", 2)
    setting.grant()
    setting.join("b", 1)
    fail_together(setting, "a", 2)
    assert setting.grant() == {"b": [0], "a": [1]}
    fail_together(setting, "b", 1)
    assert not setting.failures, "alone in one engine, and with another group in one before"
    submit(setting, "a")
    assert setting.grant() == {"a": [0]}
    fail_together(setting, "a", 2)
    assert [sequence for sequence, _ in setting.failures] == [0], "alone in the engines of both"


@pytest.mark.parametrize("what", ["outage", "lost"])
def test_an_outage_and_a_failure_are_not_two_failures(what: str) -> None:
    setting = Setting(groups=1, attempts=ATTEMPTS)
    setting.join("a", 1)
    setting.grant()
    setting.join("b", 1)
    if what == "lost":
        setting.registry.release_expired(now=LEASE_S + 1)
    else:
        give_back(setting, "a", "outage")
    assert setting.grant(now=20.0) == {"b": [0]}, "others first"
    give_back(setting, "b", "refusal")
    assert not setting.failures and setting.grant(now=20.0) == {"a": [0]}
    submit(setting, "a")
    assert list(setting.queue.finished()) == [0]


@pytest.mark.parametrize("cause", FAILURES)
def test_two_bad_actors_of_one_host_are_one_machine_where_there_is_another(cause: wire.Cause) -> None:
    setting = Setting(groups=4, attempts=ATTEMPTS)
    for name in ("bad0", "bad1"):
        setting.join(name, 4, host="h0")
    setting.join("good", 1, host="h1")
    for turn in range(20):
        setting.grant()
        for name in ("bad0", "bad1"):
            give_back(setting, name, cause)
        if turn % 3 == 2:
            submit(setting, "good")
    assert not setting.failures and sorted(setting.queue.finished()) == [0, 1, 2, 3]


def test_an_actor_that_fails_when_it_is_to_get_no_more_is_of_its_own_host() -> None:
    setting = Setting(groups=1, attempts=ATTEMPTS)
    for name in ("bad0", "bad1"):
        setting.join(name, 1, host="h0")
    assert setting.grant() == {"bad0": [0]}
    setting.say_hello("good", 0, engine_ranks=0, host="h1")
    setting.registry.heartbeat("bad0", wire.Heartbeat(holding=[], seconds={}, slots=0), 0.0)
    give_back(setting, "bad0", "refusal")
    assert setting.grant() == {"bad1": [0]}
    give_back(setting, "bad1", "refusal")
    assert not setting.failures, "one machine has refused it, and the other one starts"
    setting.join("good", 1, host="h1")
    assert setting.grant() == {"good": [0]}


def test_where_all_are_on_one_host_each_actor_is_a_machine() -> None:
    setting = Setting(groups=1, attempts=ATTEMPTS)
    for name in ("a", "b", "c"):
        setting.join(name, 1, host="h0")
    for name in ("a", "b"):
        assert setting.grant() == {name: [0]} and not setting.failures
        give_back(setting, name, "refusal")
    assert [sequence for sequence, _ in setting.failures] == [0]


def test_a_process_that_was_started_again_under_another_name_is_not_a_second_machine() -> None:
    setting = Setting(groups=1, attempts=ATTEMPTS)
    setting.join("h0-17", 1, host="h0")
    setting.grant()
    setting.join("other", 0, host="h0")
    setting.registry.actors["other"].slots = 1
    give_back(setting, "h0-17", "refusal")
    setting.registry.remove("h0-17")
    setting.registry.actors["other"].slots = 0
    setting.join("h0-99", 1, host="h0")
    assert setting.grant() == {"h0-99": [0]}
    setting.registry.actors["other"].slots = 1
    give_back(setting, "h0-99", "refusal")
    assert not setting.failures and setting.grant() == {"other": [0]}


@pytest.mark.parametrize("cause", FAILURES)
def test_a_first_actor_that_is_bad_gives_up_nothing_while_others_start(cause: wire.Cause) -> None:
    """Its groups wait for those, however often it asks, and it is not asked again and again."""
    setting = Setting(groups=4, attempts=ATTEMPTS)
    setting.join("bad", 4)
    setting.say_hello("good", 0, engine_ranks=0)
    leases = 0
    for _ in range(9):
        leases += sum(len(works) for works in setting.grant().values())
        give_back(setting, "bad", cause)
    assert not setting.failures and leases == 4 * (1 if cause == "refusal" else ATTEMPTS)
    setting.join("good", 4)
    assert setting.grant() == {"good": [0, 1, 2, 3]}
    submit(setting, "good")
    assert len(setting.queue.finished()) == 4


def test_what_waited_for_an_actor_that_never_started_comes_to_its_end() -> None:
    setting = Setting(groups=1, attempts=ATTEMPTS)
    setting.join("a", 1)
    setting.say_hello("never", 0, engine_ranks=0)
    setting.grant()
    give_back(setting, "a", "refusal")
    assert setting.grant() == {} and not setting.failures
    setting.registry.leave("never", wire.Leave(reason="it does not start"))
    assert setting.grant() == {"a": [0]}
    give_back(setting, "a", "refusal")
    assert [sequence for sequence, _ in setting.failures] == [0]


@pytest.mark.parametrize("renamed", [False, True])
def test_a_group_does_not_wait_for_starts_that_fail_again_and_again(renamed: bool) -> None:
    """Two hosts on which no engine starts, and one of the two is always there: a pool starts it again at once."""
    setting, names = Setting(groups=1, attempts=ATTEMPTS), {"x": "x-1", "y": "y-1"}
    setting.join("a", 1)
    for host, name in names.items():
        setting.say_hello(name, 0, engine_ranks=0, host=host)
    setting.grant()
    give_back(setting, "a", "refusal")
    turns = 0
    while setting.grant() == {}:
        host = "xy"[turns % 2]
        setting.registry.leave(names[host], wire.Leave(reason="it does not start"))
        names[host] = f"{host}-{turns}" if renamed else names[host]
        setting.say_hello(names[host], 0, engine_ranks=0, host=host)
        turns += 1
        assert turns <= 2 and not setting.failures, "each has had its first start"
    give_back(setting, "a", "refusal")
    assert [sequence for sequence, _ in setting.failures] == [0] and turns == 2


def test_a_group_waits_for_the_next_start_of_an_actor_that_has_worked() -> None:
    """Its host and its name are as those of one that never starts. It waits for a first start beside it, too."""
    setting = Setting(groups=1, attempts=ATTEMPTS)
    for name in ("a", "b"):
        setting.join(name, 1, host="h0")
    for name in ("c", "never"):
        setting.say_hello(name, 0, engine_ranks=0, host="h0")
    setting.registry.leave("never", wire.Leave(reason="it does not start"))
    setting.registry.leave("b", wire.Leave(reason="code -9"))
    for name in ("b", "never"):
        setting.say_hello(name, 0, engine_ranks=0, host="h0")
    setting.grant()
    give_back(setting, "a", "refusal")
    for waited_for in ("b", "c"):
        assert setting.grant() == {} and not setting.failures
        setting.say_hello(waited_for, 1, host="h0")
        assert setting.grant() == {}, "it is ready, and has no weights yet"
        setting.registry.remove(waited_for)
    assert setting.grant() == {"a": [0]}


def test_a_host_is_waited_for_again_once_an_engine_there_has_the_weights() -> None:
    setting = Setting(groups=1, attempts=ATTEMPTS)
    setting.join("a", 1, host="h0")
    setting.say_hello("b", 0, engine_ranks=0, host="h1")
    setting.registry.remove("b")
    setting.join("b", 0, host="h1")
    setting.say_hello("c", 0, engine_ranks=0, host="h1")
    setting.grant()
    give_back(setting, "a", "refusal")
    assert setting.grant() == {} and not setting.failures


def test_a_group_that_ends_engines_of_ever_new_names_on_one_host_comes_to_its_end() -> None:
    setting, number = Setting(groups=1, attempts=ATTEMPTS), 0
    for name in ("a-0", "b-0"):
        setting.join(name, 1, host="h0")
    while not setting.failures:
        ((name, _),) = setting.grant().items()
        number += 1
        generating = [one.id for one in setting.held(name)]
        setting.registry.leave(name, wire.Leave(reason="code -11", generating=generating))
        setting.join(f"{name[0]}-{number}", 1, host="h0")
        assert number <= 2 + 3 * 2, "the limit, and three turns for each of the two"
    assert number == 2 + 3 * 2


@pytest.mark.parametrize("cause", FAILURES)
def test_a_group_at_which_one_fails_while_the_other_is_cut_off_comes_to_its_end(cause: wire.Cause) -> None:
    setting, holders = Setting(groups=1, attempts=ATTEMPTS), list[str]()
    for name in ("fails", "cut_off"):
        setting.join(name, 1)
    while not setting.failures:
        assert len(holders) < 20
        ((name, _),) = setting.grant().items()
        holders.append(name)
        give_back(setting, name, cause if name == "fails" else "outage")
    assert holders[-1] == "fails" and Counter(holders) == {"fails": 3, "cut_off": 3}


class Pool:
    """A pool that a generator of random numbers makes, and what is promised of it. Actors are cut off, fail and come.

    At most one machine is bad: an actor where all are on one host, else all actors of a host. Some groups fail
    everywhere. Some actors never become ready, and are started again at once. A good actor has two outages at most with
    the same group, unless it is cut off for good; then somebody is bad or some groups fail everywhere, which the others
    are there to find out.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        draw = self.random
        self.groups = draw.randint(1, 6)
        self.setting = Setting(groups=self.groups, attempts=ATTEMPTS)
        hosts = draw.choice([["h0"], ["h0", "h1"], ["h0", "h1", "h2"]])
        names = [f"a{number}" for number in range(draw.randint(1, 5))]
        self.host = {name: draw.choice(hosts) for name in names}
        bad = draw.choice([None, *names])
        several = len(set(self.host.values())) > 1
        self.bad = {one for one in names if bad and (self.host[one] == self.host[bad] if several else one == bad)}
        others = names[:-1] if bad is None else [name for name in names if name != bad]
        self.never_ready = set(draw.sample(others, draw.randint(0, len(others)))) if draw.random() < 0.4 else set[str]()
        working = [name for name in names if name not in self.never_ready]
        good = [name for name in working if name not in self.bad]
        # Somebody else must be there to end what it cannot.
        self.cut_off = draw.choice(good) if good and len(working) > 1 and draw.random() < 0.3 else None
        self.failed_hosts: set[str] = set()  # where a start has ever failed
        self.worked: set[str] = set()  # those whose last life had weights
        self.waited_for: set[str] = set()  # those whose newest start groups wait for in any case
        self.slots = {name: draw.choice([1, 2, 9]) for name in names}
        self.poisoned = {number for number in range(200) if draw.random() < 0.2}
        self.outages: Counter[tuple[int, str]] = Counter()
        self.failures: Counter[int] = Counter()
        self.failed_at: defaultdict[int, set[str]] = defaultdict(set)
        self.now = 0.0

    def run(self) -> None:
        for name in self.host:
            self.start(name)
            if self.random.random() < 0.5 and name not in self.never_ready:
                self.make_ready(name)
        for _ in range(4000):
            if len(self.setting.queue.finished()) == self.setting.queue.remaining:
                return  # all are done or were given up
            self.now += 0.01
            self.setting.grant(self.now)
            self.check_that_nobody_free_is_kept_from_work()
            self.do_something()
        raise AssertionError("it did not come to an end")

    def start(self, name: str) -> None:
        waits = name in self.worked or self.host[name] not in self.failed_hosts
        (self.waited_for.add if waits else self.waited_for.discard)(name)
        assert isinstance(self.setting.say_hello(name, 0, self.now, engine_ranks=0, host=self.host[name]), wire.Welcome)

    def make_ready(self, name: str) -> None:
        self.setting.join(name, self.slots[name], self.now, host=self.host[name])
        self.worked.add(name)

    def fail_to_start(self, name: str) -> None:
        self.setting.registry.remove(name)
        self.worked.discard(name)
        self.failed_hosts.add(self.host[name])

    def do_something(self) -> None:
        registry, draw = self.setting.registry, self.random
        starting = [name for name in self.host if name in registry.actors and not registry.actors[name].has_weights]
        away = [name for name in self.host if name not in registry.actors]
        busy = [name for name, actor in registry.actors.items() if actor.leases]
        assert busy or starting or away, "somebody has work, as long as something is unfinished"
        if away and (not (busy or starting) or draw.random() < 0.2):
            self.start(draw.choice(away))
        elif starting and (not busy or draw.random() < 0.1):
            name = draw.choice(starting)
            if name in self.never_ready:
                self.fail_to_start(name)
                self.start(name)
            elif draw.random() < 0.8:
                self.make_ready(name)
            else:
                self.fail_to_start(name)
        elif draw.random() < 0.03:
            registry.remove(draw.choice(busy))
        else:
            self.end_a_lease(draw.choice(busy))

    def end_a_lease(self, name: str) -> None:
        one = self.random.choice(self.setting.held(name))
        if name == self.cut_off or (self.random.random() < 0.3 and self.outages[one.sequence, name] < 2):
            self.have_an_outage(name, one)
        elif name in self.bad or one.sequence in self.poisoned:
            self.fail(name, one)
        else:
            assert self.setting.registry.submit(name, answers(one))

    def have_an_outage(self, name: str, one: wire.Work) -> None:
        self.outages[one.sequence, name] += 1
        registry = self.setting.registry
        if self.random.random() < 0.5:
            assert registry.release(name, wire.Release(id=one.id, reason="away", cause="outage"))
            return
        self.now += LEASE_S + 1  # the lease runs out, as the only one
        for other, actor in registry.actors.items():
            actor.last_heard = self.now
            registry.heartbeat(
                other, wire.Heartbeat(holding=[n for n in actor.leases if n != one.id], seconds={}), self.now
            )
        registry.release_expired(self.now)
        assert one.id not in registry.actors[name].leases

    def fail(self, name: str, one: wire.Work) -> None:
        registry, sequence, failed = self.setting.registry, one.sequence, len(self.setting.failures)
        alone = len(registry.actors) == 1
        present = {one for one, actor in registry.actors.items() if actor.has_weights or one in self.waited_for}
        cause = self.random.choice([*FAILURES, None])
        if cause is None:
            registry.leave(name, wire.Leave(reason="code -11", generating=[one.id]))
        else:
            assert registry.release(name, wire.Release(id=one.id, reason=cause, cause=cause))
        self.failures[sequence] += 1
        self.failed_at[sequence].add(name)
        given_up = [given_up for given_up, _ in self.setting.failures[failed:]]
        assert given_up in ([], [sequence])
        if given_up:
            self.setting.queue.lower_total()  # no other question takes its place
        if alone and cause == "refusal":
            assert given_up, "there is nobody else"
        good = present - self.bad - self.never_ready - {self.cut_off}
        if given_up and sequence not in self.poisoned:
            assert not good, f"of {present}, {good} could have done group {sequence}"
        # Causes that have not reached their limits, and then three turns of each actor.
        assert self.failures[sequence] <= 4 * (ATTEMPTS - 1) + 3 * len(self.host) + 5

    def check_that_nobody_free_is_kept_from_work(self) -> None:
        queue, registry = self.setting.queue, self.setting.registry
        if queue.suspects() or any(queue.is_suspect(n) for n in queue.untaken()):
            return  # what ended engines is leased to an actor that is emptied for it
        free = [
            name for name, actor in registry.actors.items() if actor.has_weights and len(actor.leases) < actor.slots
        ]
        held = {one.sequence for actor in registry.actors.values() for one in actor.leases.values()}
        for sequence in set(queue.untaken()) - set(queue.finished()) - held:
            kept = [name for name in free if name not in self.failed_at[sequence]]
            assert not kept, f"{kept} are free and have not failed at group {sequence}"


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_pools_of_all_kinds_keep_the_promises(seed: int) -> None:
    Pool(seed).run()
