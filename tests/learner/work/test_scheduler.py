"""The work queue: the staleness bound, exactly once, and admission, under random speeds, deaths and reorderings."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.work.scheduler import WorkQueue, find_stale, staleness_bound


def takeable(queue: WorkQueue[int], overtaken: Counter[int]) -> list[int] | None:
    """What a step may take, by the definition: the P oldest finished, if none is overtaken by W younger ones."""
    alive = [(n, slot) for n, slot in queue._alive.items() if not slot.training]
    wanted = min(queue.groups_per_step, queue.remaining)
    chosen = [n for n, slot in alive if slot.result is not None][:wanted]
    late = {n: sum(other > n for other in chosen) for n, slot in alive if slot.result is None}
    if len(chosen) < wanted or any(now and overtaken[n] + now >= queue.window for n, now in late.items()):
        return None
    overtaken.update(late)
    return chosen


RUNS = given(
    groups=st.integers(1, 6),
    staleness=st.integers(0, 3),
    window=st.integers(1, 9),
    steps=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)


def simulate(
    groups: int, staleness: int, window: int, steps: int, seed: int, refill: int = 0, useless: float = 0.0
) -> None:
    """A learner, and actors that are fast, slow, dead, or send twice. Checks the queue's promises at each event.

    Args:
        useless: probability that a group is of no use for training.
    """
    rng = random.Random(seed)
    queue: WorkQueue[int] = WorkQueue(
        groups_per_step=groups, staleness=staleness, window=window, attempts=10**9, total=steps * groups,
        refill=refill, is_useful=lambda _: rng.random() >= useless,
    )  # fmt: skip
    trained = 0
    version, in_step = 0, False
    overtaken: Counter[int] = Counter()
    done: list[int] = []
    lags: list[int] = []
    leases: list[tuple[str, int, int]] = []  # (actor, sequence, version when leased)
    old: list[tuple[str, int]] = []
    actors = {f"a{n}": rng.choice([0.05, 0.3, 1.0]) for n in range(rng.randint(1, 4))}  # how eagerly each finishes
    for _ in range(200_000):
        if trained == steps * groups and not in_step:
            break
        event = rng.random()
        actor = rng.choice(list(actors))
        if event < 0.35 and (sequence := queue.lease(actor, deadline=1.0)) is not None:
            leases.append((actor, sequence, version))
        elif event < 0.8 and leases:
            lease = rng.choice(leases)
            if rng.random() < actors[lease[0]]:
                leases.remove(lease)
                assert queue.submit(lease[1], lease[0], lease[2])
                old.append(lease[:2])
        elif event < 0.84 and leases:
            queue.release_all(actor)
            old += [lease[:2] for lease in leases if lease[0] == actor]
            leases = [lease for lease in leases if lease[0] != actor]
        elif event < 0.88 and old:
            sender, sequence = rng.choice(old)
            if (sender, sequence) not in [lease[:2] for lease in leases]:
                assert not queue.submit(sequence, sender, -1), "a late duplicate must not count"
        elif in_step:
            queue.mark_published()
            version, in_step = version + 1, False
        elif (expected := takeable(queue, overtaken)) is None:
            assert queue.take() is None
        else:
            aside = set(queue._aside)
            taken = queue.take() or []
            assert [n for n, _ in taken] == sorted({*expected, *aside}) and len(expected) == groups
            assert len(aside) == len(taken) - groups <= refill
            trained += groups
            lags += [version - leased_at for _, leased_at in taken]
            done += [sequence for sequence, _ in taken]
            in_step = True
        assert len(queue._alive) <= (staleness + 1) * groups
    assert sorted([*done, *queue.finished()]) == list(range(queue.next_sequence)), "each exactly once"
    assert trained == steps * groups and set(queue.finished()) == set(queue._aside)
    assert max(lags) <= staleness_bound(groups, staleness, window)
    assert queue.lease("a0", 1.0) is None, "admission stops with the last step"


@settings(max_examples=40)
@RUNS
def test_a_run_of_unreliable_actors(groups: int, staleness: int, window: int, steps: int, seed: int) -> None:
    simulate(groups, staleness, window, steps, seed)


@settings(max_examples=40)
@RUNS
def test_useless_groups_are_replaced_within_the_same_bound(
    groups: int, staleness: int, window: int, steps: int, seed: int
) -> None:
    rng = random.Random(seed)
    simulate(groups, staleness, window, steps, seed, refill=rng.randint(1, 9), useless=rng.random())


@pytest.mark.slow
@settings(max_examples=3000)
@RUNS
def test_thousands_of_runs_of_unreliable_actors(
    groups: int, staleness: int, window: int, steps: int, seed: int
) -> None:
    simulate(groups, staleness, window, steps, seed)
    simulate(groups, staleness, window, steps, seed, refill=seed % 10, useless=seed % 101 / 100)


def test_a_step_is_refilled_and_gets_what_it_replaces_too() -> None:
    """With S = 0, where a step needs all P slots: those of useless groups are free before it, up to ``refill``."""

    def queue(**more: Any) -> WorkQueue[str]:
        return WorkQueue(
            groups_per_step=2, staleness=0, window=1, attempts=1, total=4, refill=2,
            is_useful=lambda result: result == "good", **more,
        )  # fmt: skip

    one = queue()
    assert [one.lease("a", 1.0) for _ in range(3)] == [0, 1, None], "both slots are taken"
    one.submit(0, "a", "flat")
    one.submit(1, "a", "good")
    assert [one.lease("a", 1.0) for _ in range(2)] == [2, None]
    one.submit(2, "a", "flat")
    assert one.take() is None and one.lease("a", 1.0) == 3
    one.submit(3, "a", "flat")
    # Groups 0 and 2 were set aside and replaced. Group 3 is flat as well, but that is one too many.
    again = queue(next_sequence=one.next_sequence, pending=one.untaken(), results=one.finished())
    for found in (one, again):
        assert found.lease("a", 1.0) is None and found.has_full_batch() and found.untaken() == [0, 1, 2, 3]
        assert found.take() == [(0, "flat"), (1, "good"), (2, "flat"), (3, "flat")]
        assert found.remaining == 2 and not found.finished() and not found.untaken()
        found.mark_published()
        assert found.lease("a", 1.0) == 4


def test_a_group_set_aside_that_is_too_old_is_asked_again_before_younger_ones() -> None:
    queue: WorkQueue[str] = WorkQueue(
        groups_per_step=2,
        staleness=0,
        window=1,
        attempts=1,
        total=4,
        refill=1,
        is_useful=lambda result: result == "good",
    )
    for sequence in (0, 1):
        assert queue.lease("a", 1.0) == sequence
    queue.submit(0, "a", "flat")
    assert queue.lease("a", 1.0) == 2, "its slot is free"
    queue.ask_again(0)
    assert not queue.finished() and queue.untaken() == [0, 1, 2] and queue.retried == 1
    assert queue.lease("b", 1.0) == 0 and queue.lease("b", 1.0) is None
    for sequence, actor in ((0, "b"), (1, "a"), (2, "a")):
        assert queue.submit(sequence, actor, "good")
    assert queue.take() == [(0, "good"), (1, "good")] and queue.finished() == {2: "good"}


def test_groups_set_aside_do_not_make_others_stale_at_a_resume() -> None:
    """They hold no slot, so they are no reason for others to wait for a later step."""
    pending, versions = range(6), dict.fromkeys(range(6), 3)
    assert find_stale(pending, versions, step=3, groups_per_step=2, bound=0, aside=[0, 1, 2, 3]) == []
    assert find_stale(pending, versions, step=3, groups_per_step=2, bound=0) == [2, 3, 4, 5]
    assert find_stale(pending, versions, step=4, groups_per_step=2, bound=0, aside=[0]) == list(range(6))


def test_the_bound_is_reached() -> None:
    """The bound is not slack: with S = 1, P = 2, W = 3 a slow group really is ⌊(4 + 1) / 2⌋ = 2 versions late."""
    queue: WorkQueue[int] = WorkQueue(groups_per_step=2, staleness=1, window=3, attempts=1, total=100)
    assert [queue.lease("a", 1.0) for _ in range(4)] == [0, 1, 2, 3]
    queue.submit(0, "a", 0), queue.submit(1, "a", 0), queue.submit(3, "a", 0)
    assert [s for s, _ in queue.take() or []] == [0, 1]  # version 0; group 2 is slow
    queue.mark_published()
    assert queue.lease("a", 1.0) == 4
    queue.submit(4, "a", 1)
    assert [s for s, _ in queue.take() or []] == [3, 4]  # version 1 overtakes it by two
    queue.mark_published()
    assert queue.lease("a", 1.0) == 5
    queue.submit(5, "a", 2)
    assert queue.take() is None  # and no further
    queue.submit(2, "a", 0)
    assert [s for s, _ in queue.take() or []] == [2, 5]  # version 2, leased at 0
    assert staleness_bound(2, 1, 3) == 2


Shape = tuple[int, int, int]  # P, S, W
SHAPES = st.tuples(st.integers(1, 6), st.integers(0, 3), st.integers(1, 9))


def part_of_a_run(
    shape: Shape, rng: random.Random, version: int, steps: int, pending: list[int], results: dict[int, int], first: int
) -> tuple[WorkQueue[int], int, list[tuple[int, int]]]:
    """Takes so many steps from where a run stands, with an actor for each group that is never lost but often slow.

    Returns:
        The queue, the version now, and the steps' groups with the lag of each.
    """
    groups, staleness, window = shape
    queue: WorkQueue[int] = WorkQueue(
        groups_per_step=groups, staleness=staleness, window=window, attempts=1, total=10**6, next_sequence=first,
        pending=pending, results=results,
    )  # fmt: skip
    leased: dict[int, int] = {}
    trained: list[tuple[int, int]] = []
    while steps or rng.random() < 0.9:  # and some more leases and answers after the last step
        if (sequence := queue.lease(f"a{rng.random()}", 1.0)) is not None:
            leased[sequence] = version
        if leased and rng.random() < 0.7:
            answered = rng.choice(list(leased))
            holder = queue._alive[answered].actor
            assert holder is not None and queue.submit(answered, holder, leased.pop(answered))
        if steps and (taken := queue.take()) is not None:
            trained += [(sequence, version - made) for sequence, made in taken]
            version, steps = version + 1, steps - 1
            queue.mark_published()
    return queue, version, trained


@settings(max_examples=60)
@given(before=SHAPES, after=SHAPES, steps=st.integers(0, 6), seed=st.integers(0, 2**32))
def test_a_run_that_resumes_with_another_bound_keeps_that_bound(
    before: Shape, after: Shape, steps: int, seed: int
) -> None:
    rng = random.Random(seed)
    queue, version, first = part_of_a_run(before, rng, 0, steps, [], {}, 0)
    pending, results = queue.untaken(), queue.finished()
    assert not find_stale(pending, results, version, before[0], staleness_bound(*before)), "nothing has changed"
    bound = staleness_bound(*after)
    stale = find_stale(pending, results, version, after[0], bound)
    fresh = {sequence: made for sequence, made in results.items() if sequence not in stale}
    enough = len(pending) // after[0] + 3
    _, _, second = part_of_a_run(after, rng, version, enough, pending, fresh, queue.next_sequence)
    assert max(lag for _, lag in second) <= bound
    done = [sequence for sequence, _ in [*first, *second]]
    assert len(set(done)) == len(done), "nothing twice"
    assert set(pending) <= set(done) or after[2] > 1, "nothing lost: in order, all that was pending is trained by now"


def test_released_groups_go_first_and_are_given_up() -> None:
    queue: WorkQueue[str] = WorkQueue(groups_per_step=2, staleness=0, window=1, attempts=2, total=2)
    assert queue.lease("a", 1.0) == 0
    assert not queue.release(0, "a")
    assert queue.lease("b", 1.0) == 0, "the oldest first"
    assert queue.release(0, "b"), "given up"
    assert [queue.lease("b", 1.0), queue.lease("b", 1.0)] == [1, 2], "and replaced"
    assert queue.lease("b", 1.0) is None


def test_the_oldest_group_goes_first_after_several_actors_were_lost() -> None:
    queue: WorkQueue[str] = WorkQueue(groups_per_step=4, staleness=0, window=1, attempts=2, total=4)
    assert [queue.lease(actor, 1.0) for actor in "abca"] == [0, 1, 2, 3]
    for actor in "cba":
        queue.release_all(actor)
    assert [queue.lease("d", 1.0) for _ in range(4)] == [0, 1, 2, 3]
    assert not queue.release(0, "d"), "a lost actor costs a group none of its attempts"
    assert (queue.retried, queue.orphaned, queue.failed) == (5, 4, 0)


def test_a_smaller_total_lets_a_smaller_step_go() -> None:
    queue: WorkQueue[str] = WorkQueue(groups_per_step=2, staleness=1, window=1, attempts=1, total=3)
    assert [queue.lease("a", 1.0) for _ in range(3)] == [0, 1, 2]
    assert queue.submit(0, "a", "zero") and queue.submit(2, "a", "two") and queue.take() is None
    queue.lower_total()
    assert queue.take() is None
    queue.lower_total()
    assert queue.take() == [(0, "zero")], "one group is left to take, and it is older than the unfinished one"


def test_a_group_that_is_given_up_holds_up_no_other() -> None:
    queue: WorkQueue[str] = WorkQueue(groups_per_step=1, staleness=1, window=1, attempts=1, total=2)
    assert [queue.lease("a", 1.0), queue.lease("a", 1.0)] == [0, 1]
    assert queue.submit(1, "a", "one") and queue.take() is None, "the window lets nothing overtake group 0"
    assert queue.release(0, "a") and queue.take() == [(1, "one")]


def test_the_last_groups_are_leased_while_the_step_before_is_trained() -> None:
    queue: WorkQueue[str] = WorkQueue(groups_per_step=2, staleness=1, window=1, attempts=1, total=4)
    for sequence in (0, 1):
        assert queue.lease("a", 1.0) == sequence and queue.submit(sequence, "a", "done")
    assert queue.take() == [(0, "done"), (1, "done")]
    assert [queue.lease("a", 1.0) for _ in range(3)] == [2, 3, None]


def test_leases_expire_unless_extended() -> None:
    queue: WorkQueue[str] = WorkQueue(groups_per_step=2, staleness=0, window=1, attempts=2, total=2)
    queue.lease("a", deadline=10.0), queue.lease("a", deadline=10.0)
    queue.extend("a", [1], deadline=20.0)
    assert queue.expired(now=15.0) == [(0, "a")]
    assert not queue.release(0, "a")
    assert not queue.submit(0, "a", "late")
    assert queue.submit(1, "a", "in time")


def test_resume_hands_out_what_was_pending_first() -> None:
    queue: WorkQueue[str] = WorkQueue(
        groups_per_step=2, staleness=1, window=1, attempts=2, total=4, next_sequence=9, pending=[6, 4]
    )
    assert [queue.lease("a", 1.0) for _ in range(5)] == [4, 6, 9, 10, None]


def test_resume_takes_the_results_that_waited_without_asking_again() -> None:
    queue: WorkQueue[str] = WorkQueue(
        groups_per_step=2, staleness=1, window=2, attempts=2, total=4, next_sequence=9, pending=[4, 6, 7],
        results={7: "seven", 4: "four"},
    )  # fmt: skip
    assert queue.finished() == {4: "four", 7: "seven"}
    assert queue.lease("a", 1.0) == 6
    assert queue.take() == [(4, "four"), (7, "seven")]
    assert not queue.submit(7, "a", "again")
    assert queue.untaken() == [6]


def test_a_run_that_resumes_with_a_smaller_staleness_leases_only_the_oldest() -> None:
    queue: WorkQueue[str] = WorkQueue(
        groups_per_step=2, staleness=0, window=1, attempts=2, total=4, next_sequence=5, pending=[1, 2, 3, 4]
    )
    assert [queue.lease("a", 1.0) for _ in range(3)] == [1, 2, None]
    assert queue.submit(1, "a", "one") and queue.submit(2, "a", "two") and queue.take()
    queue.mark_published()
    assert [queue.lease("a", 1.0) for _ in range(3)] == [3, 4, None]


@pytest.mark.parametrize("groups", [1, 2, 7])
@pytest.mark.parametrize("staleness", [1, 3])
def test_the_bound_is_what_the_documentation_says_for_common_windows(groups: int, staleness: int) -> None:
    assert staleness_bound(groups, 0, 99) == 0, "S = 0 is synchronous"
    assert staleness_bound(groups, staleness, 1) == staleness
    assert {staleness_bound(groups, staleness, window) for window in range(2, groups + 2)} == {staleness + 1}
    assert staleness_bound(groups, staleness, groups + 2) == staleness + 2
