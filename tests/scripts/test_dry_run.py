"""Four backbones on 1, 4 and 8 GPUs, by arithmetic; and a model with windows and an image encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from common.config import load
from learner.train.packing import Sample, pack
from learner.train.policy import Policy
from learner.weights.buckets import bytes_of, cut_into_buckets
from learner.weights.leader import buckets_kept
from scripts.ops.dry_run import Machine, gpu_rows, main
from tests.support.groups import random_rollout

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ("qwen2.5-1.5b", "llama-3.2-1b", "gemma-3-4b", "qwen3-8b")
NEEDS_141_GB = {("gemma-3-4b", 1), ("qwen3-8b", 4)}  # of a GPU; all others fit into 80 GB


def parameters(name: str) -> int:
    """Numbers in the weights by the architectures: embeddings, attention, gated MLP, norms; the tower of SigLIP."""
    whole = json.loads((CONFIGS / "models" / f"{name}.json").read_text())
    text = whole.get("text_config", whole)
    h, width = text["hidden_size"], text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
    q, kv = text["num_attention_heads"] * width, text["num_key_value_heads"] * width
    layer = 2 * h * q + 2 * h * kv + 3 * h * text["intermediate_size"]
    small = {"qwen2.": 2 * h + q + 2 * kv, "qwen3-": 2 * h + 2 * width, "llama-": 2 * h, "gemma-": 4 * h + 2 * width}
    layer += small[name[:6]]  # norms and biases
    matrices = 1 if text.get("tie_word_embeddings", True) else 2
    count: int = matrices * text["vocab_size"] * h + text["num_hidden_layers"] * layer + h
    if "vision_config" in whole:
        sight = whole["vision_config"]
        v, patch, inner = sight["hidden_size"], sight["patch_size"], sight["intermediate_size"]
        seen = 4 * (v + 1) * v + (v + 1) * inner + (inner + 1) * v + 2 * 2 * v
        places = (sight["image_size"] // patch) ** 2
        count += (3 * patch**2 + 1) * v + places * v + sight["num_hidden_layers"] * seen + 2 * v  # last: a norm's
        count += v * h + v  # to the text's width, and a norm without bias
    return count


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gpus", [1, 4, 8])
def test_the_backbones_fit(name: str, gpus: int, capsys: pytest.CaptureFixture[str]) -> None:
    if (name, gpus) == ("qwen3-8b", 1):
        pytest.skip("131 GB of weights, gradients and moments fit with LoRA alone, which is a test of its own")
    files = [str(CONFIGS / file) for file in ("lrpo.toml", f"models/{name}.toml", f"gpus-{gpus}.toml")]
    large = ["--gpu-gb", "141"] if (name, gpus) in NEEDS_141_GB else []
    main([*files, "--shape", str(CONFIGS / "models" / f"{name}.json"), "--json", *large])
    rows = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["rows"]}
    counted = next(value for metric, value in rows.items() if metric.startswith("parameters"))
    assert counted == parameters(name) / 1e9
    ranks = {1: 1, 4: 2, 8: 4}[gpus]
    assert rows["learner: weights, gradients and Adam"] == pytest.approx(16 * parameters(name) / 1e9 / ranks)
    together = rows["learner: each GPU"] + (rows["engine: each GPU"] if gpus == 1 else 0)
    who = "learner, engine and reward process on one GPU" if gpus == 1 else "learner and reward process on one GPU"
    assert rows[who] == pytest.approx(together + 2)
    assert rows["answers a step"] == 2048 and rows["tokens a step, at most"] == pytest.approx(2048 * 1536 / 1e6)


def test_8b_parameters_are_as_published_and_fit_on_one_gpu_with_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    assert parameters("qwen3-8b") == 8_190_735_360
    files = [str(CONFIGS / file) for file in ("lrpo.toml", "models/qwen3-8b.toml", "lora.toml", "gpus-1.toml")]
    shape = ["--shape", str(CONFIGS / "models" / "qwen3-8b.json"), "--json"]
    main([*files, *shape])
    rows = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["learner: frozen weights"] == pytest.approx(2 * parameters("qwen3-8b") / 1e9)
    assert 70 < rows["learner, engine and reward process on one GPU"] < 80
    with pytest.raises(SystemExit):
        main([*files, *shape, "--lora.rank", "0"])
    capsys.readouterr()


@pytest.mark.parametrize("sync", ["adapter", "merged"])
def test_adapters_need_the_memory_of_the_frozen_weights_and_little_more(
    sync: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, rank = "qwen2.5-1.5b", 32
    files = [str(CONFIGS / file) for file in ("lrpo.toml", f"models/{name}.toml", "gpus-1.toml")]
    lora = ["--lora.rank", str(rank), "--lora.sync", sync]
    main([*files, "--shape", str(CONFIGS / "models" / f"{name}.json"), "--json", *lora])
    rows = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["rows"]}
    shape = json.loads((CONFIGS / "models" / f"{name}.json").read_text())
    h, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    kv = shape["num_key_value_heads"] * h // shape["num_attention_heads"]
    adapters = rank * layers * (2 * (h + h) + 2 * (h + kv) + 3 * (h + inner))
    assert rows["trained parameters, lora.rank = 32"] == pytest.approx(adapters / 1e6)
    assert rows["learner: frozen weights"] == pytest.approx(2 * parameters(name) / 1e9)
    assert rows["learner: adapters, gradients and Adam"] == pytest.approx(16 * adapters / 1e9)
    assert "learner: reference" not in rows and "learner: weights, gradients and Adam" not in rows
    sent = adapters if sync == "adapter" else parameters(name)
    assert rows["weights sent to each engine"] == pytest.approx(2 * sent / 1e9)
    slots = rows.get("engine: adapters", 0.0)
    assert slots == pytest.approx(4 * 2 * adapters / 1e9 if sync == "adapter" else 0.0)


def test_several_optimizer_steps_and_the_reference_of_a_stage_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    name = "qwen2.5-1.5b"
    files = [str(CONFIGS / file) for file in ("lrpo.toml", f"models/{name}.toml", "gpus-1.toml")]

    def counted(*flags: str) -> dict[str, float]:
        main([*files, "--shape", str(CONFIGS / "models" / f"{name}.json"), "--json", "--gpu-gb", "141", *flags])
        return {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["rows"]}

    work, batches = "work of a step in the layers, at most", "micro-batches a step and rank, at most"
    once, twice = counted("--learner.kl", "0.1"), counted("--learner.kl", "0.1", "--learner.passes", "2")
    assert twice[work] == pytest.approx(2 * once[work]) and twice[batches] == 2 * once[batches]
    none, parts = counted("--learner.kl", "0"), counted("--learner.kl", "0", "--learner.minibatches", "4")
    forward = once[work] - none[work]  # that of the reference policy
    assert parts[work] - none[work] == pytest.approx(0.75 * forward), "of all mini-batches but the first"
    staged = counted("--learner.kl", "0", "--learner.stages", "[{until = 0.5, kl = 0.0}, {kl = 0.1}]")
    assert none["learner: reference"] == 0 < staged["learner: reference"] == once["learner: reference"]
    assert staged[work] == once[work]


@pytest.fixture
def counted(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, float]]:
    """The figures for Qwen2.5-1.5B on GPUs of 141 GB with these files and flags."""

    def count(*arguments: str) -> dict[str, float]:
        name = "qwen2.5-1.5b"
        files = [str(CONFIGS / file) for file in ("lrpo.toml", f"models/{name}.toml", "gpus-4.toml")]
        main([*files, "--shape", str(CONFIGS / "models" / f"{name}.json"), "--json", "--gpu-gb", "141", *arguments])
        return {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)["rows"]}

    return count


def test_the_ranks_of_all_machines_share_weights_and_work(counted: Callable[..., dict[str, float]]) -> None:
    nodes = ("--run.rendezvous", "/shared", "--learner.nodes", "2")
    four, two_by_two = counted("--learner.ranks", "4"), counted(*nodes, "--learner.ranks", "2")
    by_machine = "host memory to load, all ranks of a machine"
    assert two_by_two.pop(by_machine) == four.pop(by_machine) / 2
    assert two_by_two == four
    held = "learner: weights, gradients and Adam"
    assert counted(*nodes, "--learner.replicas", "4")[held] == counted("--learner.ranks", "1")[held] == 4 * four[held]


def test_buckets_are_counted_as_they_are_cut_and_take_the_room_of_a_step(
    counted: Callable[..., dict[str, float]],
) -> None:
    """The embeddings are larger than sync.bucket_mb, and so are the buckets that a slow engine lets pile up."""
    config = AutoConfig.from_pretrained(CONFIGS / "models" / "qwen2.5-1.5b.json")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
    embeddings, layer = 2 * 151936 * 1536, sum(one.numel() for one in model.model.layers[0].parameters())

    def buffers(bucket_mb: float) -> int:
        largest = max(map(bytes_of, cut_into_buckets(shapes, "bfloat16", bucket_mb)))
        return buckets_kept(largest) * largest

    figures = counted()
    published, beyond = "learner: while it publishes, between steps", "learner: to publish, beyond a step"
    assert figures[published] == pytest.approx((embeddings + buffers(256)) / 1e9, rel=1e-3)
    assert buffers(256) == 2 * embeddings and figures[beyond] == 0, "where activations were"
    large = counted("--sync.bucket_mb", "600")
    assert large[published] == pytest.approx((embeddings + buffers(600)) / 1e9, rel=0.01)
    engine = ("--actor.engine_args.max_total_tokens", "1000000", "--actor.engine_args.mem_fraction_static", "0.9")
    gloo, shared = counted("--sync.backend", "gloo"), counted("--sync.transport", "shared", *engine)
    assert gloo[published] == shared[published] == pytest.approx(embeddings / 1e9, rel=1e-3)
    assert shared["learner: copy to publish"] == pytest.approx(2 * parameters("qwen2.5-1.5b") / 1e9)
    assert counted("--lora.rank", "8", "--lora.sync", "adapter")[published] == 0
    merged = counted("--lora.rank", "8", "--lora.sync", "merged")[published]
    assert merged == pytest.approx(figures[published] + 4 * layer / 1e9, rel=0.01)
    small = ("--learner.microbatch_tokens", "1536", "--learner.head_chunk", "16", "--sync.bucket_mb", "3000")
    tight = counted(*small, "--learner.kl", "0")
    transient = sum(
        tight[f"learner: {use}"] for use in ("gathered weights", "activations", "gradients on the way")
    )  # fmt: skip
    assert tight[beyond] == pytest.approx(tight[published] - transient) and tight[beyond] > 0
    kept = counted(*small, "--learner.kl", "0.1")
    assert kept[beyond] == pytest.approx(tight[beyond]), "the embeddings of the reference stay gathered"


def gpus(*flags: str, count: int = 0, learner: float = 40, engine: float = 30) -> dict[str, tuple[float, bool | None]]:
    """Value and verdict of each row about GPUs of 80 GB, for processes that need so much."""
    found = gpu_rows({"learner": learner, "engine": engine}, load([*flags]), Machine(80, count, 3, process_gb=1))
    return {row.metric: (row.value, row.ok) for row in found}


def test_processes_on_one_gpu_are_added_up() -> None:
    fraction = ["--actor.engine_args.mem_fraction_static", "0.4"]
    fixed = ["--actor.engine_args.max_total_tokens", "1000", "--actor.engine_args.mem_fraction_static", "0.9"]
    apart = {"learner: each GPU": (41, True), "engine: each GPU": (31, True)}
    assert gpus() == apart | {"learner and reward process on one GPU": (44, True)}
    assert gpus("--reward.device", "cpu") == apart
    assert gpus("--learner.ranks", "2", count=3)["learner: each GPU"] == (41, True), "two ranks and one engine"
    everything = "learner, engine and reward process on one GPU"
    for shared in (gpus(*fraction, "--sync.transport", "shared"), gpus(*fraction, "--learner.ranks", "2", count=2)):
        assert shared[everything] == (76, True), "the engine takes 0.4 of 80 GB, and needs less"
        assert shared["engine: each GPU, by mem_fraction_static"] == (32, True)
        assert shared["actor.engine_args.max_total_tokens, which a shared GPU needs"] == (0, False)
    assert gpus(*fraction, count=1, learner=50)[everything] == (86, False)
    assert gpus(*fraction, count=1, engine=33)["engine: each GPU, by mem_fraction_static"] == (32, False)
    shared = gpus(*fixed, count=1)
    assert shared[everything] == (75, True), "what it needs, and not 0.9 of the GPU"
    room, is_enough = shared["engine: room when the learner has begun, by mem_fraction_static"]
    assert room == pytest.approx(32.4) and is_enough
    assert gpus(*fixed, "--reward.device", "cpu", count=1)["learner and engine on one GPU"] == (72, True)
    assert gpus(*fixed, count=1, learner=46)[everything] == (81, False)


def test_a_model_too_large_to_share_a_gpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Qwen2.5-3B: what the learner and the engine need fits on a GPU of 80 GB each, and not together."""
    shape = json.loads((CONFIGS / "models" / "qwen2.5-1.5b.json").read_text())
    shape |= {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
    for name in ("layer_types", "max_window_layers"):
        shape.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(shape))
    files = [str(CONFIGS / file) for file in ("lrpo.toml", "models/qwen2.5-1.5b.toml", "gpus-1.toml")]
    with pytest.raises(SystemExit):
        main([*files, "--shape", str(tmp_path), "--json"])
    rows = {row["metric"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["learner: each GPU"]["value"] < 80 and rows["engine: each GPU"]["value"] < 80
    assert rows["learner, engine and reward process on one GPU"]["ok"] is False
    main([*files, "--shape", str(tmp_path), "--gpu-gb", "141", "--json"])


def test_what_does_not_fit_or_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(CONFIGS / file) for file in ("lrpo.toml", "models/gemma-3-4b.toml", "gpus-1.toml")]
    shape = ["--shape", str(CONFIGS / "models" / "gemma-3-4b.json")]
    with pytest.raises(SystemExit) as error:
        main([*files, *shape])
    assert error.value.code == 1 and "MISSED" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="/nowhere"):
        main([*files, "--shape", "/nowhere"])
    main([*files, *shape, "--text", "--gpu-gb", "141", "--json"])
    assert "Gemma3ForCausalLM" in capsys.readouterr().out, "without the image encoder"


@pytest.mark.parametrize("images", [True, False])
def test_windows_and_image_encoders_are_as_in_transformers(
    images: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Log-probabilities of packed sequences longer than the window, against one sequence after the other."""
    text = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 7, "initializer_range": 0.3,
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    torch.manual_seed(0)
    whole = Gemma3ForConditionalGeneration(config)
    (whole if images else AutoModelForCausalLM.from_config(config.get_text_config())).save_pretrained(tmp_path)
    rollouts = [random_rollout(rng) for _ in range(5)]
    got, _ = Policy(str(tmp_path), temperature=1.0, head_chunk=8)(pack([Sample(one, 0.0) for one in rollouts]))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    wanted = []
    for one in rollouts:
        ids = torch.from_numpy(np.concatenate([one.prompt_ids, one.response_ids]).astype(np.int64))[None]
        table = plain(ids).logits[0].log_softmax(-1)
        begin = len(one.prompt_ids)
        wanted.append(table[range(begin - 1, ids.shape[1] - 1), ids[0, begin:]])
    torch.testing.assert_close(got, torch.cat(wanted), atol=2e-4, rtol=1e-3)
