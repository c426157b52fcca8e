"""The check of a model says for each topic what was found, and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3TextConfig, PreTrainedConfig, SmolLM3Config

from common.config import LoraConfig
from learner.train.fidelity import first_layers
from learner.train.lora import Adapters
from scripts.ops import check

SMALL = ["--data.max_prompt_tokens", "100", "--sampling.max_new_tokens", "100", "--run.languages", '["en", "de"]']


def checked(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, list[dict[str, Any]]]:
    """The lines by topic."""
    try:
        check.main([*arguments, "--json"])
        ended: object = 0
    except SystemExit as end:
        ended = end.code
    found = json.loads(capsys.readouterr().out)["lines"]
    assert ended == code, found
    return {topic: [line for line in found if line["topic"] == topic] for topic in {line["topic"] for line in found}}


def test_a_model_that_can_be_trained(tiny_policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = checked(capsys, str(tiny_policy), *SMALL)
    assert {line["verdict"] for lines in found.values() for line in lines} == {"ok"}
    assert "the embedding, too" in found["model"][0]["text"] and "in 2 layers" in found["model"][0]["text"]
    difference = float(found["agreement"][0]["text"].split("are ")[1].split(" nats")[0])
    assert difference < 1e-5
    assert found["context"][0]["text"].startswith("512 tokens")
    assert "it takes a system turn" in found["chat template"][0]["text"]
    assert "'tag', of tag, system, select" in found["asking"][0]["text"] and "2 of 2" in found["asking"][0]["text"]
    assert found["end of answers"][0]["text"] == "<|im_end|> (2)"
    layers = AutoModelForCausalLM.from_pretrained(tiny_policy).get_decoder().layers
    linear = [module for module in layers.modules() if isinstance(module, torch.nn.Linear)]
    trained = 16 * sum(one.in_features + one.out_features for one in linear)
    assert f"{trained / 1e6:.2f} million" in found["adapters"][0]["text"] and "q_proj" in found["adapters"][0]["text"]
    assert "lora.rank = 0 trains all weights" in found["adapters"][0]["text"]
    assert found["memory"][0]["text"].startswith("counted for GPUs of 80 GB (--gpu-gb); this machine has none")
    assert len(found["memory"]) >= 3 and all("GB" in line["text"] for line in found["memory"])


def test_what_is_wrong_is_told_with_what_to_do(
    tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_policy, model)
    (model / "chat_template.jinja").write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ strftime_now('%Y') }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
        "{% if enable_thinking %}<think>{% endif %}"
    )
    flags = [
        "--run.languages",
        '["en", "fr"]',
        "--sampling.max_new_tokens",
        "500",
        "--learner.microbatch_tokens",
        "9999",
    ]
    found = checked(capsys, str(model), *flags, "--gpu-gb", "0.001", code=1)
    verdicts = {topic: {line["verdict"] for line in lines} for topic, lines in found.items()}
    assert verdicts["context"] == {"NO"} and "lower one of them" in found["context"][0]["text"]
    assert verdicts["chat template"] == {"ok", "note"} and "takes no system turn" in found["chat template"][0]["text"]
    assert "model.date = 2024-07-26" in found["chat template"][0]["text"]
    assert verdicts["asking"] == {"NO"} and '"system" or "select"' in found["asking"][0]["text"]
    assert "1 of 2" in found["asking"][0]["text"]
    assert verdicts["end of answers"] == {"note"}, "the tokenizer has one, the template has not"
    assert "NO" in verdicts["memory"] and verdicts["agreement"] == {"ok"}
    lenient = checked(capsys, str(model))
    assert {line["verdict"] for lines in lenient.values() for line in lines} == {"ok", "note"}, "nothing was asked for"
    (tmp_path / "empty").mkdir()
    nothing = checked(capsys, str(tmp_path / "empty"), code=1)
    assert [*nothing] == ["model"] and nothing["model"][0]["verdict"] == "NO"
    assert "config.json" in nothing["model"][0]["text"] and "--shape" not in nothing["model"][0]["text"]


def test_a_model_of_the_hub_that_may_not_be_asked_is_told_once_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = checked(capsys, "nobody/nothing", *SMALL, code=1)
    assert [*found] == ["model"] and len(found["model"]) == 1
    assert "set HF_HUB_OFFLINE=0 to ask it" in found["model"][0]["text"]
    assert "internet connection" not in found["model"][0]["text"]


def test_a_model_without_a_chat_template_is_told_once_what_to_do(
    tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_policy, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    found = checked(capsys, str(tmp_path / "model"), *SMALL, code=1)
    told = [line["text"] for lines in found.values() for line in lines if "template" in line["text"]]
    assert len(told) == 1 and "use the instruction-tuned version" in told[0]
    assert found["chat template"][0]["verdict"] == "NO" and not {"asking", "end of answers"} & found.keys()
    assert found["agreement"][0]["verdict"] == "ok", "the weights are fine"


@pytest.mark.parametrize(("settings", "verdict"), [({"temperature": 0.6}, "ok"), ({"length_penalty": 0.5}, "NO")])
def test_a_model_that_could_not_be_exported_is_told(
    settings: dict[str, float], verdict: str, tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_policy, tmp_path / "model")
    (model / "generation_config.json").write_text(json.dumps(settings))
    found = checked(capsys, str(model), *SMALL, code=int(verdict == "NO"))
    (line,) = found["export"]
    assert line["verdict"] == verdict and ("length_penalty" in line["text"]) == (verdict == "NO")
    assert found["context"][0]["verdict"] == "ok", "the other questions are answered all the same"


def test_of_a_large_model_the_first_layers_are_compared(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_policy, model)
    config: Any = AutoConfig.from_pretrained(model, num_hidden_layers=6, layer_types=["full_attention"] * 6)
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    monkeypatch.setattr(check, "_WHOLE", 1000)
    found = checked(capsys, str(model), *SMALL)
    assert "in 6 layers" in found["model"][0]["text"] and "in the first 4 of 6 layers" in found["agreement"][0]["text"]


def test_the_adapters_are_those_that_would_be_trained(tiny_policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--lora.rank", "4", "--lora.targets", '["q_proj", "v_proj"]']
    found = checked(capsys, str(tiny_policy), *SMALL, *flags)["adapters"][0]
    policy = AutoModelForCausalLM.from_pretrained(tiny_policy)
    wanted = Adapters(policy, LoraConfig(rank=4, targets=("q_proj", "v_proj")), 0)
    assert f"rank 4 on {len(wanted.layers)} layers, q_proj, v_proj: {wanted.parameters / 1e6:.2f} mill" in found["text"]
    assert found["verdict"] == "ok" and "trains all" not in found["text"]
    unknown = checked(capsys, str(tiny_policy), *SMALL, "--lora.rank", "4", "--lora.targets", '["fc1"]', code=1)
    assert unknown["adapters"][0]["verdict"] == "NO" and "set lora.targets to some" in unknown["adapters"][0]["text"]


@pytest.mark.parametrize(("config", "kept"), [(Gemma3TextConfig(), 6), (SmolLM3Config(), 4)])
def test_the_first_layers_are_of_every_kind(config: PreTrainedConfig, kept: int) -> None:
    cut: Any = first_layers(config)
    assert cut.num_hidden_layers == kept == len(cut.layer_types) and set(cut.layer_types) == set(config.layer_types)
    assert config.num_hidden_layers > kept
