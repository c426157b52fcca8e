"""LoRA in the learner, compared with the PEFT library: gradients, merged weights, files; what checkpoints hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import peft
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM

from common.config import LoraConfig
from common.process import FatalError
from learner import resume
from learner.checkpoint import Checkpoints
from learner.export import export, export_adapters
from learner.train import policy as policy_module
from learner.train.logprob import LogitTransform
from learner.train.lora import Adapters, check_same_adapters
from learner.train.packing import Sample, pack
from learner.train.policy import Policy, full_weights
from learner.train.trainer import Trainer
from tests.learner.train.test_architectures import saved
from tests.support.groups import random_rollout
from tests.support.train_once import configuration, random_batch, record_steps, run_ranks, train_recorded

RANK, ALPHA = 4, 8
FLAGS = ["--lora.rank", str(RANK), "--lora.alpha", str(ALPHA)]
TARGETS = [*LoraConfig().targets]


def set_adapters(adapters: Adapters, seed: int) -> None:
    """Random A and B, the same ones on any number of ranks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapters.layers.values():
            for part in (layer.lora_A, layer.lora_B):
                whole = 0.2 * torch.randn(part.shape, generator=generator)
                if isinstance(part, DTensor):
                    whole = distribute_tensor(whole, part.device_mesh, part.placements)
                part.copy_(whole)


def random_samples(seed: int) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [Sample(random_rollout(rng), 0.0, weight=float(rng.normal())) for _ in range(8)]


def adapters_of(policy: Policy) -> Adapters:
    assert policy.adapters is not None
    return policy.adapters


def write_gradients(out: Path, model: Path, seed: int, *flags: str) -> None:
    """Writes the gradient of Σ weight · log-probability, what the reference says, the adapters and the exports."""
    trainer = Trainer(configuration(model, *FLAGS, *flags))
    policy, adapters = trainer.policy, adapters_of(trainer.policy)
    set_adapters(adapters, seed)
    mine = random_samples(seed)[dist.get_rank() :: trainer.ranks]
    for part in (mine[:2], mine[2:]):
        batch = pack(part)
        with torch.no_grad(), adapters.reference():
            reference_R = policy(batch)[0]
        (policy(batch)[0] @ batch.weight_R * trainer.ranks).backward()
    frozen = [name for name, value in policy.named_parameters() if not value.requires_grad]
    assert all(policy.get_parameter(name).grad is None for name in frozen)
    gradients = {}
    for name, value in policy.named_parameters():
        if value.requires_grad:
            assert value.dtype == torch.float32
            gradients[name.removeprefix("lm.")] = cast(DTensor, value.grad).full_tensor()
    merged = {name: value.clone() for name, value in full_weights(policy)}
    export(policy, None, out / "model")
    export_adapters(policy, str(model), out / "adapter")
    if dist.get_rank() == 0:
        dtypes = {str(policy.get_parameter(name).dtype) for name in frozen}
        found = {"gradients": gradients, "reference": reference_R, "merged": merged, "frozen": dtypes}
        torch.save(found, out / "found.pt")


@pytest.fixture(scope="module")
def results(
    tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory, module_seed: int
) -> dict[str, tuple[Path, dict[str, Any]]]:
    """What one rank, two ranks, and two ranks in bfloat16 find."""
    divisions: dict[str, tuple[int, list[str]]] = {
        "one": (1, []),
        "two": (2, ["--learner.activation_checkpointing", "true"]),
        "bfloat16": (2, ["--learner.param_dtype", "bfloat16"]),
    }
    found = {}
    for name, (ranks, flags) in divisions.items():
        out = tmp_path_factory.mktemp(name)
        assert run_ranks(ranks, write_gradients, out, tiny_policy, module_seed, *flags) == [0] * ranks
        found[name] = out, torch.load(out / "found.pt")
    return found


@pytest.fixture
def reference_model(tiny_policy: Path, results: dict[str, tuple[Path, dict[str, Any]]]) -> Iterator[peft.PeftModel]:
    """PEFT's model with the adapters that one rank has exported."""
    base = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    yield peft.PeftModel.from_pretrained(base, results["one"][0] / "adapter", is_trainable=True)


def logprobs(model: Any, sample: Sample) -> Tensor:
    rollout = sample.rollout
    ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.response_ids]).astype(np.int64))
    table = model(ids[None]).logits[0].log_softmax(-1)
    begin = len(rollout.prompt_ids) - 1
    return cast(Tensor, table[range(begin, len(ids) - 1), ids[begin + 1 :]])


def test_gradients_are_those_of_peft(
    results: dict[str, tuple[Path, dict[str, Any]]], reference_model: peft.PeftModel, module_seed: int
) -> None:
    samples = random_samples(module_seed)
    torch.stack([logprobs(reference_model, sample).sum() * sample.weight for sample in samples]).sum().backward()
    wanted = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): value.grad
        for name, value in reference_model.named_parameters()
        if value.grad is not None
    }
    for name, tolerance in (("one", 1e-5), ("two", 1e-5), ("bfloat16", 0.1)):
        found = results[name][1]["gradients"]
        assert found.keys() == wanted.keys() and len(found) == 2 * 2 * len(TARGETS)
        for key, gradient in wanted.items():
            assert gradient.norm() > 0 and (found[key] - gradient).norm() <= tolerance * gradient.norm(), (name, key)
    assert results["one"][1]["frozen"] == {"torch.float32"} and results["bfloat16"][1]["frozen"] == {"torch.bfloat16"}


def test_the_reference_is_the_model_without_adapters(
    results: dict[str, tuple[Path, dict[str, Any]]], reference_model: peft.PeftModel, module_seed: int
) -> None:
    last = random_samples(module_seed)[2:]  # of one rank's second micro-batch
    with torch.no_grad(), reference_model.disable_adapter():
        wanted = torch.cat([logprobs(reference_model, sample) for sample in last])
        torch.testing.assert_close(results["one"][1]["reference"], wanted, rtol=0, atol=1e-5)


def test_merged_weights_and_exports_are_those_of_peft_to_the_last_bit(
    results: dict[str, tuple[Path, dict[str, Any]]], reference_model: peft.PeftModel, tiny_policy: Path
) -> None:
    merged = cast(Any, reference_model.merge_and_unload())
    wanted = dict(merged.named_parameters())
    out, found = results["two"]
    assert found["merged"].keys() == wanted.keys()
    exported = AutoModelForCausalLM.from_pretrained(out / "model")
    assert exported.dtype == torch.float32
    plain = load_file(tiny_policy / "model.safetensors")
    for name, value in wanted.items():
        assert torch.equal(found["merged"][name], value) and torch.equal(exported.get_parameter(name), value), name
        assert torch.equal(value, plain[name]) != (name.split(".")[-2] in TARGETS)
    in_bfloat16 = results["bfloat16"][1]["merged"]
    name = "model.layers.1.mlp.up_proj.weight"
    change = wanted[name] - plain[name]
    torch.testing.assert_close(in_bfloat16[name], plain[name].bfloat16().float() + change, rtol=0, atol=1e-6)


# -- what a run keeps --------------------------------------------------------------------------------------------------


def test_a_run_that_is_killed_and_resumed_has_the_losses_of_an_unbroken_run(
    tiny_policy: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    """With dropout, whose masks come again; the checkpoints hold adapters alone, and other adapters are refused."""
    steps, flags = 5, [*FLAGS, "--lora.dropout", "0.2"]
    record = tmp_path / "record"
    assert run_ranks(1, record_steps, record, tiny_policy, steps, *flags) == [0]
    broken = (tmp_path / "broken", tiny_policy, record, tmp_path / "checkpoints", steps)
    assert run_ranks(1, train_recorded, *broken, int(rng.integers(2, steps)), *flags) == [-9]
    assert run_ranks(1, train_recorded, *broken, -1, *flags) == [0]
    found = {line[0]: line for line in map(json.loads, (tmp_path / "broken").read_text().splitlines())}
    unbroken = (tmp_path / "unbroken", tiny_policy, record, tmp_path / "checkpoints-0", steps)
    assert run_ranks(1, train_recorded, *unbroken, -1, *flags) == [0]
    wanted = [json.loads(line) for line in (tmp_path / "unbroken").read_text().splitlines()]
    assert [found[number] for number in range(steps)] == wanted, "losses must be equal to the last bit"
    assert len({loss for _, loss, _ in wanted}) == steps
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    kept = FileSystemReader(newest).read_metadata().state_dict_metadata
    tensors = [name for name in kept if name.startswith("model.")]
    assert len(tensors) == 2 * 2 * len(TARGETS) and all(name.endswith(("lora_A", "lora_B")) for name in tensors)
    assert {name.rpartition(".")[0].removeprefix("optim.state.") for name in kept if "exp_avg" in name} == {
        name.removeprefix("model.") for name in tensors
    }
    log = tmp_path / "log"
    other = ["--lora.rank", str(RANK), "--lora.alpha", "16"]
    assert run_ranks(1, train_recorded, *broken, -1, *other, output=log) == [1]
    assert "its adapters have lora.alpha = 8.0 (now 16.0)" in log.read_text()


def test_a_checkpoint_of_other_adapters_weights_or_another_model_is_refused(tiny_policy: Path, tmp_path: Path) -> None:
    adapters = adapters_of(make_policy(tiny_policy))
    saved = adapters.description()
    check_same_adapters(json.loads(json.dumps(saved)), adapters, "x")
    check_same_adapters(None, None, "x")
    with pytest.raises(FatalError, match=r"it holds all weights, and with lora.rank = 4 the run trains adapters alone"):
        check_same_adapters(None, adapters, "x")
    with pytest.raises(FatalError, match=r"it holds adapters alone, and with lora.rank = 0 the run trains all weights"):
        check_same_adapters(saved, None, "x")
    with pytest.raises(FatalError, match=r'lora.rank = 8 \(now 4\), lora.targets = \["q_proj"\]'):
        check_same_adapters({**saved, "rank": 8, "targets": ["q_proj"]}, adapters, "x")
    weights = load_file(tiny_policy / "model.safetensors")
    weights["model.norm.weight"][3] += 0.1
    for file in tiny_policy.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(FatalError, match="were trained on another model"):
        check_same_adapters(saved, adapters_of(make_policy(tmp_path)), "x")
    half = make_policy(tiny_policy, dtype=torch.bfloat16)
    check_same_adapters(saved, adapters_of(half), "x")  # the dtype in memory does not matter


def test_a_resumed_run_cannot_change_its_adapters_even_if_that_is_accepted(tiny_policy: Path, tmp_path: Path) -> None:
    directory = ["--run.dir", str(tmp_path)]
    kept = configuration(tiny_policy, *FLAGS, *directory).model_dump(mode="json")
    resume.check(configuration(tiny_policy, *FLAGS, *directory, "--lora.sync", "merged"), kept)
    for flags in (["--lora.rank", "0"], [*FLAGS, "--lora.alpha", "9"], [*FLAGS, "--lora.targets", '["o_proj"]']):
        with pytest.raises(FatalError, match="begun with adapters of another form"):
            resume.check(configuration(tiny_policy, *flags, *directory, "--resume.accept", "lora"), kept)


# -- the reference of the KL, dropout, targets ------------------------------------------------------------------------


def make_policy(
    model: Path, dtype: torch.dtype = torch.float32, *, reference_moves: bool = False, **settings: Any
) -> Policy:
    policy = Policy(str(model), temperature=1.0, head_chunk=64, dtype=dtype)
    config = LoraConfig(rank=RANK, alpha=ALPHA, **settings)
    policy.adapters = Adapters(policy.lm, config, 0, reference_moves=reference_moves)
    return policy


def move_reference(out: Path, model: Path) -> None:
    """Four steps in two stages, the second of which moves the reference, and the last step again from a checkpoint."""
    stages = "[{until = 0.5, kl = 0.05}, {kl = 0.05, reset_anchor = true}]"
    config = configuration(model, *FLAGS, "--learner.stages", stages, "--learner.steps", "4")
    trainer, kept = Trainer(config), Checkpoints(out.parent / f"{out.name}-checkpoints", kept=1)
    assert trainer.reference.copy is None, "a second copy of the model is what adapters spare"
    kls = []
    for number in range(4):
        if number == 3:
            kept.save(trainer.policy, trainer.optimizer, 3, {})
            kept.wait()
        kls.append(trainer.step(random_batch(number), number).means["kl"])
    resumed, latest = Trainer(config), kept.latest()
    assert latest is not None
    resumed.reference.resume(kept.load(latest.path, resumed.policy, resumed.optimizer), 3)
    kls.append(resumed.step(random_batch(3), 3).means["kl"])
    if dist.get_rank() == 0:
        out.write_text(json.dumps(kls))


def test_the_reference_moves_with_the_stage_and_survives_a_resume(tiny_policy: Path, tmp_path: Path) -> None:
    assert run_ranks(2, move_reference, tmp_path / "kl", tiny_policy) == [0, 0]
    first, second, third, fourth, again = json.loads((tmp_path / "kl").read_text())
    assert first == third == pytest.approx(0, abs=1e-9) and second > 1e-7 and fourth > 1e-7
    assert again == fourth


def _scaled(scale: float, _: Any) -> LogitTransform:
    return LogitTransform(scale)


def load_in_bfloat16(out: Path, *models: Path) -> None:
    """What is said of models, and of one whose logits the learner scales wrongly."""
    told = []
    for model, scale in ((models[0], 1.0), (models[0], 1.05), (models[1], None)):
        transform = policy_module.logit_transform if scale is None else partial(_scaled, scale)
        with patch.object(policy_module, "logit_transform", transform):
            try:
                trainer = Trainer(configuration(model, *FLAGS, "--learner.param_dtype", "bfloat16"))
                told.append(str(next(trainer.policy.parameters()).dtype))
            except FatalError as error:
                told.append(str(error))
    out.write_text(json.dumps(told))


def test_what_is_kept_in_bfloat16_is_checked_in_float32(tiny_policy: Path, tmp_path: Path) -> None:
    """A wrong scale of 5% is less than rounding makes in some models, as in the deep one, which is right."""
    saved(tmp_path / "deep", "GraniteConfig", 0, logits_scaling=4.0, num_hidden_layers=24)
    models, log = (tiny_policy, tmp_path / "deep"), tmp_path / "log"
    assert run_ranks(1, load_in_bfloat16, tmp_path / "told", *models, output=log) == [0], log.read_text()
    right, wrong, deep = json.loads((tmp_path / "told").read_text())
    assert right == deep == "torch.bfloat16"
    assert re.search(r"log-probabilities are not the model's.* and 0\.001 are allowed.*does to its logits", wrong)


def test_dropout_applies_where_gradients_are_computed(tiny_policy: Path, seed: int) -> None:
    policy = make_policy(tiny_policy, dropout=0.5)
    set_adapters(adapters_of(policy), seed)
    batch = pack(random_samples(seed))
    with torch.no_grad():
        first, second = policy(batch)[0], policy(batch)[0]
    assert torch.equal(first, second)
    dropped = policy(batch)[0]
    assert not torch.allclose(dropped, policy(batch)[0]) and not torch.allclose(dropped, first)


def test_a_target_that_the_model_has_not_is_named(tiny_policy: Path) -> None:
    known = re.escape(f"lora.targets has 'lm_head', and the linear layers of the model are {sorted(TARGETS)}")
    with pytest.raises(FatalError, match=known):
        make_policy(tiny_policy, targets=("q_proj", "lm_head"))
    few = adapters_of(make_policy(tiny_policy, targets=("q_proj", "down_proj")))
    assert [name.rpartition(".")[2] for name in few.layers] == ["q_proj", "down_proj"] * 2
