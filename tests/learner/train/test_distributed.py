"""The trainer on several ranks: however a step is divided, its result is the same; checkpoints move and survive."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from learner.train.distributed import sharding_mesh
from tests.support.rank import TIMEOUT_S
from tests.support.train_once import (
    record_steps,
    run_ranks,
    train_one_step,
    train_poisoned,
    train_recorded,
    write_gradients,
)


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Asserts that weights are close, but for one element and one in a thousand.

    Where a gradient consists of rounding errors, Adam moves the weight by the sign of these alone.
    """
    assert one.keys() == other.keys()
    for name, value in one.items():
        apart = int((~torch.isclose(value, other[name], rtol=1e-4, atol=2e-5)).sum())
        assert apart <= 1 + value.numel() // 1000, f"{name}: {apart} of {value.numel()} elements differ"
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=5e-3)


def test_ranks_micro_batches_and_packing_order_do_not_change_the_gradient(
    tiny_policy: Path, tmp_path: Path, seed: int
) -> None:
    divisions: list[tuple[int, list[str]]] = [
        (1, []),
        (1, ["--learner.microbatch_tokens", "50"]),
        (2, ["--learner.microbatch_tokens", "90"]),
        (4, ["--learner.microbatch_tokens", "60"]),
        (3, ["--learner.microbatch_tokens", "12"]),  # more micro-batches than sequences, so some are empty
        (4, ["--learner.ranks", "4", "--learner.replicas", "2", "--learner.activation_checkpointing", "true"]),
    ]
    found: list[dict[str, Any]] = []
    for order, (ranks, flags) in enumerate(divisions):
        out = tmp_path / f"{order}.pt"
        assert run_ranks(ranks, write_gradients, out, tiny_policy, seed, order, *flags) == [0] * ranks
        found.append(torch.load(out))
    first = found[0]
    assert first["sums"]["tokens"].sum() > 0 and first["sums"]["kl"].sum() > 0
    for other in found[1:]:
        for name, gradient in first["gradients"].items():
            assert (other["gradients"][name] - gradient).norm() <= 1e-5 * gradient.norm(), name
        for name, value in first["sums"].items():
            torch.testing.assert_close(other["sums"][name], value, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_several_ranks_resumes_on_one_rank_and_the_export_loads(
    tiny_policy: Path, tmp_path: Path, seed: int
) -> None:
    """With its optimizer: the next step is the one that a single rank would have made from the beginning."""
    for name, ranks in {"one": 1, "two": 2, "four": 4}.items():
        files = (tmp_path / f"{name}.safetensors", tiny_policy, seed, tmp_path / f"{name}-checkpoints")
        copies = ["--learner.replicas", str(max(1, ranks // 2))]
        assert run_ranks(ranks, train_one_step, *files, "--learner.ranks", str(ranks), *copies) == [0] * ranks
    first = load_file(tmp_path / "one.safetensors")
    assert_close(first, load_file(tmp_path / "two.safetensors"))
    assert_close(first, load_file(tmp_path / "four.safetensors"))
    before = AutoModelForCausalLM.from_pretrained(tiny_policy)
    assert set(first) == {name for name, _ in before.named_parameters()}, "names must be those of the checkpoint"
    assert max(float((first[name] - value.detach()).abs().max()) for name, value in before.named_parameters()) > 1e-4
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "two", dtype=torch.float32)
    assert_close(dict(exported.named_parameters()), first)
    for name in ("one", "two", "four"):
        files = (tmp_path / f"{name}-on.safetensors", tiny_policy, seed + 1, tmp_path / f"{name}-checkpoints")
        assert run_ranks(1, train_one_step, *files) == [0]
    for name in ("two", "four"):
        assert_close(load_file(tmp_path / "one-on.safetensors"), load_file(tmp_path / f"{name}-on.safetensors"))


def test_a_run_that_is_killed_and_resumed_has_the_losses_of_an_unbroken_run(
    tiny_policy: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    steps = 9
    assert run_ranks(1, record_steps, tmp_path / "record", tiny_policy, steps) == [0]
    unbroken = (tmp_path / "unbroken", tiny_policy, tmp_path / "record", tmp_path / "checkpoints-0", steps, -1)
    assert run_ranks(1, train_recorded, *unbroken) == [0]
    broken = (tmp_path / "broken", tiny_policy, tmp_path / "record", tmp_path / "checkpoints-1", steps)
    for die_at in sorted(rng.choice(np.arange(1, steps), 2, replace=False)):
        assert run_ranks(1, train_recorded, *broken, int(die_at)) == [-9]
    assert run_ranks(1, train_recorded, *broken, -1) == [0]
    wanted = [json.loads(line) for line in (tmp_path / "unbroken").read_text().splitlines()]
    found = {line[0]: line for line in map(json.loads, (tmp_path / "broken").read_text().splitlines())}
    assert [found[number] for number in range(steps)] == wanted, "losses must be equal to the last bit"
    assert len({loss for _, loss, _ in wanted}) == steps


@pytest.mark.parametrize("damage", ["flip a bit", "cut a file", "lose a file", "leave it half-written"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    damage: str, checkpoints: Path, tmp_path: Path, tiny_policy: Path
) -> None:
    root, log = tmp_path / "checkpoints", tmp_path / "log"
    shutil.copytree(checkpoints, root)
    newest = root / "step-000002"
    shard = next(newest.glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    if damage == "flip a bit":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif damage == "cut a file":
        shard.write_bytes(data[: len(data) // 2])
    elif damage == "lose a file":
        (newest / ".metadata").unlink()
    else:
        newest.rename(newest.with_suffix(".partial"))
    assert run_ranks(1, train_one_step, tmp_path / "on.safetensors", tiny_policy, 7, root, output=log) == [0]
    logged = log.read_text()
    assert str(newest) in logged and ("damaged" in logged or "half-written" in logged)
    state = json.loads((root / "step-000002" / "run.json").read_text())
    assert state == {"step": 2}, "step 2 must have been trained again, from the checkpoint of step 1"


@pytest.fixture(scope="module")
def checkpoints(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with checkpoints of steps 1 and 2, to be copied."""
    path = tmp_path_factory.mktemp("checkpoints")
    for number in range(2):
        assert run_ranks(1, train_one_step, path.parent / f"{number}.safetensors", tiny_policy, number, path) == [0]
    return path


def test_a_run_with_damaged_checkpoints_alone_refuses_to_start_from_the_beginning(
    checkpoints: Path, tmp_path: Path, tiny_policy: Path
) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(checkpoints, root)
    for path in root.iterdir():
        (path / "run.json").write_text("{}")
    for attempt in range(2):
        log = tmp_path / f"log-{attempt}"
        assert run_ranks(1, train_one_step, tmp_path / "on.safetensors", tiny_policy, 7, root, output=log) == [1]
        assert f"delete {root} to begin anew" in log.read_text()


def test_a_step_that_is_not_finite_is_skipped_and_names_the_place(tiny_policy: Path, tmp_path: Path) -> None:
    assert run_ranks(2, train_poisoned, tmp_path / "out.pt", tiny_policy) == [0, 0]
    found = torch.load(tmp_path / "out.pt")
    assert found["problem"].startswith(f"not finite: loss of train-2, answer 2 ({found['language']}), gradient of lm.")
    assert found["same"] and found["moved"] and not found["next"]


def write_timeouts(out: Path) -> None:
    """Writes how long each group waits that is made for sharding, in seconds, by the number of its ranks."""
    cpu = torch.device("cpu")
    found = [
        [sharding_mesh(cpu, replicas, 77.0).get_group(n) for n in range(2 if replicas > 1 else 1)]
        for replicas in (1, 2, 4)
    ]
    listed = [
        [(one.size(), one._get_backend(cpu).options._timeout.total_seconds()) for one in groups] for groups in found
    ]
    total = torch.ones(1)
    for group in found[1]:
        dist.all_reduce(total, group=group)
    if dist.get_rank() == 0:
        out.write_text(json.dumps([listed, float(total)]))


def test_every_group_that_weights_are_sharded_over_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    """Not for torch's half hour, which is less than rank 0 may take for a round of weights."""
    assert run_ranks(4, write_timeouts, tmp_path / "out") == [0] * 4
    (whole, both, copies), total = json.loads((tmp_path / "out").read_text())
    assert whole == [[4, float(TIMEOUT_S)]], "that of all ranks is the default group"
    assert both == [[2, 77.0], [2, 77.0]] and copies == [[4, 77.0], [1, 77.0]]
    assert total == 4, "every rank was in one group of each dimension"
