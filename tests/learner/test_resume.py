"""A run that goes on keeps its configuration: what may change, what must be accepted, and what is kept of it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common import wire
from common.config import Config, load
from common.config.resume import CONFIG_FILE
from common.net.ports import reserve_port
from common.process import FatalError
from learner import resume
from learner.state import VERSION, Snapshot, Totals
from tests.support import processes

ROOT = Path(__file__).parents[2]


def begun(directory: Path, *flags: str) -> dict[str, Any]:
    """The configuration that the checkpoint of a run in this directory has."""
    return going_on(directory, *flags).model_dump(mode="json")


def going_on(directory: Path, *flags: str) -> Config:
    return load(["--run.dir", str(directory), "--model.path", "models/a", *flags])


HARMLESS = [
    ["--learner.steps", "128"], ["--learner.epochs", "3"], ["--learner.evaluate_every", "5"],
    ["--learner.evaluate", "false"], ["--learner.address", "tcp://127.0.0.1:6000"], ["--learner.ranks", "4"],
    ["--reward.addresses", '["tcp://127.0.0.1:6001"]'], ["--learner.checkpoint_every", "3"],
    ["--data.heldout", "other.parquet"], ["--learner.record", "record"], ["--actor.groups_in_flight", "3"],
    ["--learner.microbatch_tokens", "4096"], ["--sync.transport", "disk"], ["--actor.score_patience_s", "60"],
]  # fmt: skip
MATTERS = {
    "learner.lr": "1e-05", "learner.kl": "0.5", "learner.betas": "[0.5, 0.6]", "learner.staleness": "3",
    "learner.groups_per_step": "16", "learner.window": "7", "learner.weight_decay": "0.1", "learner.std_ddof": "0",
    "learner.stages": "[{}]", "model.path": '"models/b"', "model.dtype": '"float32"', "router.diversity": "0.5",
    "router.rollouts": "4", "sampling.temperature": "0.5", "reward.terms": '{"default" = {"exact" = 1.0}}',
    "reward.embedder": '"other"', "reward.embedder_dtype": '"float32"', "run.seed": "3", "sync.pause": '"drain"',
    "data.max_prompt_tokens": "100",
}  # fmt: skip


@pytest.mark.parametrize("flags", HARMLESS, ids=lambda flags: flags[0])
def test_what_is_harmless_is_accepted_and_told(
    flags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = begun(tmp_path)
    with caplog.at_level(logging.INFO):
        resume.check(going_on(tmp_path, *flags), kept)
    assert f"resuming with another setting, {flags[0][2:]}: " in caplog.text


def test_judges_may_move_and_stay_the_same_models(tmp_path: Path) -> None:
    kept = begun(tmp_path, "--reward.judges", '["a@http://one/v1", "b@http://two/v1"]')
    resume.check(going_on(tmp_path, "--reward.judges", '["a@http://three/v1", "b@http://two/v1"]'), kept)
    with pytest.raises(FatalError, match=r"reward\.judges: "):
        resume.check(going_on(tmp_path, "--reward.judges", '["other@http://one/v1", "b@http://two/v1"]'), kept)


def test_the_targets_of_adapters_may_come_in_another_order(tmp_path: Path) -> None:
    lora = ["--lora.rank", "4", "--lora.targets"]
    kept = begun(tmp_path, *lora, '["o_proj", "gate_proj"]')
    resume.check(going_on(tmp_path, *lora, '["gate_proj", "o_proj"]'), kept)
    with pytest.raises(FatalError, match="adapters of another form"):
        resume.check(going_on(tmp_path, *lora, '["o_proj", "down_proj"]'), kept)


@pytest.mark.parametrize("key", MATTERS)
def test_what_matters_must_be_accepted(key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = begun(tmp_path)
    flags = [f"--{key}", MATTERS[key]]
    with pytest.raises(FatalError) as error:
        resume.check(going_on(tmp_path, *flags, "--learner.steps", "128"), kept)
    assert f"{tmp_path} was trained so far with another configuration" in str(error.value)
    assert re.search(rf"\n  {re.escape(key)}: .+ -> .+\n", str(error.value)) and "learner.steps" not in str(error.value)
    assert str(error.value).endswith(f"accept the change with --resume.accept {key}")
    for accepted in (key, key.partition(".")[0], f"run.dir,{key}"):
        with caplog.at_level(logging.INFO):
            resume.check(going_on(tmp_path, *flags, "--resume.accept", accepted), kept)
    assert f"{key}: " in caplog.text and "(accepted)" in caplog.text
    with pytest.raises(FatalError):
        resume.check(going_on(tmp_path, *flags, "--resume.accept", "learner.head_chunk"), kept)


def test_every_change_is_listed_with_one_command_for_all(tmp_path: Path) -> None:
    kept = begun(tmp_path)
    with pytest.raises(FatalError) as error:
        resume.check(going_on(tmp_path, "--learner.lr", "1e-5", "--model.path", "models/b", "--learner.kl", "0"), kept)
    assert error.value.args[0].splitlines()[1:4] == [
        "  learner.kl: 0.001 -> 0.0", "  learner.lr: 1e-06 -> 1e-05", '  model.path: "models/a" -> "models/b"',
    ]  # fmt: skip
    assert str(error.value).endswith("--resume.accept learner.kl,learner.lr,model.path")


def test_a_run_that_has_no_checkpoint_has_nothing_to_keep_to(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(going_on(tmp_path).model_dump_json())
    resume.check(going_on(tmp_path, "--learner.lr", "1"), None)


def test_what_a_start_that_trained_no_step_was_given_is_not_compared_with(tmp_path: Path) -> None:
    """The checkpoint has 1e-6; a start with 2e-6, which was accepted, was killed before the next one."""
    kept, accepted = begun(tmp_path), going_on(tmp_path, "--learner.lr", "2e-6", "--resume.accept", "learner.lr")
    resume.check(accepted, kept)
    (tmp_path / CONFIG_FILE).write_text(accepted.model_dump_json())
    resume.check(going_on(tmp_path), kept)
    with pytest.raises(FatalError, match=r"learner\.lr: 1e-06 -> 2e-06\n"):
        resume.check(going_on(tmp_path, "--learner.lr", "2e-6"), kept)


def test_a_checkpoint_that_did_not_keep_it_is_compared_with_the_file(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(going_on(tmp_path).model_dump_json())
    resume.check(going_on(tmp_path), {})
    with pytest.raises(FatalError, match=r"learner\.lr: 1e-06 -> 2e-06\n"):
        resume.check(going_on(tmp_path, "--learner.lr", "2e-6"), {})


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"learner": 3}', "\udcff"])
def test_without_a_configuration_to_compare_with_whatever_changed_must_be_accepted(
    content: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / CONFIG_FILE
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    problem = f"cannot compare with the configuration that the run had so far, {path}"
    for accepted in ([], ["--resume.accept", "learner"]):
        with pytest.raises(FatalError) as error:
            resume.check(going_on(tmp_path, "--learner.lr", "1", *accepted), {})
        assert str(error.value).startswith(problem)
        assert str(error.value).endswith("accept all settings as they are now with --resume.accept config.json")
    resume.check(going_on(tmp_path, "--learner.lr", "1", "--resume.accept", "config.json"), {})
    assert problem in caplog.text


def test_a_setting_that_the_older_program_did_not_know_had_its_default(tmp_path: Path) -> None:
    older = begun(tmp_path)
    del older["learner"]["std_ddof"], older["learner"]["betas"], older["sync"]
    older["learner"]["gone"] = 3
    assert resume.changes(older, going_on(tmp_path)) == []
    flags = ["--learner.std_ddof", "0", "--learner.betas", "[0.5, 0.6]", "--sync.pause", "drain"]
    assert list(map(str, resume.changes(older, going_on(tmp_path, *flags)))) == [
        "learner.betas: [0.9, 0.95] -> [0.5, 0.6]", "learner.std_ddof: 1 -> 0", 'sync.pause: "retract" -> "drain"',
    ]  # fmt: skip


def test_the_own_export_is_no_model_to_go_on_from(tmp_path: Path) -> None:
    """The reference of the KL penalty would be the trained policy."""
    kept = begun(tmp_path)
    config = going_on(tmp_path, "--model.path", str(tmp_path / "x" / ".." / "model"), "--resume.accept", "model.path")
    with pytest.raises(FatalError, match="is where this run exports its own model, so the KL penalty would be to"):
        resume.check(config, kept)


def test_the_length_of_a_run_moves_its_stages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = begun(tmp_path, "--router.anneal", "0.5")
    resume.check(going_on(tmp_path, "--router.anneal", "0.5", "--learner.steps", "100"), kept)
    assert (
        "learner.steps: 64 -> 100: router.anneal, learner.stages and lr_schedule go by the share of the run"
        in caplog.text
    )


@pytest.mark.parametrize("in_checkpoint", [True, False])
def test_the_configuration_of_the_steps_so_far_is_kept(in_checkpoint: bool, tmp_path: Path) -> None:
    before = begun(tmp_path) if in_checkpoint else {}
    (tmp_path / CONFIG_FILE).write_text(going_on(tmp_path).model_dump_json())
    undone = tmp_path / "config-until-step-000012.json"
    undone.touch()
    resume.keep_configuration(going_on(tmp_path), before, 10)
    assert not list(tmp_path.glob("config-*")), "nothing has changed, and step 12 is undone"
    resume.keep_configuration(going_on(tmp_path, "--learner.lr", "1e-5"), before, 10)
    kept = tmp_path / "config-until-step-000010.json"
    assert json.loads(kept.read_text()) == begun(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(going_on(tmp_path, "--learner.lr", "1e-5").model_dump_json())
    resume.keep_configuration(going_on(tmp_path, "--learner.lr", "1e-4"), before, 10)
    assert json.loads(kept.read_text())["learner"]["lr"] == 1e-6, "no step was made with 1e-5"


def write_checkpoint(directory: Path, settings: dict[str, Any], **changes: Any) -> None:
    """A whole checkpoint of step 10, but for the weights.

    Args:
        changes: to what ``run.json`` has.
    """
    snapshot = Snapshot(
        version=VERSION, step=10, questions_digest="", next_sequence=0, pending=[], groups_retried=0, groups_orphaned=0,
        groups_failed=0, ledger_size=0, router={}, totals=Totals(), evaluation_before={}, choice_shares={},
        wall_seconds=0.0, settings=settings,
    )  # fmt: skip
    path = directory / "checkpoints" / "step-000010"
    path.mkdir(parents=True)
    files = {"run.json": json.dumps(snapshot.as_json() | changes).encode(), "queued.msgpack": wire.encode([])}
    for name, data in files.items():
        (path / name).write_bytes(data)
    (path / "manifest.json").write_text(
        json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    )


def test_the_learner_refuses_before_it_loads_a_model(tmp_path: Path, tiny_policy: Path) -> None:
    question = {
        "prompt": [{"role": "user", "content": "Wie heißt die Hauptstadt?"}], "ability": "Chat",
        "reward_model": {"ground_truth": "Berlin."}, "extra_info": {"language": "de", "topic": "Chat", "region": None},
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([question]), tmp_path / "train.parquet")
    own = ["--data.train", str(tmp_path / "train.parquet"), "--learner.address", f"ipc://{tmp_path}/queue"]
    own += ["--model.path", str(tiny_policy), "--learner.epochs", "4", "--learner.groups_per_step", "2"]
    write_checkpoint(tmp_path, begun(tmp_path, *own))
    changed = ["--learner.lr", "1", "--learner.kl", "0"]
    kept = going_on(tmp_path, *own, *changed).model_dump_json().encode()  # of a start that was killed soon
    (tmp_path / CONFIG_FILE).write_bytes(kept)
    command = [sys.executable, "-m", "learner", "--run.dir", str(tmp_path), *own, *changed]
    with reserve_port() as holder:
        port = str(holder.getsockname()[1])
        environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        failing = processes.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
    assert failing.returncode == 1
    error = failing.stderr[failing.stderr.index("error: ") :]
    assert "  learner.kl: 0.001 -> 0.0\n  learner.lr: 1e-06 -> 1.0\n" in error and "learner.steps" not in error
    assert error.endswith("accept the change with --resume.accept learner.kl,learner.lr\n")
    assert (tmp_path / CONFIG_FILE).read_bytes() == kept
