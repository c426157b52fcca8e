"""Pairs from recorded groups, and what DPO and MPO make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.config import ModelConfig
from common.tokenizer import load_tokenizer
from learner import recording
from learner.groups import Group, StepResult
from scripts.study.preferences import build_trainer, main
from tests.support.chat import serving
from tests.support.groups import random_rollout, work
from tests.support.train_once import configuration

ANSWERS = {  # language -> text: reward
    "en": {
        "The capital of France is Paris.": 0.9,
        "The capital of France is London.": 0.2,
        "Rome, I think.": 0.1,
    },
    "de": {"Die Hauptstadt von Frankreich ist Paris.": 0.3, "Die Hauptstadt von Frankreich ist Berlin.": 0.8},
    "zh": {"法国的首都是巴黎。": 0.0},  # zero: counts as not in its language
}


@pytest.fixture
def recorded(tiny_policy: Path, tmp_path: Path, rng: np.random.Generator) -> Path:
    rollouts = []
    for language, texts in ANSWERS.items():
        for text, reward in texts.items():
            rollout = random_rollout(rng, reward=reward)
            score = rollout.score.model_copy(update={"compliant": reward > 0})
            rollouts.append(rollout.model_copy(update={"language": language, "text": text, "score": score}))
    group = Group(work=work(0, [rollout.language for rollout in rollouts]), actor="a", rollouts=rollouts)
    recording.begin(tmp_path / "record", configuration(tiny_policy), 0)
    result = StepResult(means={"loss": 0.0}, by_language={}, fill=0.0, grad_norm=0.0, lr=0.0)
    recording.write(tmp_path / "record", 1, [group], result)
    return tmp_path / "record"


def pairs(out: Path) -> set[tuple[str, str, str]]:
    """The tag asked with, chosen and rejected."""
    return {
        (row["prompt"][-1]["content"].rpartition("\n")[2], row["chosen"][0]["content"], row["rejected"][0]["content"])
        for row in pq.read_table(out / "pairs.parquet").to_pylist()
    }


def test_dpo_prefers_rewards_and_learns_to(recorded: Path, tiny_policy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    training = ["--model", str(tiny_policy), "--lr", "1e-3", "--epochs", "8", "--batch", "2"]
    main(["dpo", str(recorded), "--out", str(out), *training])
    english, german = list(ANSWERS["en"]), list(ANSWERS["de"])
    assert pairs(out) == {
        ("<|out_lang_en|>", english[0], english[2]),
        ("<|out_lang_de|>", german[1], german[0]),
    }
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    for row in pq.read_table(out / "pairs.parquet").to_pylist():
        before, after = (
            logp(path, tokenizer, row["prompt"], row["chosen"]) - logp(path, tokenizer, row["prompt"], row["rejected"])
            for path in (tiny_policy, out / "model")
        )
        assert after > before + 1, "the preferred answer has become more likely against the other"


def test_answers_that_could_not_be_scored_enter_no_pair(
    tiny_policy: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    rollouts = []
    for reward, scored in ((0.9, True), (0.4, True), (0.0, False)):
        rollout = random_rollout(rng, reward=reward)
        score = rollout.score.model_copy(update={"scored": scored, "compliant": True})
        rollouts.append(rollout.model_copy(update={"language": "en", "text": f"{reward} {scored}", "score": score}))
    group = Group(work=work(0, ["en"] * 3), actor="a", rollouts=rollouts)
    recording.begin(tmp_path / "record", configuration(tiny_policy), 0)
    result = StepResult(means={"loss": 0.0}, by_language={}, fill=0.0, grad_norm=0.0, lr=0.0)
    recording.write(tmp_path / "record", 1, [group], result)
    main(["dpo", str(tmp_path / "record"), "--out", str(tmp_path / "out")])
    assert {pair[1:] for pair in pairs(tmp_path / "out")} == {("0.9 True", "0.4 True")}


def test_where_the_policy_chooses_the_header_names_the_language_of_a_pair(
    tiny_policy: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Their prompt does not ask for it. The first answer was routed: its header was in its prompt."""
    texts = {  # text: language, tokens of its header, reward
        "Bonjour.": ("fr", 0, 0.2),
        "<lang_select>\nfr\n</lang_select>\n<think>Oui</think>Salut.": ("fr", 9, 0.9),
        "<lang_select>\nnobody knows</lang_select>What?": ("", 9, 0.0),
        "Hm.": ("", 0, 0.1),
    }
    rollouts = []
    for text, (language, header, reward) in texts.items():
        rollout = random_rollout(rng, reward=reward)
        rollouts.append(rollout.model_copy(update={"language": language, "text": text, "header": header}))
    flags = ("--model.prompt_style", "select", "--run.languages", '["en", "fr"]')
    recording.begin(tmp_path / "record", configuration(tiny_policy, *flags), 0)
    group = Group(work=work(0, ["fr"] * 4), actor="a", rollouts=rollouts)
    result = StepResult(means={"loss": 0.0}, by_language={}, fill=0.0, grad_norm=0.0, lr=0.0)
    recording.write(tmp_path / "record", 1, [group], result)
    main(["dpo", str(tmp_path / "record"), "--out", str(tmp_path / "out")])
    named = ModelConfig().header.format(code="fr")
    assert {pair[1:] for pair in pairs(tmp_path / "out")} == {(f"{named}<think>Oui</think>Salut.", f"{named}Bonjour.")}


@pytest.mark.parametrize("mpo", [False, True])
def test_answers_are_trained_on_as_they_stand(mpo: bool, tiny_policy: Path, tmp_path: Path) -> None:
    """The template of Qwen3 leaves out what stands before a thought, and adds one where there is none."""
    base = tmp_path / "base"
    tokenizer = load_tokenizer(str(tiny_policy))
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    tokenizer.chat_template = template
    AutoModelForCausalLM.from_pretrained(tiny_policy).save_pretrained(base)
    tokenizer.save_pretrained(base)
    texts = {"chosen": "<lang_select>\nfr\n</lang_select>\n<think>Oui</think>Salut.", "rejected": "Bonjour."}
    row: dict[str, Any] = {"prompt": [{"role": "user", "content": "Hi"}]}
    row |= {name: [{"role": "assistant", "content": text}] for name, text in texts.items()}
    prompts = ModelConfig(template_args={"enable_thinking": False})
    trainer = build_trainer(
        [row, row], str(base), tmp_path, prompts, mpo=mpo, beta=None, lr=1e-4, epochs=1, batch=1, max_length=512, seed=0
    )
    made = trainer.train_dataset[0]
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert tokenizer.decode(made["prompt_ids"]) == asked
    assert {name: tokenizer.decode(made[f"{name}_ids"]) for name in texts} == {
        name: f"{text}<|im_end|>" for name, text in texts.items()
    }
    assert trainer.processing_class.chat_template == template, "the model is saved with its own"


def logp(path: Path, tokenizer: Any, prompt: Any, answer: Any) -> float:
    return sum(token_logps(path, tokenizer, prompt, answer))


def token_logps(path: Path, tokenizer: Any, prompt: Any, answer: Any) -> list[float]:
    start = tokenizer.encode(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
    # Up to the end of the turn, where the policy stops, and without what the template writes behind it.
    ids = tokenizer.encode(str(tokenizer.apply_chat_template([*prompt, *answer], tokenize=False)).rstrip())
    with torch.no_grad():
        table = AutoModelForCausalLM.from_pretrained(path)(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(table[n - 1, ids[n]]) for n in range(len(start), len(ids))]


def test_mapo_prefers_agreement_with_the_pivot(recorded: Path, tmp_path: Path) -> None:
    def agreement(request: dict[str, Any]) -> str:
        first, second = request["messages"][0]["content"].split("First answer:\n")[1].split("\n\nSecond answer:\n")
        assert first == next(iter(ANSWERS["en"])), "the best English answer is the pivot"
        return "90" if "Paris" in second else "20"

    with serving(agreement) as url:
        main(["mapo", str(recorded), "--out", str(tmp_path / "out"), "--endpoint", f"m@{url}"])
    german = list(ANSWERS["de"])
    assert pairs(tmp_path / "out") == {("<|out_lang_de|>", german[0], german[1])}, "whatever the rewards were"


def test_lidr_prefers_translations_of_the_pivot_and_the_pivot_to_translations(recorded: Path, tmp_path: Path) -> None:
    german, english = "Die Hauptstadt Frankreichs ist die Stadt Paris.", "The capital city of France is called Berlin."

    def translate(request: dict[str, Any]) -> str:
        return german if "into German" in request["messages"][0]["content"] else english

    with serving(translate) as url:
        main(["lidr", str(recorded), "--out", str(tmp_path / "out"), "--endpoint", f"m@{url}"])
    assert pairs(tmp_path / "out") == {
        ("<|out_lang_de|>", german, "Die Hauptstadt von Frankreich ist Berlin."),
        ("<|out_lang_en|>", "The capital of France is Paris.", english),
    }


def translator(request: dict[str, Any]) -> str:
    """Says where it is of the pivot's best and worst answers, and that it does not know where it cannot translate."""
    asked = request["messages"][0]["content"]
    if "into German" in asked:
        return "Frankreichs Hauptstadt heißt Paris." if "Paris" in asked else "Ich glaube, dass es Rom ist."
    return "法国的首都是巴黎。" if "Paris" in asked else "I do not speak Chinese."


def test_mpo_leads_translated_preferences_to_those_of_the_pivot(
    recorded: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    training = ["--model", str(tiny_policy), "--lr", "1e-3", "--epochs", "30", "--batch", "1"]
    with serving(translator) as url:
        main(["mpo", str(recorded), "--out", str(out), "--endpoint", f"m@{url}", *training])
    pivot, german = pq.read_table(out / "pairs.parquet").to_pylist()
    english = list(ANSWERS["en"])
    assert pairs(out) == {
        ("<|out_lang_en|>", english[0], english[2]),
        ("<|out_lang_de|>", "Frankreichs Hauptstadt heißt Paris.", "Ich glaube, dass es Rom ist."),
    }, "Chinese has but one of the two, so it takes no part"
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    aim, before = (gap(tiny_policy, tokenizer, row) for row in (pivot, german))
    after = gap(out / "model", tokenizer, german)
    assert abs(1.5 * after - aim) < 0.2 * abs(1.5 * before - aim), (aim, before, after)


def gap(path: Path, tokenizer: Any, row: dict[str, Any]) -> float:
    """Difference of mean log-probabilities of the answers' tokens."""
    chosen, rejected = (
        np.mean(token_logps(path, tokenizer, row["prompt"], row[name])) for name in ("chosen", "rejected")
    )
    return float(chosen - rejected)


def test_the_loss_of_mpo_is_that_of_its_definition(tiny_policy: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    """Sequence after sequence without padding, by transformers alone, of a policy that has left its reference."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig

    from scripts.study.mpo import MPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")  # TRL trains on all of it

    def said(role: str) -> list[dict[str, str]]:
        return [{"role": role, "content": "".join(rng.choice([*"abc "], rng.integers(1, 30)))}]

    rows = [{"prompt": said("user"), "chosen": said("assistant"), "rejected": said("assistant")} for _ in range(6)]
    settings = DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=6, train_sampling_strategy="sequential", beta=0.7,
        use_cpu=True, bf16=False, report_to=[],
    )  # fmt: skip
    data = Dataset.from_list(rows)
    trainer: Any = MPOTrainer(str(tiny_policy), args=settings, train_dataset=data, processing_class=tokenizer)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    trainer.model.save_pretrained(tmp_path / "moved")

    wanted = []
    for pivot, other in zip(rows[0::2], rows[1::2], strict=True):
        aim, led = gap(tiny_policy, tokenizer, pivot), gap(tmp_path / "moved", tokenizer, other)
        moved = [
            state(tmp_path / "moved", tokenizer, pivot, name) - state(tiny_policy, tokenizer, pivot, name)
            for name in ("chosen", "rejected")
        ]
        wanted.append((0.7 * led - aim) ** 2 + float(np.mean(np.square(moved))))
    assert loss.item() == pytest.approx(np.mean(wanted), rel=1e-4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in trainer.model.parameters())


def state(path: Path, tokenizer: Any, row: dict[str, Any], answer: str) -> Any:
    ids = tokenizer.encode(tokenizer.apply_chat_template([*row["prompt"], *row[answer]], tokenize=False))
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(path)
        return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].mean(0).numpy()


def test_what_gives_no_pairs_is_an_error(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no pair can be made of the 1 groups"):
        main(["dpo", str(recorded), "--out", str(tmp_path), "--margin", "2"])
    with pytest.raises(SystemExit, match="mapo needs --endpoint"):
        main(["mapo", str(recorded), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="is no record of a run"):
        main(["dpo", str(tmp_path), "--out", str(tmp_path)])
