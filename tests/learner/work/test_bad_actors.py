"""Actors that fail at what others can do: they take no question with them, nor do they go on for ever."""

from __future__ import annotations

import pytest

from common import wire
from learner.work.actors import FORGIVEN_AFTER, MAX_EXPULSIONS, MAX_VIOLATIONS
from tests.learner.work.test_actors import Setting, answers

FAILURES = ("generation", "scoring", "refusal", "unforeseen", "numbers", "engine")


def fail(setting: Setting, name: str, one: wire.Work, kind: str) -> None:
    """The actor fails at a group that it holds."""
    registry = setting.registry
    match kind:
        case "numbers":
            assert not registry.submit(name, answers(one, version=99))
            if registry.is_untrustworthy(name):
                registry.remove(name)
        case "engine":
            registry.leave(name, wire.Leave(reason="code -11", generating=[one.id]))
        case "generation" | "scoring" | "refusal" | "unforeseen" | "outage":
            assert registry.release(name, wire.Release(id=one.id, reason=kind, cause=kind))


@pytest.mark.parametrize("kind", FAILURES)
def test_one_bad_actor_gives_up_no_question_while_others_are_there(kind: str) -> None:
    """It is idle again at once, and so is always the one that asks next."""
    setting = Setting(groups=4, attempts=3)
    for name, slots in (("bad", 2), ("good1", 1), ("good2", 1)):
        setting.join(name, slots)
    for life in range(20):
        setting.grant()
        for one in setting.held("bad"):
            if "bad" in setting.registry.actors:
                fail(setting, "bad", one, kind)
        if "bad" not in setting.registry.actors:
            answer = setting.say_hello("bad", 2)
            if isinstance(answer, wire.Stop):
                assert kind == "numbers" and life >= MAX_EXPULSIONS - 1
                break
            setting.registry.mark_published({"bad": setting.registry.actors["bad"]})
    assert not setting.failures
    while held := [(name, one) for name in ("good1", "good2") for one in setting.held(name)]:
        for name, one in held:
            assert setting.registry.submit(name, answers(one))
        setting.grant()
    assert sorted(setting.queue.finished()) == [0, 1, 2, 3] and not setting.failures


@pytest.mark.parametrize("kind", ["generation", "refusal", "engine"])
def test_a_bad_question_is_given_up_by_two_actors_or_by_the_only_one(kind: str) -> None:
    for names in (["a"], ["a", "b"], ["a", "b", "c", "d"]):
        setting, failed_with = Setting(groups=1, attempts=3), list[str]()
        for name in names:
            setting.join(name, 1)
        while not setting.failures:
            ((name, (sequence,)),) = setting.grant().items()
            assert sequence == 0 and len(failed_with) < 5
            failed_with.append(name)
            fail(setting, name, setting.held(name)[0], kind)
            if kind == "engine":
                setting.join(name, 1)
        assert len(set(failed_with)) >= min(2, len(names))
        attempts = {"generation": 3, "refusal": 1, "engine": 2}[kind]
        assert len(failed_with) <= max(attempts, len(names[:2])) + (kind == "engine")


def test_a_group_is_no_longer_kept_for_an_actor_that_has_left() -> None:
    setting = Setting(groups=1, attempts=3)
    setting.join("a", 1)
    setting.grant()
    setting.join("b", 1)
    fail(setting, "a", setting.held("a")[0], "generation")
    setting.registry.actors["b"].slots = 0
    assert setting.grant() == {"a": [0]}, "b can hold nothing"
    fail(setting, "a", setting.held("a")[0], "generation")
    setting.registry.actors["b"].slots = 1
    setting.registry.remove("b")
    assert setting.grant() == {"a": [0]}
    fail(setting, "a", setting.held("a")[0], "generation")
    assert [sequence for sequence, _ in setting.failures] == [0]


@pytest.mark.parametrize("cut_off", ["a", "b"])
@pytest.mark.parametrize("fails_first", [True, False])
def test_an_actor_with_an_outage_keeps_no_group_from_another(cut_off: str, fails_first: bool) -> None:
    """Whichever name is first, and whether the other one has failed once at the group or not."""
    setting, other = Setting(groups=1, attempts=3), {"a": "b", "b": "a"}[cut_off]
    if fails_first:
        setting.join(other, 1)
        setting.grant()
        setting.join(cut_off, 1)
        fail(setting, other, setting.held(other)[0], "generation")
    else:
        setting.join("a", 1)
        setting.join("b", 1)
    for _ in range(3):
        for name in setting.grant():
            if name == cut_off:
                fail(setting, name, setting.held(name)[0], "outage")
            else:
                assert setting.registry.submit(name, answers(setting.held(name)[0]))
    assert list(setting.queue.finished()) == [0] and not setting.failures


def test_all_who_give_a_group_back_for_an_outage_get_it_in_turn() -> None:
    setting, holders = Setting(groups=1, attempts=1), list[str]()
    for name in ("a", "b", "c"):
        setting.join(name, 1)
    for _ in range(9):
        ((name, _),) = setting.grant().items()
        holders.append(name)
        fail(setting, name, setting.held(name)[0], "outage")
    assert holders == ["a", "b", "c"] * 3 and not setting.failures


def test_what_an_actor_broke_before_many_good_groups_is_forgiven() -> None:
    """Two bad groups now and then, in a run of thousands, do not end in a refusal."""
    setting = Setting(groups=10 * FORGIVEN_AFTER, attempts=10**6)
    for good in [FORGIVEN_AFTER] * (MAX_EXPULSIONS + 1) + [FORGIVEN_AFTER - 1] * (MAX_EXPULSIONS - 1):
        setting.join("a", good + MAX_VIOLATIONS)
        setting.grant()
        held = setting.held("a")
        for one in held[:good]:
            assert setting.registry.submit("a", answers(one))
        for one in held[good:][:MAX_VIOLATIONS]:
            assert not setting.registry.submit("a", answers(one, version=99))
        setting.registry.remove("a")
    answer = setting.say_hello("a", 1)
    assert isinstance(answer, wire.Stop) and "3 times in a row" in answer.error


def test_an_actor_that_goes_on_to_break_rules_is_refused_by_its_name() -> None:
    """Each engine that starts again is a new life, in which no violation is remembered."""
    setting = Setting(groups=8, attempts=3)
    for life in range(MAX_EXPULSIONS):
        setting.join("bad", 4)
        setting.grant()
        for one in setting.held("bad")[:MAX_VIOLATIONS]:
            assert not setting.registry.submit("bad", answers(one, version=99)), life
        assert setting.registry.is_untrustworthy("bad")
        setting.registry.remove("bad")
    answer = setting.say_hello("bad", 4)
    assert isinstance(answer, wire.Stop) and "3 times" in answer.error and "policy versions 99" in answer.error
    assert "actor.name" in answer.error and not setting.registry.actors
    setting.join("good", 4)


def test_an_actor_with_other_settings_is_refused_before_and_after_the_learner_knows_its_own() -> None:
    setting = Setting()
    own = {"model.prompt_style": '"tag"', "sampling.temperature": "1.0"}
    setting.join("early", 1)
    assert isinstance(setting.say_hello("same", 1, settings=own), wire.Welcome)
    refused = setting.registry.require(own)
    assert [actor.name for actor, _ in refused] == ["early"] and list(setting.registry.actors) == ["same"]
    answer = setting.say_hello("x", 1, settings={**own, "model.prompt_style": '"system"'})
    assert isinstance(answer, wire.Stop)
    assert answer.error.startswith('model.prompt_style is "tag" here and "system" in actor x: ')
    assert isinstance(setting.say_hello("x", 1, settings=own), wire.Welcome)
