"""The learner's log-probabilities and gradients are the model's own, for every architecture that it accepts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from safetensors.torch import load_file
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma3Config,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from common.config import LearnerConfig, LoraConfig
from common.process import FatalError
from learner.checkpoint import Checkpoints
from learner.export import export
from learner.generation_settings import add_stop_ids, mend_sampling, try_to_save
from learner.train import kernels
from learner.train.attention import PACKED_ATTENTION, packed_attention
from learner.train.fidelity import check_fidelity, compare, rounding_difference
from learner.train.logprob import LogitTransform
from learner.train.lora import Adapters
from learner.train.optimizer import make_optimizer, take_step
from learner.train.packing import Sample, pack
from learner.train.policy import Policy, full_weights, logit_transform, published_shapes, shard
from tests.support.groups import random_rollout

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
WIDE = {"head_dim": 16}  # not hidden_size / num_attention_heads
ALTERNATING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2}
EXPERTS = {"num_experts_per_tok": 2}  # of two: a choice between experts that are nearly as good turns on rounding

# By name: the configuration class and what it is given besides the sizes.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2 window": ("Qwen2Config", {"use_sliding_window": True, **ALTERNATING}),
    "qwen3": ("Qwen3Config", WIDE),
    "mistral": ("MistralConfig", {"sliding_window": 6, **WIDE}),
    "gemma": ("GemmaConfig", WIDE),
    "gemma2": ("Gemma2Config", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, **WIDE, **ALTERNATING}),
    "gemma3": ("Gemma3TextConfig", WIDE | ALTERNATING),
    "granite": ("GraniteConfig", {"logits_scaling": 4.0, **MULTIPLIERS}),
    "cohere": ("CohereConfig", {"logit_scale": 0.3, "use_qk_norm": True}),
    "cohere2": ("Cohere2Config", {"logit_scale": 0.3, **ALTERNATING}),
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.5}),  # its head has a bias
    "phi3": ("Phi3Config", {"sliding_window": 6}),
    "olmo2": ("Olmo2Config", {}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "gpt-oss": ("GptOssConfig", {**EXPERTS, "num_local_experts": 2, **WIDE, **ALTERNATING}),
}


def saved(directory: Path, kind: str, seed: int, **settings: Any) -> str:
    """A random model in a directory, in which also norms and biases are random."""
    config = getattr(transformers, kind)(**SIZES | settings)
    return save_randomised(AutoModelForCausalLM.from_config(config), directory, seed)


def save_randomised(model: PreTrainedModel, directory: Path, seed: int) -> str:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return str(directory)


def load(path: str) -> Policy:
    return Policy(path, temperature=1.0, head_chunk=7)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_and_gradients_are_those_of_transformers(
    name: str, compiled: bool, tmp_path: Path, seed: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled: the functions that would be, without generated code, which tests/learner/train/test_fused.py has."""
    monkeypatch.setattr(kernels, "generated_kernel", lambda function: function)
    kind, settings = ARCHITECTURES[name]
    path = saved(tmp_path, kind, seed, **settings)
    samples = [Sample(random_rollout(rng), 0.0) for _ in range(4)]
    policy = Policy(path, temperature=1.0, head_chunk=7, compiled=compiled)
    assert check_fidelity(policy).difference < 1e-5

    logp, _ = policy(pack(samples))
    weights = torch.cat([torch.full((n,), 1 / n) for n in (len(one.rollout.response_ids) for one in samples)])
    (-logp * weights).sum().backward()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    for sample, part in zip(samples, logp.split([len(one.rollout.response_ids) for one in samples]), strict=True):
        prompt, response = sample.rollout.prompt_ids, sample.rollout.response_ids
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        out = model(input_ids=ids, labels=labels, use_cache=False)
        wanted = out.logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(part, wanted, rtol=1e-5, atol=2e-5)
        out.loss.backward()  # the mean over the response

    for key, parameter in model.named_parameters():
        theirs, ours = parameter.grad, policy.get_parameter(f"lm.{key}").grad
        assert (theirs is None) == (ours is None), key
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()) + 1e-7, msg=key)


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def with_images(**text: Any) -> PreTrainedConfig:
    sees = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14}  # fmt: skip
    return Gemma3Config(text_config=SIZES | WIDE | text, vision_config=sees, mm_tokens_per_image=4, image_token_index=9,
                        boi_token_index=10, eoi_token_index=11)  # fmt: skip


@pytest.mark.parametrize("name", ["phi", "qwen2", "gemma2", "gpt-oss", "qwen3 moe", "mixtral", "gemma3 with images"])
def test_published_weights_are_those_of_the_checkpoint(name: str, mesh: DeviceMesh, tmp_path: Path, seed: int) -> None:
    """Under its names, which are not the model's own where it has experts or an image encoder."""
    more: dict[str, tuple[str, dict[str, Any]]] = {
        "qwen3 moe": ("Qwen3MoeConfig", {**EXPERTS, "num_experts": 2, "moe_intermediate_size": 16, **WIDE}),
        "mixtral": ("MixtralConfig", {**EXPERTS, "num_local_experts": 2}),
    }
    if name == "gemma3 with images":
        save_randomised(AutoModelForCausalLM.from_config(with_images()), tmp_path, seed)
    else:
        kind, settings = (ARCHITECTURES | more)[name]
        saved(tmp_path, kind, seed, **settings)
    policy = load(str(tmp_path))
    assert check_fidelity(policy).difference < 1e-5
    sharded = shard(policy, mesh, torch.float32)
    wanted = load_file(tmp_path / "model.safetensors")
    shapes = published_shapes(sharded)
    found = [(key, tensor.clone()) for key, tensor in full_weights(sharded)]
    assert [(key, list(tensor.shape)) for key, tensor in found] == list(shapes.items()), "in the same order"
    assert shapes.keys() == wanted.keys()
    for key, tensor in found:
        assert torch.equal(tensor, wanted[key]), key


def test_layers_that_are_computed_again_and_sharded_have_the_same_gradient(
    mesh: DeviceMesh, tmp_path: Path, seed: int, rng: np.random.Generator
) -> None:
    """Scores in the open are computed again within a layer that is."""
    kind, settings = ARCHITECTURES["gemma2"]
    path, batch, found = saved(tmp_path, kind, seed, **settings), pack([Sample(random_rollout(rng), 0.0)] * 2), []
    for again in (False, True):
        policy = Policy(path, temperature=1.0, head_chunk=7, checkpointing=again)
        policy = shard(policy, mesh, torch.float32) if again else policy
        policy(batch)[0].sum().backward()
        grads = {key: one.grad for key, one in policy.named_parameters() if one.grad is not None}
        found.append({key: one.full_tensor() if isinstance(one, DTensor) else one for key, one in grads.items()})
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_rounding_is_told_from_another_model(mesh: DeviceMesh, tmp_path: Path, seed: int) -> None:
    policy = load(saved(tmp_path, "GraniteConfig", seed, logits_scaling=4.0))
    agreement = check_fidelity(policy)
    sharded = shard(policy, mesh, torch.bfloat16)
    apart, allowed = rounding_difference(sharded, agreement, torch.device("cpu"))
    assert 0 < agreement.difference < apart < allowed
    sharded.transform = LogitTransform(2.0)
    assert rounding_difference(sharded, agreement, torch.device("cpu"))[0] > allowed


def test_weights_in_bfloat16_are_compared_and_never_judged(tmp_path: Path, seed: int) -> None:
    policy = Policy(saved(tmp_path, "LlamaConfig", seed), temperature=1.0, head_chunk=7, dtype=torch.bfloat16)
    agreement = compare(policy)
    assert agreement.dtype == torch.bfloat16 and 0 < agreement.difference < 0.1
    with pytest.raises(ValueError, match=r"weights in torch\.bfloat16"):
        check_fidelity(policy)


@pytest.mark.parametrize(("known", "exported"), [(2, [2, 7]), ([2, 7], [2, 7]), (None, 7)])
def test_the_exported_model_ends_its_answers_as_in_training(
    known: Any, exported: Any, mesh: DeviceMesh, tmp_path: Path, seed: int
) -> None:
    policy = load(saved(tmp_path / "model", "LlamaConfig", seed))
    settings = policy.lm.generation_config
    assert settings is not None
    settings.eos_token_id = known
    add_stop_ids(policy.lm, [7])
    export(shard(policy, mesh, torch.float32), None, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == exported


@pytest.mark.parametrize(
    ("values", "exported"),
    [
        ({"max_new_tokens": 8}, {"max_new_tokens": 8, "do_sample": None}),
        ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9, "do_sample": True}),
        ({"do_sample": True, "top_k": 20}, {"top_k": 20, "do_sample": True}),
        ({"do_sample": False, "top_k": 20, "top_p": 0.7}, {"top_k": None, "top_p": None, "do_sample": False}),
        ({"temperature": 0.0, "top_p": 0.9}, {"temperature": None, "top_p": None, "do_sample": None}),
        ({"do_sample": False, "temperature": 0.0}, {"temperature": None, "do_sample": False}),
        ({"do_sample": True, "temperature": 0.0}, {"temperature": None, "do_sample": False}),
        ({"num_beams": 2, "top_k": 20}, {"num_beams": 2, "top_k": None, "do_sample": None}),
        ({"penalty_alpha": 0.6, "top_k": 4}, {"penalty_alpha": 0.6, "top_k": None, "do_sample": None}),
        ({"min_p": 0.0}, {"min_p": None, "do_sample": None}),  # as the rest, it only switches a filter off
        ({"top_k": 0}, {"top_k": None, "do_sample": None}),
        ({"top_p": 1.0, "epsilon_cutoff": 0.0}, {"top_p": 1.0, "epsilon_cutoff": 0.0, "do_sample": None}),
        ({"do_sample": False, "min_p": 0.0, "top_k": 0}, {"min_p": None, "top_k": None, "do_sample": False}),
        ({"temperature": 0.0, "top_k": 0}, {"temperature": None, "top_k": None, "do_sample": None}),
        ({"temperature": 0.6, "top_k": 0}, {"temperature": 0.6, "top_k": 0, "do_sample": True}),
        ({"do_sample": True, "top_k": 0, "min_p": 0.0}, {"top_k": 0, "min_p": 0.0, "do_sample": True}),
    ],
)  # fmt: skip
def test_settings_that_transformers_reads_and_does_not_write_are_mended(
    values: dict[str, Any],
    exported: dict[str, Any],
    mesh: DeviceMesh,
    tmp_path: Path,
    seed: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = saved(tmp_path / "model", "LlamaConfig", seed)
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": 2} | values))
    policy = load(path)
    mend_sampling(policy.lm, path)
    try_to_save(policy.lm, path)
    changed = values | exported != {"do_sample": None} | values
    assert (f"generation_config.json of {path} is mended" in caplog.text) == changed
    export(shard(policy, mesh, torch.float32), None, tmp_path / "out")
    found = GenerationConfig.from_pretrained(tmp_path / "out")
    assert {name: getattr(found, name) for name in exported} == exported
    if "penalty_alpha" in values:
        return  # transformers has contrastive search elsewhere, and refuses it before the export as after it
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    question = torch.tensor([[5, 6, 7]])
    answers = {tuple(model.generate(question, max_new_tokens=8)[0].tolist()) for _ in range(4)}
    assert (len(answers) > 1) == bool(exported["do_sample"]), "sampled or not, as the file says"


def test_a_temporary_directory_that_cannot_be_written_is_not_the_models_fault(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(saved(tmp_path / "model", "LlamaConfig", seed))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(FatalError, match=rf"temporary directory.*No such file.*{tmp_path}/absent.*TMPDIR"):
        try_to_save(policy.lm, "model")


def test_what_cannot_be_exported_is_said(mesh: DeviceMesh, tmp_path: Path, seed: int) -> None:
    path = saved(tmp_path / "model", "LlamaConfig", seed)
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"num_beams": 1, "length_penalty": 0.5}))
    policy = load(path)
    with pytest.raises(
        FatalError, match=rf"could not be exported.*generation_config.json that {path} has.*length_penalty"
    ):
        try_to_save(policy.lm, path)
    (tmp_path / "out").write_text("a file where the directory should be")
    with pytest.raises(FatalError, match=rf"cannot export the model to {tmp_path}/out: .*the same command exports it"):
        export(shard(policy, mesh, torch.float32), None, tmp_path / "out")
    (tmp_path / "out").unlink()
    with pytest.raises(FatalError, match=rf"cannot export the model to {tmp_path}/out: .*length_penalty"):
        export(policy, None, tmp_path / "out")


def test_a_run_of_a_model_with_an_image_encoder_resumes_after_a_step(
    mesh: DeviceMesh, tmp_path: Path, seed: int, rng: np.random.Generator
) -> None:
    save_randomised(AutoModelForCausalLM.from_config(with_images()), tmp_path / "model", seed)
    batch, found = pack([Sample(random_rollout(rng), 0.0)] * 2), []
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    for resumes in (False, True):
        policy = shard(load(str(tmp_path / "model")), mesh, torch.float32)
        optimizer = make_optimizer([one for one in policy.parameters() if one.requires_grad], LearnerConfig(lr=1e-3))
        if resumes:
            latest = checkpoints.latest()
            assert latest is not None
            checkpoints.load(latest.path, policy, optimizer)
        for _ in range(1 if resumes else 2):
            policy(batch)[0].sum().backward()
            take_step(optimizer)
            optimizer.zero_grad()
            if not checkpoints.latest():
                checkpoints.save(policy, optimizer, 1, {})
                checkpoints.wait()
        found.append({key: one.clone() for key, one in full_weights(policy)})
    assert any("vision_tower." in key for key in found[0]), "it is published all the same"
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key


@pytest.mark.parametrize("rank", [0, 2])
def test_an_export_says_its_dtype_of_every_part(rank: int, mesh: DeviceMesh, tmp_path: Path, seed: int) -> None:
    """What is frozen beside adapters is kept in bfloat16, and all of an export is in float32."""
    model = AutoModelForCausalLM.from_config(with_images(), dtype=torch.bfloat16)
    path = save_randomised(model, tmp_path / "model", seed)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["text_config"]["dtype"] == "bfloat16"
    dtype = torch.bfloat16 if rank else torch.float32
    policy = Policy(path, temperature=1.0, head_chunk=7, dtype=dtype)
    if rank:
        policy.adapters = Adapters(policy.lm, LoraConfig(rank=rank), seed)
    export(shard(policy, mesh, dtype), None, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {config["dtype"], config["text_config"]["dtype"], config["vision_config"]["dtype"]} == {"float32"}
    assert {one.dtype for one in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "GPT2Config": ({}, r"model type 'gpt2'.*no attribute 'layers'"),
    "GPTJConfig": ({"rotary_dim": 8}, r"model type 'gptj'.*attention cannot be exchanged"),
    "StableLmConfig": ({}, r"model type 'stablelm'.*does not hand the boundaries"),
    "Lfm2Config": (
        {"layer_types": ["conv", "full_attention"]},
        r"Lfm2ForCausalLM \(model type 'lfm2'\) is off by .*packed sequences see one another",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_architecture_that_cannot_be_trained_is_refused_by_name(kind: str, tmp_path: Path, seed: int) -> None:
    settings, message = REFUSED[kind]
    path = saved(tmp_path, kind, seed, **settings)
    with pytest.raises(FatalError, match=message):
        check_fidelity(load(path))


@pytest.mark.parametrize(
    ("name", "ignored", "part"),
    [
        ("granite", "transform", "does to its logits"),
        ("gemma2", "transform", "does to its logits"),
        ("gemma2", "softcap", "the attention or the layers"),
        ("cohere2", "sliding_window", "beyond its attention window"),
    ],
)
def test_what_would_be_left_out_in_silence_is_found_and_named(
    name: str, ignored: str, part: str, tmp_path: Path, seed: int
) -> None:
    kind, settings = ARCHITECTURES[name]
    if ignored == "sliding_window":
        settings = settings | {"sliding_window": 30}  # longer than the sequences
    policy = load(saved(tmp_path, kind, seed, **settings))
    if ignored == "transform":
        policy.transform = LogitTransform()
    else:
        without: Any = lambda *given, **more: packed_attention(*given, **more | {ignored: None})  # noqa: E731
        AttentionInterface.register(PACKED_ATTENTION, without)
    try:
        with pytest.raises(FatalError, match=rf"model type '{policy.lm.config.model_type}'.*What differs is .*{part}"):
            check_fidelity(policy)
    finally:
        AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    policy.transform = logit_transform(policy.lm.config)
    assert check_fidelity(policy).difference < 1e-5
    assert getattr(policy.lm.config, "sliding_window", None) == settings.get("sliding_window"), "as it was before"


@pytest.mark.parametrize("window", [None, 300])
def test_scores_in_the_open_are_those_of_one_softmax(window: int | None, seed: int) -> None:
    """Over more queries than are computed at a time, with their gradients."""
    torch.manual_seed(seed)
    length, heads, keys, width = 1500, 2, 1, 4
    q, k, v = (torch.randn(1, n, length, width, dtype=torch.float64, requires_grad=True) for n in (heads, keys, keys))
    sinks = torch.randn(heads, dtype=torch.float64, requires_grad=True)
    bounds, upstream = torch.tensor([0, 30, length], dtype=torch.int32), torch.randn(1, length, heads, width).double()
    ours, _ = packed_attention(
        torch.nn.Identity(), q, k, v, None, sliding_window=window, softcap=1.5, s_aux=sinks, cu_seq_lens_q=bounds
    )
    found = torch.autograd.grad((ours * upstream).sum(), (q, k, v, sinks))
    position = torch.arange(length)
    lag, part = position[:, None] - position, (position >= 30)
    seen = (lag >= 0) & (part[:, None] == part) & (lag < (window or length))
    scores = 1.5 * torch.tanh(q @ k.transpose(2, 3) / width**0.5 / 1.5)
    scores = torch.cat([scores.masked_fill(~seen, -torch.inf), sinks.view(1, -1, 1, 1).expand(1, -1, length, 1)], -1)
    wanted = (scores.softmax(-1)[..., :-1] @ v).transpose(1, 2)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)  # ours computes scores in float32
    exact = torch.autograd.grad((wanted * upstream).sum(), (q, k, v, sinks))
    for mine, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
