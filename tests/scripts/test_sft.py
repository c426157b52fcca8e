"""Supervised fine-tuning: the loss of a step, tags that are added and learned, and several ranks."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import trl
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from common.config import ModelConfig
from common.gpus import has_cuda
from common.languages import CODES, tag
from common.process import FatalError
from common.prompts import PROMPT_STYLES, ChatTemplate
from common.tokenizer import load_tokenizer
from scripts.data import sft
from tests.support import processes

TOLERANCE = 0.02 if has_cuda() else 1e-4  # a GPU computes in bfloat16
ANSWERS = ("Tokyo", "東京です。")


def rows(languages: list[str]) -> list[dict[str, Any]]:
    """Examples of different lengths, whose answers depend on the language alone."""
    chats = [[{"role": "user", "content": "Capital of Japan?" + "?" * (n % 5)}] for n in range(len(languages))]
    return [
        {"messages": chat, "answer": ANSWERS[n % 2], "language": language}
        for n, (chat, language) in enumerate(zip(chats, languages, strict=True))
    ]


def answer_losses(model: Any, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], answer: str) -> Tensor:
    """The cross-entropy of each token of an answer and of its end, [tokens] float64, with one forward pass."""
    messages = PROMPT_STYLES["tag"].style_messages(row["messages"], row["language"])
    prompt = tokenizer.encode(
        str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)),
        add_special_tokens=False,
    )
    answer_ids = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer_ids])).logits[0, len(prompt) - 1 : -1]
    return cross_entropy(logits, torch.tensor(answer_ids), reduction="none")


def test_the_loss_of_a_step_is_the_mean_over_the_answer_tokens_of_all_its_examples(
    tiny_policy: Path, tmp_path: Path
) -> None:
    examples = rows(["en", "de", "zh", "en", "ja", "en"])
    trainer = sft.build_trainer(
        str(tiny_policy), examples, tmp_path, style="tag", epochs=1, batch_size=6, micro_batch=2, lr=1e-3, seed=0
    )
    assert trainer.args.gradient_accumulation_steps == 3, "the mean must not be one of means"
    trainer.train()
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float64)
    tokenizer = trainer.processing_class
    expected = torch.cat([answer_losses(model, tokenizer, row, row["answer"]) for row in examples]).mean()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(expected), abs=TOLERANCE)


def test_missing_tags_get_tokens_and_rows_of_the_embeddings_and_are_learned(tiny_policy: Path, tmp_path: Path) -> None:
    old, base = load_tokenizer(str(tiny_policy)), tmp_path / "base"
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_policy)
    model.resize_token_embeddings(len(old))  # no row is left for another tag
    model.save_pretrained(base)
    old.save_pretrained(base)
    missing = [code for code in sorted(CODES) if len(old.encode(tag(code), add_special_tokens=False)) > 1]
    examples = rows(["en", *missing])
    pq.write_table(pa.Table.from_pylist(examples), tmp_path / "examples.parquet")
    out = tmp_path / "model"
    training = ["--epochs", "12", "--batch", "16", "--micro-batch", "16", "--lr", "3e-3"]
    sft.main([str(base), str(tmp_path / "examples.parquet"), "--out", str(out), *training])
    tokenizer = load_tokenizer(str(out))
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float64)
    assert tokenizer.encode(tag("en")) == old.encode(tag("en"))
    assert {len(tokenizer.encode(tag(code), add_special_tokens=False)) for code in missing} == {1}
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == len(old) + len(missing)
    for row in examples:
        likely, other = (float(answer_losses(model, tokenizer, row, answer).mean()) for answer in ANSWERS)
        assert (likely < other) == (row["answer"] == ANSWERS[0]), row["language"]
    assert not list(out.glob("*.bin")), "a directory to publish holds no pickle"


def test_a_model_is_written_again_whatever_transformers_says_of_its_settings(tiny_policy: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_policy, tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9}))
    common: dict[str, Any] = {"style": "tag", "epochs": 1, "batch_size": 2, "micro_batch": 2, "lr": 1e-3, "seed": 0}
    sft.build_trainer(str(base), rows(["en", "de"]), tmp_path / "out", **common).save_model()
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (found["do_sample"], found["temperature"], found["top_p"]) == (True, 0.6, 0.9)
    (base / "generation_config.json").write_text(json.dumps({"length_penalty": 0.5}))
    with pytest.raises(FatalError, match=r"could not be exported.*length_penalty"):
        sft.build_trainer(str(base), rows(["en", "de"]), tmp_path / "out", **common)


@pytest.mark.skipif(has_cuda(), reason="two ranks would need two GPUs")
def test_two_ranks_train_as_one_does(tiny_policy: Path, tmp_path: Path) -> None:
    examples = rows(["en", "de", "zh", "fr"] * 2)
    examples[-1]["language"] = "tir"  # which each rank has to be told of
    pq.write_table(pa.Table.from_pylist(examples), tmp_path / "examples.parquet")
    trained = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}"
        words = [str(tiny_policy), str(tmp_path / "examples.parquet"), "--out", str(out), "--ranks", str(ranks)]
        words += ["--run.other_languages", '{tir = "Tigrinya"}']
        command = [sys.executable, "-m", "scripts.data.sft", *words, "--batch", "8", "--lr", "1e-3"]
        processes.run(command, check=True, timeout=800, env={**os.environ, "OMP_NUM_THREADS": "1"})
        trained.append(load_file(out / "model.safetensors"))
    for name, weight in trained[0].items():
        torch.testing.assert_close(trained[1][name], weight, rtol=0, atol=1e-5)


def test_the_header_of_a_selected_language_is_learned(tiny_policy: Path, tmp_path: Path) -> None:
    answer = ModelConfig().header.format(code="zh") + "<think>好的。</think>东京"
    row = {"messages": [{"role": "user", "content": "Capital?"}], "answer": answer, "language": "zh"}
    trainer = sft.build_trainer(
        str(tiny_policy), [row] * 32, tmp_path, style="select", epochs=8, batch_size=8, micro_batch=8, lr=3e-3, seed=0
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2, losses


def test_an_example_that_cannot_be_taught_is_named(tiny_policy: Path, tmp_path: Path) -> None:
    path, good = tmp_path / "examples.jsonl", rows(["en"])[0]
    words = [str(tiny_policy), str(path), "--out", str(tmp_path / "model")]

    def refused(*examples: dict[str, Any], flags: tuple[str, ...] = ()) -> str:
        path.write_text("".join(json.dumps(one) + "\n" for one in examples))
        with pytest.raises(SystemExit) as error:
            sft.main([*words, *flags])
        return str(error.value)

    said = refused(
        good,
        {**good, "answer": None},
        {"messages": good["messages"], "language": "en"},
        {**good, "language": "xx"},
        {**good, "messages": [{"role": "user", "text": "?"}]},
        {**good, "answer": " "},
    )
    assert f"5 rows of {path} cannot be taught" in said
    for place in (
        "row 1, answer: it is missing", "row 2, answer: there is no such column among messages, language",
        "row 3, language: unknown language 'xx'", "row 4, messages[0]: it is no message", "row 5, answer: it is empty",
    ):  # fmt: skip
        assert f"{path}, {place}" in said
    theirs = {"ask": "?", "reply": "!"}
    said = refused(theirs)
    assert "messages: there is no such column among ask, reply" in said and "with --columns question=NAME" in said
    assert "language: the row names no language" in refused(theirs, flags=("--columns", "question=ask,answer=reply"))
    assert "holds no examples" in refused()
    path.write_text(json.dumps(theirs))
    found = sft.read_examples(str(path), {"question": "ask", "answer": "reply"}, "German")
    assert found == [{"messages": [{"role": "user", "content": "?"}], "language": "de", "answer": "!"}]


def test_what_cannot_be_trained_is_said_in_one_line(tiny_policy: Path, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows(["en"])), tmp_path / "examples.parquet")
    words = [str(tmp_path / "examples.parquet"), "--out", str(tmp_path / "model")]
    with pytest.raises(SystemExit, match="error: cannot load the tokenizer"):
        sft.main([str(tmp_path), *words])
    with pytest.raises(SystemExit, match="--batch 5 is not a multiple of --ranks 2"):
        sft.main([str(tiny_policy), *words, "--batch", "5", "--ranks", "2"])
    with pytest.raises(SystemExit) as stopped:
        sft.main([str(tiny_policy), *words, "--date", "soon"])
    assert stopped.value.code == 2, "a flag of model.date that is none"


@pytest.mark.parametrize(
    ("style", "own", "begins"),
    [
        ("plain", {}, "<|im_start|>user\nCapital of Japan?<|im_end|>"),
        ("system", {"default": "In {language}."}, "<|im_start|>system\nIn German.<|im_end|>\n<|im_start|>user\n"),
    ],
)
def test_examples_are_asked_in_the_words_of_a_run(
    style: str, own: dict[str, str], begins: str, tiny_policy: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_policy))
    made = sft.example(rows(["de"])[0], tokenizer, ChatTemplate(tokenizer, ModelConfig()), style, own)
    assert str(tokenizer.decode(made["input_ids"])).startswith(begins)


TEMPLATES = Path(trl.__file__).parent / "chat_templates"  # as TRL has them of the models' own


def taught(tiny_policy: Path, template: str, answer: str, **prompts: Any) -> tuple[str, str]:
    """The prompt and the answer, with what ends it, that an example teaches."""
    tokenizer = load_tokenizer(str(tiny_policy))
    tokenizer.add_tokens(["<｜end▁of▁sentence｜>", "<|return|>"], special_tokens=True)
    tokenizer.chat_template = (TEMPLATES / template).read_text()
    row = {"messages": [{"role": "user", "content": "2+2?"}], "answer": answer, "language": "fr"}
    made = sft.example(row, tokenizer, ChatTemplate(tokenizer, ModelConfig(**prompts)), "select")
    asked = made["completion_mask"].index(1)
    return str(tokenizer.decode(made["input_ids"][:asked])), str(tokenizer.decode(made["input_ids"][asked:]))


HEADED = ModelConfig().header.format(code="fr")
THOUGHT = "D'accord…</think>Quatre."


def test_an_answer_is_taught_as_it_stands_and_not_as_the_template_would_write_it(tiny_policy: Path) -> None:
    """Qwen3's template keeps of an answer what stands in and after its thought, and writes an empty one if none is."""
    whole = f"{HEADED}<think>{THOUGHT}"
    prompt, answer = taught(tiny_policy, "qwen3.jinja", whole)
    assert prompt.endswith("<|im_start|>assistant\n") and answer == f"{whole}<|im_end|>"
    assert taught(tiny_policy, "qwen3.jinja", "Quatre.")[1] == "Quatre.<|im_end|>"
    prompt, answer = taught(tiny_policy, "qwen3.jinja", "Quatre.", template_args={"enable_thinking": False})
    assert prompt.endswith("<think>\n\n</think>\n\n") and answer == "Quatre.<|im_end|>"
    # The channel is no part of what the example says, but the model cannot be read without.
    assert taught(tiny_policy, "gptoss.jinja", "Quatre.")[1] == "<|channel|>final<|message|>Quatre.<|return|>"


def test_where_the_template_opens_the_thought_the_answer_goes_on_in_it(tiny_policy: Path) -> None:
    template, end = "deepseek_r1_distill.jinja", "<｜end▁of▁sentence｜>"
    prompt, answer = taught(tiny_policy, template, f"<think>\n{THOUGHT}")
    assert prompt.endswith("<think>\n") and answer == f"{THOUGHT}{end}"
    assert taught(tiny_policy, template, THOUGHT)[1] == f"{THOUGHT}{end}"
    assert taught(tiny_policy, template, f"{HEADED}<think>{THOUGHT}")[1] == f"{HEADED}{THOUGHT}{end}"
    with pytest.raises(FatalError, match="ends a prompt with <think>, and the answer has no </think>"):
        taught(tiny_policy, template, "Quatre.")


def test_the_row_that_the_chat_template_cannot_take_is_named(tiny_policy: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tokenizer = load_tokenizer(str(tiny_policy))
    tokenizer.chat_template = (
        "{% if messages | length > 1 %}{{ raise_exception('one turn, please') }}{% endif %}"
        "{{ messages[0]['content'] }}{{ date_string }}"
    )
    AutoModelForCausalLM.from_pretrained(tiny_policy).save_pretrained(base)
    tokenizer.save_pretrained(base)
    examples = rows(["en", "en"])
    examples[1]["messages"] = [*examples[1]["messages"], *examples[1]["messages"]]
    pq.write_table(pa.Table.from_pylist(examples), tmp_path / "examples.parquet")
    words = [str(base), str(tmp_path / "examples.parquet"), "--out", str(tmp_path / "model")]
    with pytest.raises(SystemExit, match=r"error: row 1 cannot be taught: .*one turn, please"):
        sft.main([*words, "--date", "2026-01-31", "--template-args", "{enable_thinking = false}"])
