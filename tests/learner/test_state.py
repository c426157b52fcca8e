"""The run's state survives a checkpoint whole, and what another program wrote is refused with a remedy."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from common.config import Config, load
from common.process import FatalError
from learner.groups import Group
from learner.state import LEDGER_FILE, VERSION, RunState, Snapshot
from learner.train.outcomes import group_outcome
from learner.work.ledger import audit
from learner.work.scheduler import Setbacks
from router import Context, Observation, Router
from tests.support.groups import random_rollout, work

LANGUAGES = ["de", "en", "zh"]


def configuration(run_dir: Path, *more: str) -> Config:
    flags = ["--learner.groups_per_step", "2", "--learner.staleness", "2", "--learner.steps", "20"]
    return load(["--run.dir", str(run_dir), *flags, *more])


def router(config: Config, languages: list[str] = LANGUAGES) -> Router:
    return Router(config.router, languages, 7, config.learner.steps)


def group(sequence: int) -> Group:
    rng = np.random.default_rng(sequence)
    rollouts = [random_rollout(rng) for _ in range(2)]
    return Group(work=work(sequence, [rollout.language for rollout in rollouts]), actor="a", rollouts=rollouts)


def busy_state(config: Config) -> RunState:
    """Of a run with groups leased, given back, finished, trained and failed."""
    state = RunState.begin(config=config, router=router(config), questions_digest="d", lock=threading.Condition())
    for _ in range(6):
        state.queue.lease("a", deadline=60)
    for sequence in (0, 1, 3):
        state.queue.submit(sequence, "a", group(sequence))
    state.queue.release(4, "a", "scoring")
    state.queue.end_engine("a", [5, 2])
    state.queue.end_engine("a", [5, 2])
    state.queue.release_all("a")
    taken = state.queue.take()
    assert taken is not None
    for sequence, _ in taken:
        state.ledger.enter(sequence, 0, "trained", 1)
    state.queue.mark_published()
    state.router.draw("de", ["Chat"], ["Europe"])
    state.router.observe([Observation(Context.of("de", ["Chat"], []), ("en", "de"), (0.5, 1.0), (True, True))])
    state.totals.add_tokens(np.array([0, 3, 1], np.int32))
    state.step, state.totals.loop_s = 1, 2.5
    state.evaluation_before, state.choice_shares = {"train": {"own": 0.25}}, {"de": 0.75, "en": 0.25}
    state.evaluated_before, state.evaluated_step = {"train": "d"}, 1
    state.skipped_in_a_row, state.sound_step = 4, 7
    state.began -= 100
    return state


def through_a_file(snapshot: Snapshot, path: Path) -> Snapshot:
    path.write_text(json.dumps(snapshot.as_json()))
    return Snapshot.from_json(json.loads(path.read_text()), path)


def restored(config: Config, snapshot: Snapshot, queued: list[Group], digest: str = "d") -> RunState:
    return RunState.restore(
        snapshot,
        queued,
        config=config,
        router=router(config),
        questions_digest=digest,
        lock=threading.Condition(),
    )


def test_a_state_comes_back_from_its_snapshot_as_it_was(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    state = busy_state(config)
    snapshot, queued = state.capture()
    state.ledger.enter(2, 0, "trained", 2)  # of a step after the checkpoint, which the resume undoes
    state.ledger.flush()
    again = restored(config, through_a_file(snapshot, tmp_path / "run.json"), queued)

    assert again.step == 1 and again.totals == state.totals
    assert (again.totals.response_tokens, again.totals.lag_sum, again.totals.lag_max) == (3, 4.0, 3)
    assert (again.evaluation_before, again.choice_shares) == (state.evaluation_before, state.choice_shares)
    assert (again.evaluated_before, again.evaluated_step) == ({"train": "d"}, 1)
    assert (again.skipped_in_a_row, again.sound_step) == (4, 7)
    assert snapshot.settings == config.model_dump(mode="json")
    assert again.wall_seconds() == pytest.approx(state.wall_seconds(), abs=5) and again.wall_seconds() > 100
    assert len((tmp_path / LEDGER_FILE).read_text().splitlines()) == 2
    assert again.queue.untaken() == state.queue.untaken() == [2, 3, 4, 5]
    assert list(again.queue.finished()) == [3] and again.queue.next_sequence == 6
    assert again.queue.remaining == state.queue.remaining == 38
    assert (again.queue.retried, again.queue.orphaned, again.queue.failed) == (3, 2, 0)
    assert again.queue.setbacks() == state.queue.setbacks()
    assert again.queue.setbacks() == [Setbacks(2, {}, 2), Setbacks(4, {"scoring": 1}, 0), Setbacks(5, {}, 2)]
    assert again.queue.suspects() == [2, 5] and again.queue.lease("b", 60) == 4, "what ended engines is leased alone"
    assert again.queue.lease("c", 60, 2) == 2 and again.queue.end_engine("c", [2]) == 2, "and given up for the next"
    assert again.queue.suspects() == [5]
    again = restored(config, through_a_file(snapshot, tmp_path / "run.json"), queued)
    assert again.router.state() == state.router.state()
    assert again.router.draw("de", ["Chat"], []) == state.router.draw("de", ["Chat"], []), "the next draw is the same"
    resumed, _ = restored(config, snapshot, queued).capture()
    assert resumed.as_json() | {"wall_seconds": 0} == snapshot.as_json() | {"wall_seconds": 0}


@pytest.mark.parametrize("engines", [1, 3])
def test_a_group_is_given_up_when_it_has_ended_as_many_engines_as_is_set(engines: int, tmp_path: Path) -> None:
    config = configuration(tmp_path, "--learner.group_engines", str(engines))
    state = RunState.begin(config=config, router=router(config), questions_digest="d", lock=threading.Condition())
    sequence = state.queue.lease("a", deadline=60)
    assert sequence is not None
    given_up = [state.queue.end_engine("a", [sequence]) for _ in range(engines)]
    assert given_up == [*[None] * (engines - 1), sequence]


def test_a_file_system_that_hangs_does_not_keep_the_server_from_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = busy_state(configuration(tmp_path))
    flush, got = state.ledger.flush, list[bool]()

    def hang() -> int:
        def take() -> None:
            got.append(state.lock.acquire(timeout=5))
            state.ledger.enter(9, 0, "failed", 2)  # by the server, in the meantime
            if got[0]:
                state.lock.release()

        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        return flush()

    monkeypatch.setattr(state.ledger, "flush", hang)
    snapshot, _ = state.capture()
    assert got == [True]
    written = (tmp_path / LEDGER_FILE).read_bytes()
    assert written[: snapshot.ledger_size].count(b"\n") == 2, "what came after the snapshot is none of it"
    assert len(written) > snapshot.ledger_size


def test_a_checkpoint_of_the_old_layout_is_refused(tmp_path: Path) -> None:
    old = {
        "step": 3, "questions": "d", "next_sequence": 9, "pending": [7, 8], "so_far": [1, 0, 0], "ledger_size": 0,
        "router": {}, "totals": {}, "before": {}, "shares": {}, "wall_seconds": 1.0,
    }  # fmt: skip
    with pytest.raises(FatalError) as error:
        Snapshot.from_json(old, tmp_path / "run.json")
    assert str(tmp_path / "run.json") in str(error.value) and "no version" in str(error.value)
    assert "begin anew in another run.dir" in str(error.value)


@pytest.mark.parametrize("version", [VERSION + 1, 1, str(VERSION), None])
def test_a_checkpoint_of_an_unknown_version_is_refused(tmp_path: Path, version: object) -> None:
    snapshot, _ = busy_state(configuration(tmp_path)).capture()
    with pytest.raises(FatalError, match=f"version {version!r}, and this program reads version {VERSION}"):
        Snapshot.from_json(snapshot.as_json() | {"version": version}, tmp_path / "run.json")


@pytest.mark.parametrize("change", [{"step": "1"}, {"totals": {"tokens": 1}}, {"something": 1}])
def test_a_snapshot_that_is_not_of_its_type_is_of_another_version(tmp_path: Path, change: dict[str, object]) -> None:
    """It is not damaged: its digest was right. To delete it would help nobody, as those before have the same form."""
    snapshot, _ = busy_state(configuration(tmp_path)).capture()
    with pytest.raises(
        FatalError, match=r"cannot resume from .*run\.json: .*\. It was written by another vers"
    ) as error:
        Snapshot.from_json(snapshot.as_json() | change, tmp_path / "run.json")
    assert "delete" not in str(error.value) and "finish the run with that one" in str(error.value)


def test_a_checkpoint_of_the_version_before_is_read(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    snapshot, queued = busy_state(config).capture()
    older = snapshot.as_json()
    for name in ("evaluated_before", "evaluated_step", "settings", "skipped_in_a_row", "sound_step"):
        del older[name]
    again = restored(config, Snapshot.from_json(older, tmp_path / "run.json"), queued)
    assert (again.evaluated_before, again.evaluated_step) == ({}, again.step), "no evaluation is made twice"
    assert (again.skipped_in_a_row, again.sound_step) == (0, 1)
    assert again.capture()[0].settings == config.model_dump(mode="json"), "the next one has it"


def test_groups_that_are_too_old_for_a_lower_bound_are_asked_again(tmp_path: Path) -> None:
    """The step is 3; finished are the groups 1 and 3 with answers of version 2, and 4 with answers of version 3."""
    before = configuration(tmp_path)
    state = RunState.begin(config=before, router=router(before), questions_digest="d", lock=threading.Condition())
    for _ in range(6):
        state.queue.lease("a", deadline=60)
    made = {1: 2, 3: 2, 4: 3}
    for sequence, version in made.items():
        found = group(sequence)
        for rollout in found.rollouts:
            rollout.versions[:] = version
        state.queue.submit(sequence, "a", found)
    state.step = 3
    snapshot, queued = state.capture()
    whole = restored(before, snapshot, queued)
    assert list(whole.queue.finished()) == [1, 3, 4] and whole.queue.retried == 0, "the bound is as it was"
    # With S = 1, a lag of 1: group 1 is trained in the next step, group 3 and 4 only in the two after that.
    lower = load(["--run.dir", str(tmp_path), "--learner.groups_per_step", "2", "--learner.staleness", "1"])
    again = restored(lower, snapshot, queued)
    assert list(again.queue.finished()) == [1] and again.queue.untaken() == [0, 1, 2, 3, 4, 5]
    assert again.queue.retried == 2
    again.ledger.flush()
    lines = [json.loads(line) for line in (tmp_path / LEDGER_FILE).read_text().splitlines()]
    assert [(line["sequence"], line["outcome"], line["step"]) for line in lines] == [(3, "stale", 3), (4, "stale", 3)]
    assert lines[0]["reason"].startswith("made by policy version 2, too old for the bound of 1")
    told = audit(tmp_path / LEDGER_FILE, 6, again.queue.untaken())
    assert (told.lost, told.duplicated, told.outcomes) == (0, 0, {"stale": 2})


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    snapshot, queued = busy_state(config).capture()
    with pytest.raises(FatalError, match="another seed or other questions"):
        restored(config, snapshot, queued, digest="another")
    with pytest.raises(FatalError, match=r"set run\.languages to the saved list"):
        RunState.restore(
            snapshot, queued, config=config, router=router(config, LANGUAGES[:2]), questions_digest="d",
            lock=threading.Condition(),
        )  # fmt: skip


def test_groups_that_a_step_replaces_survive_a_checkpoint_and_stand_in_the_ledger(tmp_path: Path) -> None:
    """With ``learner.refill`` they wait for their step without a slot, and are settled with it: lost is none."""
    flags = ["--learner.groups_per_step", "2", "--learner.staleness", "0", "--learner.steps", "1"]
    config = load(["--run.dir", str(tmp_path), *flags, "--learner.refill", "5"])
    state = RunState.begin(config=config, router=router(config), questions_digest="d", lock=threading.Condition())
    rng = np.random.default_rng(1)
    for sequence in range(5):
        assert state.queue.lease("a", deadline=60) == sequence
        rollouts = [random_rollout(rng, reward=0.5 if sequence < 3 else float(k)) for k in range(2)]
        state.queue.submit(sequence, "a", Group(work=work(sequence, ["en", "de"]), actor="a", rollouts=rollouts))
    snapshot, queued = state.capture()
    assert snapshot.pending == [0, 1, 2, 3, 4] and len(queued) == 5
    snapshot = through_a_file(snapshot, tmp_path / "run.json")
    state.ledger.flush()
    again = RunState.restore(
        snapshot, queued, config=config, router=router(config), questions_digest="d", lock=threading.Condition()
    )
    taken = again.queue.take()
    assert taken is not None and [sequence for sequence, _ in taken] == [0, 1, 2, 3, 4]
    outcomes = {sequence: group_outcome(one, config.learner) for sequence, one in taken}
    for sequence, outcome in outcomes.items():
        again.ledger.enter(sequence, 0, outcome, 1)
    assert list(outcomes.values()) == ["zero_variance"] * 3 + ["trained"] * 2
    again.ledger.flush()
    found = audit(tmp_path / LEDGER_FILE, again.queue.next_sequence, again.queue.untaken())
    assert (found.lost, found.duplicated) == (0, 0) and again.queue.remaining == 0
