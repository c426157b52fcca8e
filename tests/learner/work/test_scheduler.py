"""The work queue: the staleness bound, exactly once, and admission, under random speeds, deaths and reorderings."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.work.ledger import Ledger, audit, routed
from learner.work.scheduler import WorkQueue, staleness_bound
from tests.support.groups import work


def takeable(queue: WorkQueue[int]) -> list[int] | None:
    """What a step may take, by the definition: the P oldest finished, none overtaken by W younger ones."""
    alive = [(n, slot) for n, slot in queue._alive.items() if not slot.training]
    wanted = min(queue.groups_per_step, queue.remaining)
    chosen = [n for n, slot in alive if slot.result is not None][:wanted]
    late = [slot.overtaken + sum(other > n for other in chosen) for n, slot in alive if slot.result is None]
    return chosen if len(chosen) == wanted > 0 and all(count < queue.window or not count for count in late) else None


@settings(max_examples=200, deadline=None)
@given(
    groups=st.integers(1, 6),
    staleness=st.integers(0, 3),
    window=st.integers(1, 9),
    steps=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_a_run_of_unreliable_actors(groups: int, staleness: int, window: int, steps: int, seed: int) -> None:
    """Simulates a learner and actors that are fast, slow, dead, or send twice; checks every promise at each event."""
    rng = random.Random(seed)
    queue: WorkQueue[int] = WorkQueue(
        groups_per_step=groups, staleness=staleness, window=window, attempts=10**9, total=steps * groups
    )
    version, in_step = 0, False
    done: list[int] = []
    lags: list[int] = []
    leases: list[tuple[str, int, int]] = []  # (actor, sequence, version when leased)
    old: list[tuple[str, int]] = []
    actors = {f"a{n}": rng.choice([0.05, 0.3, 1.0]) for n in range(rng.randint(1, 4))}  # how eagerly each finishes
    for _ in range(200_000):
        if len(done) == steps * groups and not in_step:
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
            queue.drop(actor)
            old += [lease[:2] for lease in leases if lease[0] == actor]
            leases = [lease for lease in leases if lease[0] != actor]
        elif event < 0.88 and old:
            sender, sequence = rng.choice(old)
            if (sender, sequence) not in [lease[:2] for lease in leases]:
                assert not queue.submit(sequence, sender, -1), "a late duplicate must not count"
        elif in_step:
            queue.published()
            version, in_step = version + 1, False
        elif (expected := takeable(queue)) is None:
            assert queue.take() is None
        else:
            taken = queue.take() or []
            assert [n for n, _ in taken] == expected and len(taken) == groups
            lags += [version - leased_at for _, leased_at in taken]
            done += [sequence for sequence, _ in taken]
            in_step = True
        assert len(queue._alive) <= (staleness + 1) * groups
    assert sorted(done) == list(range(steps * groups)), "each exactly once"
    assert max(lags) <= staleness_bound(groups, staleness, window)
    assert queue.lease("a0", 1.0) is None, "admission stops with the last step"


def test_the_bound_is_reached() -> None:
    """The bound is not slack: with S = 1, P = 2, W = 3 a slow group really is ⌊(4 + 1) / 2⌋ = 2 versions late."""
    queue: WorkQueue[int] = WorkQueue(groups_per_step=2, staleness=1, window=3, attempts=1, total=100)
    assert [queue.lease("a", 1.0) for _ in range(4)] == [0, 1, 2, 3]
    queue.submit(0, "a", 0), queue.submit(1, "a", 0), queue.submit(3, "a", 0)
    assert [s for s, _ in queue.take() or []] == [0, 1]  # version 0; group 2 is slow
    queue.published()
    assert queue.lease("a", 1.0) == 4
    queue.submit(4, "a", 1)
    assert [s for s, _ in queue.take() or []] == [3, 4]  # version 1 overtakes it by two
    queue.published()
    assert queue.lease("a", 1.0) == 5
    queue.submit(5, "a", 2)
    assert queue.take() is None  # and no further
    queue.submit(2, "a", 0)
    assert [s for s, _ in queue.take() or []] == [2, 5]  # version 2, leased at 0
    assert staleness_bound(2, 1, 3) == 2


def test_released_groups_go_first_and_are_given_up() -> None:
    queue: WorkQueue[str] = WorkQueue(groups_per_step=2, staleness=0, window=1, attempts=2, total=2)
    assert queue.lease("a", 1.0) == 0
    assert not queue.release(0, "a")
    assert queue.lease("b", 1.0) == 0, "the oldest first"
    assert queue.release(0, "b"), "given up"
    assert [queue.lease("b", 1.0), queue.lease("b", 1.0)] == [1, 2], "and replaced"
    assert queue.lease("b", 1.0) is None


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


@pytest.mark.parametrize(
    ("groups", "staleness", "window", "bound"), [(8, 0, 9, 0), (8, 1, 1, 1), (8, 1, 2, 2), (4, 2, 6, 4)]
)
def test_bound_formula(groups: int, staleness: int, window: int, bound: int) -> None:
    assert staleness_bound(groups, staleness, window) == bound


def test_audit_finds_what_is_lost_and_what_is_doubled(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.enter(0, 7, "trained", 1)
    size = ledger.sync()
    ledger.enter(1, 8, "trained", 2)
    ledger.sync()
    ledger = Ledger(tmp_path / "ledger.jsonl", size)  # resumes before step 2
    ledger.enter(1, 8, "zero_variance", 2)
    ledger.sync()
    found = audit(tmp_path / "ledger.jsonl", next_sequence=3, pending=[2])
    assert (found.lost, found.duplicated, found.outcomes) == (0, 0, {"trained": 1, "zero_variance": 1})
    ledger.enter(1, 8, "trained", 3)
    ledger.sync()
    found = audit(tmp_path / "ledger.jsonl", next_sequence=4, pending=[2])
    assert (found.lost, found.duplicated) == (1, 1)


def test_routed_tells_the_languages_of_late_steps(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    asked = work(0, ["de", "zh", "ja"]).model_copy(update={"propensities": [1.0, 0.4, 0.2]})
    ledger.enter(0, 7, "trained", 1, work=asked)
    ledger.enter(1, 8, "zero_variance", 2, work=asked)
    ledger.enter(2, 9, "failed", 2)
    ledger.sync()
    assert routed(tmp_path / "ledger.jsonl", after=1) == [(8, ["de", "zh", "ja"])]
