"""Who is present and who holds which lease, on a clock that the tests turn."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import pytest

from common import wire
from learner.groups import Group
from learner.work.actors import FEWEST_UNSCORABLE, UNSCORABLE_GROUPS, ActorRegistry, ServedQueue
from learner.work.admission import UNLIMITED, Limits
from learner.work.scheduler import WorkQueue
from tests.support.groups import random_rollout, seeded_generator, work

LEASE_S = 10.0


class Setting:
    """A registry that serves a queue whose groups are asked for in English and German."""

    def __init__(self, *, groups: int = 8, attempts: int = 2, limits: Limits = UNLIMITED) -> None:
        self.registry = ActorRegistry(LEASE_S)
        self.queue = self.new_queue(groups, attempts)
        self.failures: list[tuple[int, str]] = []
        self.registry.serve(ServedQueue(self.queue, self.make_work, self.on_failed, limits))

    def new_queue(self, groups: int, attempts: int) -> WorkQueue[Group]:
        return WorkQueue(groups_per_step=groups, staleness=0, window=1, attempts=attempts, total=groups)

    def make_work(self, sequence: int) -> wire.Work:
        return work(sequence, ["en", "de"])

    def on_failed(self, sequence: int, reason: str) -> None:
        self.failures.append((sequence, reason))

    def say_hello(self, name: str, slots: int, now: float = 0.0, **fields: Any) -> Any:
        """A new life of the actor's one process says hello; returns the answer."""
        return self.registry.admit(fields.pop("peer", f"{name}/1"), hello(name, slots, **fields), now)

    def join(self, name: str, slots: int, now: float = 0.0, **fields: Any) -> None:
        """An actor says hello, and gets the current weights."""
        assert isinstance(self.say_hello(name, slots, now, **fields), wire.Welcome)
        self.registry.mark_published({name: self.registry.actors[name]})

    def grant(self, now: float = 0.0) -> dict[str, list[int]]:
        """Sequence numbers of the new leases by actor."""
        return {name: [one.sequence for one in works] for name, works in self.registry.grant(now).items()}

    def held(self, name: str) -> list[wire.Work]:
        return list(self.registry.actors[name].leases.values())


def hello(name: str, slots: int, host: str = "", **fields: Any) -> wire.Hello:
    fields = {"engine_ranks": 2, "actor_life": secrets.token_hex(4), "drain_s": 3.0, **fields}
    fields.setdefault("process", wire.ActorProcess(host=host))
    return wire.Hello(protocol=wire.PROTOCOL, name=name, slots=slots, transport="shared", **fields)


def answers(leased: wire.Work, version: int = 0) -> wire.Submit:
    rng = seeded_generator()
    rollouts = [random_rollout(rng, version=version).model_copy(update={"language": c}) for c in leased.languages]
    return wire.Submit(id=leased.id, rollouts=rollouts)


def test_an_actor_leases_when_its_engine_has_the_weights() -> None:
    setting = Setting()
    registry = setting.registry
    setting.say_hello("a", 1)
    assert registry.has_newcomers() and setting.grant() == {}
    registry.mark_published(dict(registry.actors))
    assert not registry.has_newcomers() and setting.grant() == {"a": [0]}
    state = registry.actors["a"]
    assert (state.engine_ranks, state.transport, state.drain_s) == (2, "shared", 3.0)


def test_the_actor_with_the_fewest_leases_is_next_and_none_gets_more_than_its_slots() -> None:
    setting = Setting(groups=8)
    setting.join("a", slots=2)
    assert setting.grant() == {"a": [0, 1]}
    setting.join("b", slots=9)
    setting.registry.heartbeat("a", wire.Heartbeat(holding=[], seconds={}, slots=4), 0.0)
    assert setting.grant() == {"b": [2, 3, 5, 7], "a": [4, 6]}, "b catches up, then both in turn"
    assert setting.grant() == {}, "the queue admits no more"


def test_a_heartbeat_without_slots_leaves_them_as_they_are() -> None:
    setting = Setting()
    setting.join("a", slots=2)
    setting.registry.heartbeat("a", wire.Heartbeat(holding=[], seconds={"generate": 2.0}, gauges={"usage": 0.5}), 1.0)
    assert setting.grant() == {"a": [0, 1]}
    state = setting.registry.status(now=4.0)["a"]
    assert (state.live, state.groups, state.slots, state.silent_s) == (True, 2, 2, 4.0)
    assert (state.seconds, state.gauges) == ({"generate": 2.0}, {"usage": 0.5})


def test_an_actor_that_says_hello_again_has_neither_leases_nor_weights() -> None:
    setting = Setting()
    registry = setting.registry
    setting.join("a", slots=2)
    setting.grant()
    before, late = registry.actors["a"], setting.held("a")[0]
    setting.say_hello("a", 2, 1.0)
    registry.mark_published({"a": before})
    assert registry.has_newcomers() and setting.grant() == {}, "the weights went to the engine it had before"
    assert not registry.submit("a", answers(late))
    registry.mark_published(dict(registry.actors))
    assert setting.grant() == {"a": [0, 1]} and setting.grant() == {}, "its slots are not multiplied"


def test_time_in_which_nobody_could_be_heard_is_given_back_and_no_more() -> None:
    """The lease timeout is 10 s. One actor was heard before the learner stood still, and one after it."""
    setting = Setting()
    registry = setting.registry
    setting.join("a", slots=1)
    setting.join("b", slots=1)
    setting.grant(now=0.0)
    (later,) = setting.held("b")
    registry.actors["b"].last_heard = 99.0
    registry.heartbeat("b", wire.Heartbeat(holding=[later.id], seconds={}), 99.0)
    registry.excuse_silence(95.0, now=100.0)
    registry.remove_silent(105.0)
    registry.release_expired(105.0)
    assert registry.counts()["leased"] == 2
    registry.release_expired(105.1)
    assert not setting.held("a") and setting.held("b") == [later]
    registry.remove_silent(105.1)
    assert list(registry.actors) == ["b"]
    registry.release_expired(110.1)
    assert not setting.held("b"), "no lease lasts longer than one that is extended now"


def test_a_lease_lasts_as_long_as_heartbeats_mention_it() -> None:
    setting = Setting(attempts=2)
    registry = setting.registry
    setting.join("a", slots=2)
    setting.grant(now=0.0)
    first, second = setting.held("a")
    registry.heartbeat("a", wire.Heartbeat(holding=[first.id, "7:unknown"], seconds={}), 9.0)
    registry.release_expired(now=10.0)
    assert setting.held("a") == [first, second], "the deadline itself is in time"
    registry.release_expired(now=10.1)
    assert setting.held("a") == [first]
    assert registry.counts() == {
        "waiting": 0, "leased": 1, "retried": 1, "orphaned": 0, "failed": 0, "refused": 0,
        "foreign": 0,
    }  # fmt: skip
    assert not registry.submit("a", answers(second)) and registry.submit("a", answers(first))
    assert setting.grant(now=10.1) == {"a": [1, 2]}
    for turn in range(2, 5):
        registry.release_expired(now=10.1 * turn)
        assert setting.grant(now=10.1 * turn) == {"a": [1, 2]} and not setting.failures, "a lost message is no failure"


def test_a_silent_actor_is_removed_and_its_groups_are_not_blamed() -> None:
    setting = Setting(groups=1, attempts=1)
    registry = setting.registry
    for number in range(3):
        setting.join(f"a{number}", slots=1, now=100.0 * number)
        assert setting.grant(now=100.0 * number) == {f"a{number}": [0]}
        registry.remove_silent(now=100.0 * number + LEASE_S)
        assert list(registry.actors) == [f"a{number}"], "it is not yet too late"
        registry.remove_silent(now=100.0 * number + LEASE_S + 0.1)
        assert not registry.actors
    assert not setting.failures and registry.counts()["orphaned"] == registry.counts()["retried"] == 3


def test_a_group_given_back_is_offered_again_until_it_is_given_up() -> None:
    setting = Setting(groups=1, attempts=2)
    registry = setting.registry
    setting.join("a", slots=1)
    setting.grant()
    (first,) = setting.held("a")
    assert registry.release("a", wire.Release(id=first.id, reason="the engine said no"))
    assert not registry.release("a", wire.Release(id=first.id, reason="again")), "it has no such lease any more"
    assert setting.grant() == {"a": [0]} and not setting.failures
    (second,) = setting.held("a")
    assert second.id != first.id and not registry.submit("a", answers(first)), "an answer counts for its own lease"
    wrong = answers(second).rollouts[::-1]
    assert not registry.submit("a", wire.Submit(id=second.id, rollouts=wrong))
    assert setting.failures == [(0, "the rollouts are not in the languages asked for")]
    assert setting.grant() == {"a": [1]}, "another question takes its place"


def test_the_oldest_group_is_told_with_the_reason_for_which_it_was_given_back() -> None:
    setting = Setting(groups=3, attempts=3)
    assert setting.registry.describe_oldest() == ""
    setting.join("a", 2)
    setting.grant()
    first, second = setting.held("a")
    row = first.question.index
    assert setting.registry.describe_oldest() == f"the oldest is group 0, of row {row}, which is with actor a"
    setting.registry.release("a", wire.Release(id=second.id, reason="its judge is away", cause="outage"))
    assert "group 0" in setting.registry.describe_oldest()
    setting.registry.release("a", wire.Release(id=first.id, reason="no reward process answers", cause="outage"))
    before = "; it was given back before: no reward process answers"
    assert (
        setting.registry.describe_oldest() == f"the oldest is group 0, of row {row}, which waits for an actor{before}"
    )
    setting.grant()
    assert f"is with actor a{before}" in setting.registry.describe_oldest()
    (again,) = (one for one in setting.held("a") if one.sequence == 0)
    assert setting.registry.submit("a", answers(again))
    assert setting.registry.describe_oldest().endswith("group 1, of row 1, which is with actor a; it was given back "
                                                       "before: its judge is away")  # fmt: skip


def test_answers_are_cut_to_the_limits_and_kept_once() -> None:
    setting = Setting(groups=1, limits=Limits(tokens=25))
    registry = setting.registry
    setting.join("a", slots=1)
    setting.grant()
    (leased,) = setting.held("a")
    submitted = answers(leased)
    for number, length in enumerate([30, 9]):
        ids, logprobs = np.zeros(length, np.int32), np.zeros(length, np.float32)
        changes = {"prompt_ids": ids[:5], "response_ids": ids, "logprobs": logprobs, "versions": ids}
        submitted.rollouts[number] = submitted.rollouts[number].model_copy(update=changes)
    assert registry.submit("a", submitted) and not registry.submit("a", submitted)
    (group,) = setting.queue.finished().values()
    assert [len(rollout.response_ids) for rollout in group.rollouts] == [20, 9]
    assert (group.actor, group.work) == ("a", leased) and group.note.startswith("1 of 2 answers cut")


def test_an_actor_is_not_trusted_any_more_after_its_second_violation(caplog: pytest.LogCaptureFixture) -> None:
    setting = Setting(groups=4, attempts=4)
    registry = setting.registry
    setting.join("liar", slots=3)
    setting.grant()
    for number, version in enumerate((-2_000_000_000, 1), start=1):
        assert not registry.is_untrustworthy("liar")
        lease = setting.held("liar")[0]
        assert not registry.submit("liar", answers(lease, version))
        assert f"group {lease.id} of actor liar is refused: answer 1" in caplog.text
        assert registry.counts()["refused"] == registry.actors["liar"].violations == number
    assert registry.is_untrustworthy("liar")
    registry.remove("liar")
    setting.join("liar", slots=1)
    assert not registry.is_untrustworthy("liar"), "its engine has started again"
    (lease,) = (setting.grant(), setting.held("liar"))[1]
    assert registry.submit("liar", answers(lease))


def test_tokens_may_be_of_a_version_that_is_being_published_and_of_no_newer_one() -> None:
    setting = Setting(groups=4)
    registry = setting.registry
    setting.join("a", slots=3)
    setting.grant()
    registry.newest_version = 1
    first, second, third = setting.held("a")
    assert registry.submit("a", answers(first, 0)) and registry.submit("a", answers(second, 1))
    assert not registry.submit("a", answers(third, 2))


def test_a_finished_group_that_the_next_step_would_train_too_late_is_asked_for_again() -> None:
    """The queue keeps its promise, so the version is moved on under it, as nothing else can make this happen."""
    setting = Setting(groups=2, limits=Limits(lag=1))
    stale: list[int] = []
    registry = setting.registry
    registry.serve(
        ServedQueue(setting.queue, setting.make_work, setting.on_failed, Limits(lag=1), lambda n, _: stale.append(n))
    )
    setting.join("a", slots=2)
    setting.grant()
    first, second = setting.held("a")
    assert registry.submit("a", answers(first, 0))
    registry.newest_version = 1
    registry.mark_published({})
    assert not stale and list(setting.queue.finished()) == [0], "it is as old as it may be"
    registry.newest_version = 2
    assert not registry.submit("a", answers(second, 0)), "it would be too old in any step"
    registry.mark_published({})
    assert stale == [0] and not setting.queue.finished() and setting.queue.untaken() == [0, 1]
    assert registry.counts()["refused"] == 2 and not setting.failures
    assert setting.grant() == {"a": [0, 1]}


def test_another_queue_ends_the_leases_of_the_one_before() -> None:
    setting = Setting(groups=2)
    registry = setting.registry
    setting.join("a", slots=2)
    setting.grant()
    late = setting.held("a")[0]
    assert not registry.all_finished()
    evaluation = setting.new_queue(1, attempts=1)
    registry.serve(ServedQueue(evaluation, setting.make_work, setting.on_failed, UNLIMITED))
    assert registry.all_finished() and not setting.held("a")
    assert setting.grant() == {"a": [0]} and evaluation.untaken() == [0]
    assert not registry.submit("a", answers(late)), "it is of another queue, although its sequence number is the same"
    assert setting.queue.untaken() == [0, 1] and setting.queue.count_leased() == 0, "they wait to be leased again"


# -- lives and names


def heartbeat(registry: ActorRegistry, name: str, now: float) -> None:
    registry.actors[name].last_heard = now


def test_the_second_actor_of_a_name_is_refused_and_the_first_keeps_its_leases() -> None:
    setting = Setting()
    setting.join("a", slots=2)
    process = wire.ActorProcess(host="node-7", pid=4711, started_s=17.0)
    setting.registry.actors["a"].process = process
    setting.grant()
    before = setting.registry.actors["a"]
    taken = setting.say_hello("a", 2, 1.0, peer="a/2")
    assert isinstance(taken, wire.Taken) and (taken.holder, taken.holder_life) == (process, before.life)
    for waited in (2.0, 4.0):
        heartbeat(setting.registry, "a", 1.0 + waited)
        assert isinstance(setting.say_hello("a", 2, 1.0 + waited, peer="a/2", waited_s=waited), wire.Taken)
    heartbeat(setting.registry, "a", 6.5)
    refused = setting.say_hello("a", 2, 7.0, peer="a/2", waited_s=6.0)
    assert isinstance(refused, wire.Stop)
    for part in ("'a'", "node-7", "4711", "actor.name"):
        assert part in refused.error
    assert setting.registry.actors["a"] is before and len(before.leases) == 2


def test_a_name_is_free_when_its_actor_has_left_or_fell_silent_or_its_process_is_gone() -> None:
    for how in ("left", "silent", "gone"):
        setting = Setting()
        setting.join("a", slots=2)
        setting.grant()
        life = setting.registry.actors["a"].life
        waited, replaces = 0.0, ""
        if how == "left":
            setting.registry.leave("a", wire.Leave(reason="asked to end"))
        elif how == "silent":
            waited = LEASE_S - 1  # all the time, and the first was not heard for more than half of it
            assert isinstance(setting.say_hello("a", 1, LEASE_S, peer="a/2", waited_s=waited), wire.Taken)
            setting.registry.remove_silent(LEASE_S + 0.1)
        else:
            assert isinstance(setting.say_hello("a", 1, 1.0, peer="a/2", replaces="another"), wire.Taken)
            replaces = life
        assert isinstance(setting.say_hello("a", 1, LEASE_S + 0.2, peer="a/2", replaces=replaces), wire.Welcome)
        assert setting.registry.actors["a"].peer == "a/2" and setting.queue.count_leased() == 0


def test_the_same_process_comes_back_at_once_and_a_repeated_hello_changes_nothing() -> None:
    setting = Setting()
    setting.join("a", slots=2)
    setting.grant()
    state = setting.registry.actors["a"]
    again = setting.say_hello("a", 2, 1.0, actor_life=state.life)
    assert isinstance(again, wire.Welcome) and setting.registry.actors["a"] is state and len(state.leases) == 2
    assert isinstance(setting.say_hello("a", 2, 1.0), wire.Welcome)
    assert setting.registry.actors["a"] is not state and setting.queue.count_leased() == 0


def test_a_message_counts_for_its_lives_alone() -> None:
    setting = Setting()
    registry = setting.registry
    setting.join("a", slots=1)
    old = registry.lives_of(registry.actors["a"])
    setting.join("a", slots=1)
    setting.join("b", slots=1)
    state = registry.actors["a"]
    now = registry.lives_of(state)
    strangers = [
        ("a/1", old), ("a/1", now._replace(learner="another")), ("a/1", now._replace(learner="")),
        ("a/2", now), ("b/1", now), ("a/1", wire.Lives("", registry.life)),
    ]  # fmt: skip
    for number, (peer, lives) in enumerate(strangers, start=1):
        assert registry.find_sender(peer, wire.Leave(reason="").of(lives)) is None and registry.foreign == number
    assert registry.find_sender("a/1", wire.Leave(reason="").of(now)) is state
    assert isinstance(setting.say_hello("c", 1, actor_life=state.life), wire.Stop), "nobody takes another's life"


def test_an_actor_whose_engine_starts_gets_neither_weights_nor_work() -> None:
    setting = Setting()
    assert isinstance(setting.say_hello("a", 4, engine_ranks=0), wire.Welcome)
    assert not setting.registry.has_newcomers() and setting.grant() == {}
    assert not setting.registry.status(0.0)["a"].live
    assert isinstance(setting.say_hello("a", 4), wire.Welcome) and setting.registry.has_newcomers()


# -- attempts


def released(setting: Setting, cause: wire.Cause) -> None:
    (leased,) = setting.held("a")
    assert setting.registry.release("a", wire.Release(id=leased.id, reason=cause, cause=cause))


def test_attempts_are_counted_for_each_cause_and_outages_for_none() -> None:
    setting = Setting(groups=1, attempts=2)
    setting.join("a", slots=1)
    causes: list[wire.Cause] = ["generation", "outage", "scoring", "outage", "unforeseen", "outage", "outage"]
    for cause in causes:
        assert setting.grant() == {"a": [0]}
        released(setting, cause)
    assert not setting.failures
    assert setting.grant() == {"a": [0]}
    released(setting, "scoring")
    assert setting.failures == [(0, "scoring")]


def test_what_the_only_actor_can_never_do_is_given_up_at_once() -> None:
    setting = Setting(groups=1, attempts=9)
    setting.join("a", slots=1)
    setting.grant()
    released(setting, "refusal")
    assert setting.failures == [(0, "refusal")]


def engine_ends(setting: Setting, name: str) -> None:
    """The engine of an actor ends while it generates everything that the actor holds; the actor comes back."""
    generating = list(setting.registry.actors[name].leases)
    setting.registry.leave(name, wire.Leave(reason="code -11", generating=[*generating, "9:unknown"]))
    setting.join(name, slots=4)


def test_a_group_that_ends_engines_is_found_out_and_no_other_is_blamed() -> None:
    setting = Setting(groups=8, attempts=3)
    setting.join("a", slots=4)
    assert setting.grant() == {"a": [0, 1, 2, 3]}
    engine_ends(setting, "a")
    assert setting.grant() == {"a": [0, 1, 2, 3]}, "one engine may end by chance"
    engine_ends(setting, "a")
    assert setting.grant() == {"a": [0]}, "now each of them alone"
    assert setting.grant() == {}
    setting.join("b", slots=4)
    assert setting.grant() == {"b": [1]} and not setting.failures
    registry = setting.registry
    assert registry.submit("a", answers(setting.held("a")[0]))
    assert setting.grant() == {"a": [2]}, "whoever is empty, also one whose engine has ended with others in it, too"
    engine_ends(setting, "a")
    assert not setting.failures, "engines of one actor alone have ended"
    assert registry.submit("b", answers(setting.held("b")[0]))
    assert setting.grant() == {"b": [2], "a": [3]}, "what ended an engine alone is for another"
    engine_ends(setting, "b")
    assert [sequence for sequence, _ in setting.failures] == [2] and "code -11" in setting.failures[0][1]
    assert registry.submit("a", answers(setting.held("a")[0]))
    assert setting.grant() == {"a": [4, 6, 8], "b": [5, 7]}, "and the others as before"
    assert len(setting.failures) == 1


def test_a_group_that_is_alone_is_given_up_after_the_second_engine() -> None:
    setting = Setting(groups=1, attempts=3)
    for lease in range(2):
        setting.join("a", slots=4)
        assert setting.grant() == {"a": [0]} and not setting.failures, lease
        setting.registry.leave("a", wire.Leave(reason="killed", generating=list(setting.registry.actors["a"].leases)))
    assert [sequence for sequence, _ in setting.failures] == [0]


def test_a_busy_actor_is_emptied_for_a_group_that_is_leased_alone() -> None:
    setting = Setting(groups=8)
    setting.join("a", slots=2)
    for _ in range(2):
        assert setting.grant() == {"a": [0, 1]}
        generating = list(setting.registry.actors["a"].leases)
        setting.registry.leave("a", wire.Leave(reason="", generating=generating))
        setting.join("a", slots=2)
    setting.registry.remove("a")
    setting.join("b", slots=2)
    assert setting.grant() == {"b": [0]}
    assert setting.registry.submit("b", answers(setting.held("b")[0]))
    setting.join("c", slots=2)
    assert setting.grant()["b"] == [1], "the first by name among those that hold nothing"
    assert setting.grant() == {}
    assert len(setting.held("c")) == 2
    setting.registry.remove("b")  # its engine did not end by itself
    assert setting.grant() == {}, "c is kept free for the group that waits"
    assert setting.registry.submit("c", answers(setting.held("c")[0])) and setting.grant() == {}
    assert setting.registry.submit("c", answers(setting.held("c")[0])) and setting.grant() == {"c": [1]}
    assert setting.grant() == {}, "and gets no other while it holds it"


def give_back(setting: Setting, cause: wire.Cause, reason: str = "m.py:3: KeyError") -> int:
    """The actor "a" gives back all that it leases next; returns how many groups that are."""
    setting.grant()
    held = setting.held("a")
    for one in held:
        assert setting.registry.release("a", wire.Release(id=one.id, reason=reason, cause=cause))
    return len(held)


@pytest.mark.parametrize("slots", [1, 3, 32])
def test_nothing_can_be_scored_where_no_group_was_and_many_came_back_for_it(slots: int) -> None:
    """However few an actor holds at a time, so that groups are given up before so many have come back."""
    setting = Setting(groups=32, attempts=3)
    setting.join("a", slots)
    seen: set[int] = set()
    while not setting.registry.unscorable:
        before = set(seen)
        setting.grant()
        seen |= {one.sequence for one in setting.held("a")}
        give_back(setting, "scoring", f"the newest of {len(seen)}")
    assert len(before) < UNSCORABLE_GROUPS <= len(seen), "groups count, and not their leases"
    assert setting.registry.unscorable == (len(seen), f"the newest of {len(seen)}")


def test_groups_of_an_evaluation_count_beside_those_of_training() -> None:
    setting = Setting(groups=8, attempts=1)
    setting.join("a", 8)
    assert give_back(setting, "scoring") == 8

    def make_work(sequence: int) -> wire.Work:
        return work(sequence, ["en", "de"], name="before-heldout")

    setting.registry.serve(ServedQueue(setting.new_queue(8, 1), make_work, setting.on_failed, UNLIMITED))
    assert not setting.registry.unscorable
    assert give_back(setting, "scoring") == 8 and setting.registry.unscorable


@pytest.mark.parametrize("cause", ["scoring", "generation"])
def test_one_group_that_was_scored_shows_that_answers_can_be(cause: wire.Cause) -> None:
    """And what came back for another reason shows nothing."""
    setting = Setting(groups=64, attempts=1)
    setting.join("a", UNSCORABLE_GROUPS)
    if cause == "scoring":
        setting.grant()
        assert setting.registry.submit("a", answers(setting.held("a")[0]))
    for _ in range(2):
        assert give_back(setting, cause) >= UNSCORABLE_GROUPS - 1
    assert not setting.registry.unscorable


def hand_in(setting: Setting, scored: bool) -> int:
    """The actor "a" hands in all that it leases next, with or without scores; returns how many groups that are."""
    setting.grant()
    held = setting.held("a")
    for one in held:
        done = answers(one)
        for rollout in done.rollouts:
            rollout.score.scored = scored
        assert setting.registry.submit("a", done)
    return len(held)


def test_groups_without_any_score_are_no_scored_ones() -> None:
    """As of a judge that refuses each answer for good: what it makes is taken, and shows that nothing can be scored."""
    setting = Setting(groups=UNSCORABLE_GROUPS)
    setting.join("a", UNSCORABLE_GROUPS - 1)
    assert hand_in(setting, scored=False) == UNSCORABLE_GROUPS - 1 and not setting.registry.unscorable
    assert hand_in(setting, scored=False) == 1 and setting.registry.unscorable
    groups, reason = setting.registry.unscorable
    assert groups == UNSCORABLE_GROUPS and "a judge refuses each" in reason


@pytest.mark.parametrize("groups", [1, FEWEST_UNSCORABLE, UNSCORABLE_GROUPS - 6])
def test_no_step_is_made_of_groups_without_any_score(groups: int) -> None:
    """Where a step has fewer than 16, all of its groups are enough; not one alone, which a judge may refuse."""
    setting = Setting()
    queue = WorkQueue[Group](groups_per_step=groups, staleness=0, window=1, attempts=1, total=9 * groups)
    setting.registry.serve(ServedQueue(queue, setting.make_work, setting.on_failed, UNLIMITED, trains=True))
    setting.join("a", groups)
    while not setting.registry.unscorable:
        assert queue.take() is None or groups < FEWEST_UNSCORABLE
        queue.mark_published()
        assert hand_in(setting, scored=False) == groups
    assert setting.registry.unscorable[0] == max(FEWEST_UNSCORABLE, groups)


def test_one_score_shows_that_answers_can_have_one() -> None:
    setting = Setting(groups=64)
    setting.join("a", 1)
    assert hand_in(setting, scored=True) == 1
    for _ in range(2 * UNSCORABLE_GROUPS):
        hand_in(setting, scored=False)
    assert not setting.registry.unscorable
