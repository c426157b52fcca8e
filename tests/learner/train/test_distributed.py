"""The trainer on several ranks: the same step however it is cut, and checkpoints that move and survive."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.train_once import gradients, poisoned_step, record_run, run, together, weights_after


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """All but one element and one in a thousand: where the gradient is rounding, Adam moves by its sign alone."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        apart = int((~torch.isclose(value, other[name], rtol=1e-4, atol=2e-5)).sum())
        assert apart <= 1 + value.numel() // 1000, f"{name}: {apart} of {value.numel()} elements differ"
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=5e-3)


def test_ranks_micro_batches_and_packing_order_do_not_change_the_gradient(tiny_policy: Path, tmp_path: Path) -> None:
    seed = int(np.random.default_rng().integers(2**31))
    ways: list[tuple[int, list[str]]] = [
        (1, []),
        (1, ["--learner.microbatch_tokens", "50"]),
        (2, ["--learner.microbatch_tokens", "90"]),
        (4, ["--learner.microbatch_tokens", "60"]),
        (3, ["--learner.microbatch_tokens", "12"]),  # more micro-batches than sequences: most ranks idle in some
        (4, ["--learner.replicas", "2", "--learner.activation_checkpointing", "true"]),
    ]
    found: list[dict[str, Any]] = []
    for order, (ranks, flags) in enumerate(ways):
        out = tmp_path / f"{order}.pt"
        assert together(ranks, gradients, out, tiny_policy, seed, order, *flags) == [0] * ranks
        found.append(torch.load(out))
    first = found[0]
    assert first["sums"]["tokens"].sum() > 0 and first["sums"]["kl"].sum() > 0
    for other in found[1:]:
        for name, gradient in first["gradients"].items():
            assert (other["gradients"][name] - gradient).norm() <= 1e-5 * gradient.norm(), name
        for name, value in first["sums"].items():
            torch.testing.assert_close(other["sums"][name], value, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_several_ranks_goes_on_on_one(tiny_policy: Path, tmp_path: Path) -> None:
    """Optimizer included: as if it had been one all along. And the export is what transformers loads."""
    seed = int(np.random.default_rng().integers(2**31))
    for name, ranks in {"one": 1, "two": 2, "four": 4}.items():
        files = (tmp_path / f"{name}.safetensors", tiny_policy, seed, tmp_path / f"{name}-checkpoints")
        assert together(ranks, weights_after, *files, "--learner.replicas", str(max(1, ranks // 2))) == [0] * ranks
    first = load_file(tmp_path / "one.safetensors")
    close(first, load_file(tmp_path / "two.safetensors"))
    close(first, load_file(tmp_path / "four.safetensors"))
    before = AutoModelForCausalLM.from_pretrained(tiny_policy)
    assert set(first) == {name for name, _ in before.named_parameters()}, "names are those of the checkpoint"
    assert max(float((first[name] - value.detach()).abs().max()) for name, value in before.named_parameters()) > 1e-4
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "two", dtype=torch.float32)
    close(dict(exported.named_parameters()), first)
    for name in ("one", "two", "four"):
        files = (tmp_path / f"{name}-on.safetensors", tiny_policy, seed + 1, tmp_path / f"{name}-checkpoints")
        assert together(1, weights_after, *files) == [0]
    for name in ("two", "four"):
        close(load_file(tmp_path / "one-on.safetensors"), load_file(tmp_path / f"{name}-on.safetensors"))


def test_killed_at_any_step_and_resumed_the_losses_are_those_of_one_run(tiny_policy: Path, tmp_path: Path) -> None:
    steps = 9
    assert together(1, record_run, tmp_path / "record", tiny_policy, steps) == [0]
    unbroken = (tmp_path / "unbroken", tiny_policy, tmp_path / "record", tmp_path / "checkpoints-0", steps, -1)
    assert together(1, run, *unbroken) == [0]
    broken = (tmp_path / "broken", tiny_policy, tmp_path / "record", tmp_path / "checkpoints-1", steps)
    for die_at in sorted(np.random.default_rng().choice(np.arange(1, steps), 2, replace=False)):
        assert together(1, run, *broken, int(die_at)) == [-9]
    assert together(1, run, *broken, -1) == [0]
    wanted = [json.loads(line) for line in (tmp_path / "unbroken").read_text().splitlines()]
    found = {line[0]: line for line in map(json.loads, (tmp_path / "broken").read_text().splitlines())}
    assert [found[number] for number in range(steps)] == wanted, "to the last bit"
    assert len({loss for _, loss, _ in wanted}) == steps


@pytest.mark.parametrize("harm", ["flip a bit", "cut a file", "lose a file", "leave it half-written"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    harm: str, checkpoints: Path, tmp_path: Path, tiny_policy: Path
) -> None:
    root, log = tmp_path / "checkpoints", tmp_path / "log"
    shutil.copytree(checkpoints, root)
    newest = root / "step-000002"
    shard = next(newest.glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    if harm == "flip a bit":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif harm == "cut a file":
        shard.write_bytes(data[: len(data) // 2])
    elif harm == "lose a file":
        (newest / ".metadata").unlink()
    else:
        newest.rename(newest.with_suffix(".partial"))
    assert together(1, weights_after, tmp_path / "on.safetensors", tiny_policy, 7, root, told=log) == [0]
    told = log.read_text()
    assert str(newest) in told and ("damaged" in told or "half-written" in told)
    state = json.loads((root / "step-000002" / "run.json").read_text())
    assert state == {"step": 2}, "trained again after step 1"


@pytest.fixture(scope="module")
def checkpoints(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of steps 1 and 2."""
    path = tmp_path_factory.mktemp("checkpoints")
    for number in range(2):
        assert together(1, weights_after, path.parent / f"{number}.safetensors", tiny_policy, number, path) == [0]
    return path


def test_without_a_whole_checkpoint_nothing_begins_anew_unasked(
    checkpoints: Path, tmp_path: Path, tiny_policy: Path
) -> None:
    root = tmp_path / "checkpoints"
    shutil.copytree(checkpoints, root)
    for path in root.iterdir():
        (path / "run.json").write_text("{}")
    for attempt in range(2):
        log = tmp_path / f"log-{attempt}"
        assert together(1, weights_after, tmp_path / "on.safetensors", tiny_policy, 7, root, told=log) == [1]
        assert f"delete {root} to begin anew" in log.read_text()


def test_a_step_that_is_not_finite_is_skipped_and_says_where(tiny_policy: Path, tmp_path: Path) -> None:
    assert together(2, poisoned_step, tmp_path / "out.pt", tiny_policy) == [0, 0]
    found = torch.load(tmp_path / "out.pt")
    assert found["problem"].startswith(f"not finite: loss of train-2, answer 2 ({found['language']}), gradient of lm.")
    assert found["same"] and found["moved"] and not found["next"]
