"""Prompts ask for a language by a tag, or by an instruction in the language itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fasttext
import pytest

from common.config import Config, ModelConfig, RunConfig, load
from common.instructions import INSTRUCTIONS, instruction
from common.languages import CODES, native_name
from common.process import FatalError
from common.prompts import PROMPT_STYLES, PromptError
from common.tokenizer import load_tokenizer
from common.wire import Chat
from reward.gate import shipped_model
from tests.support.groups import question


def config(*languages: str) -> Config:
    return Config(run=RunConfig(languages=languages))


def test_every_language_has_an_instruction() -> None:
    """Those written by hand are in their language; the others name it in English and in itself."""
    written = [code for code in CODES if code in INSTRUCTIONS]
    assert set(written) == set(INSTRUCTIONS) and len(written) >= 70
    # In texts as short as these the detector takes some languages for a near one.
    near = {"bs": {"hr", "sr", "sh"}, "hr": {"bs", "sr", "sh"}, "gl": {"es", "pt"}, "ne": {"hi"}, "no": {"da", "nn"}}
    near["nn"] = {"da", "no"}
    labels, _ = fasttext.load_model(str(shipped_model())).predict([INSTRUCTIONS[code] for code in written])
    for code, (label,) in zip(written, labels, strict=True):
        assert label.removeprefix("__label__") in {code} | near.get(code, set())
    for code in CODES:
        asked = instruction(code)
        assert asked.strip() == asked and len(asked) > 20
        if code not in INSTRUCTIONS:
            assert native_name(code) in asked
    assert len({instruction(code) for code in CODES}) == len(CODES)


def test_the_tag_and_the_system_style_keep_the_conversation(tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_policy))
    turns = [("system", "Be brief."), ("user", "Hi "), ("assistant", "Hello."), ("user", " And now? ")]
    asked = question().model_copy(update={"messages": [Chat(role=role, content=text) for role, text in turns]})
    prompts = {
        style: tokenizer.decode(PROMPT_STYLES[style](tokenizer, config("de"))(asked, "de")) for style in PROMPT_STYLES
    }
    opening = "<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\n"
    assert prompts["tag"] == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{opening}"
        "And now?\n<|out_lang_de|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompts["system"] == (
        f"<|im_start|>system\n{INSTRUCTIONS['de']}\n\nBe brief.<|im_end|>\n"
        f"{opening} And now? <|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompts["plain"] == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{opening} And now? <|im_end|>\n<|im_start|>assistant\n"
    )


def test_ones_own_words_ask_for_a_language(tiny_policy: Path) -> None:
    """By language, else by the default, else by the built-in ones; before the system turn that the row has."""
    tokenizer = load_tokenizer(str(tiny_policy))
    asked = question(language="de").model_copy(update={"messages": [Chat("system", "Be brief."), Chat("user", "Hi")]})

    def prompt(language: str, **own: str) -> str:
        flags = ["--model.prompt_style", "system", "--run.languages", '["de", "sw", "ja"]', "--router.mode", "uniform"]
        flags += [f"--model.instructions.{name}={json.dumps(text)}" for name, text in own.items()]
        return str(tokenizer.decode(PROMPT_STYLES["system"](tokenizer, load(flags))(asked, language)))

    own = {"German": "Auf Deutsch, in \\boxed{}! "}
    assert prompt("de", **own).startswith("<|im_start|>system\nAuf Deutsch, in \\boxed{}!\n\nBe brief.<|im_end|>")
    assert INSTRUCTIONS["ja"] in prompt("ja", **own)
    own["default"] = "Answer in {language} ({native}), in \\boxed{}."
    assert "system\nAnswer in Japanese (日本語), in \\boxed{}.\n\nBe brief." in prompt("ja", **own)
    own["Swahili"] = "Jibu kwa {native}, that is {language}."
    assert "system\nJibu kwa Kiswahili, that is Swahili.\n\nBe brief." in prompt("sw", **own)
    assert "Auf Deutsch" in prompt("de", **own) and INSTRUCTIONS["ja"] not in prompt("ja", **own)


@pytest.mark.parametrize(
    "flags", [["plain"], ["system", "--model.instructions.default", "Think first."]], ids=["plain", "no language"]
)
def test_what_asks_for_no_language_is_asked_in_the_questions_own_alone(flags: list[str], tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_policy))
    config = load(["--model.prompt_style", *flags, "--router.mode", "monolingual", "--run.languages", '["de", "sw"]'])
    style = PROMPT_STYLES[config.model.prompt_style](tokenizer, config)
    assert "Think first." in tokenizer.decode(style(question(language="fr"), "fr")) or flags == ["plain"]
    with pytest.raises(FatalError, match=r"does not say in which language .* in 'fr' cannot be asked .* in 'de'"):
        style(question(language="fr"), "de")


def test_a_template_beside_the_model_takes_the_place_of_its_own(tiny_policy: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(tiny_policy, own)
    settings = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "that of the model"}))
    (own / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[a]"
    )
    tokenizer = load_tokenizer(str(own))
    asked = question(language="de").model_copy(update={"messages": [Chat("system", "Be brief."), Chat("user", "Hi")]})
    config = load(["--model.prompt_style", "plain", "--router.mode", "monolingual"])
    assert tokenizer.decode(PROMPT_STYLES["plain"](tokenizer, config)(asked, "de")) == "[system]Be brief.[user]Hi[a]"
    tokenizer.save_pretrained(tmp_path / "exported")
    assert load_tokenizer(str(tmp_path / "exported")).chat_template == tokenizer.chat_template


def test_a_style_that_the_model_cannot_take_is_refused(tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_policy))
    with pytest.raises(FatalError, match=r"no token <\|out_lang_fr\|>"):
        PROMPT_STYLES["tag"](tokenizer, config("de", "fr"))
    with pytest.raises(FatalError, match=r"no token <\|out_lang_fr\|>"):
        PROMPT_STYLES["tag"](tokenizer, config("de"))(question(language="fr"), "fr")
    tokenizer.chat_template = "{{ messages[-1]['role'] }}"
    with pytest.raises(FatalError, match="no place for prompt_style"):
        PROMPT_STYLES["system"](tokenizer, config("de"))
    tokenizer.chat_template = "{{ raise_exception('no chat today') }}"
    with pytest.raises(FatalError, match=r"cannot be used: .*no chat today"):
        PROMPT_STYLES["select"](tokenizer, config("de"))
    tokenizer.chat_template = None
    for style in PROMPT_STYLES.values():
        with pytest.raises(FatalError, match=r"no chat template.*: use the instruction-tuned version"):
            style(tokenizer, config("de"))


GEMMA_2 = (  # as the model's own template begins
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SILENT = "{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize("template", [GEMMA_2, SILENT], ids=["refuses", "leaves out"])
def test_where_no_system_turn_is_taken_the_user_is_told(template: str, tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_policy))
    tokenizer.chat_template = template
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "And now?")]
    asked = question().model_copy(update={"messages": [Chat(role=role, content=text) for role, text in turns]})
    system = tokenizer.decode(PROMPT_STYLES["system"](tokenizer, config("de"))(asked, "de"))
    assert f"{INSTRUCTIONS['de']}\n\nBe brief.\n\nHi" in system and "And now?" in system
    assert "Be brief.\n\nHi" in tokenizer.decode(PROMPT_STYLES["tag"](tokenizer, config("de"))(asked, "de"))
    if template == GEMMA_2:
        odd = asked.model_copy(update={"messages": [Chat("user", "a"), Chat("user", "b")]})
        with pytest.raises(PromptError, match="roles must alternate"):
            PROMPT_STYLES["tag"](tokenizer, config("de"))(odd, "de")


def test_the_template_gets_its_arguments_and_the_same_date_every_day(tiny_policy: Path) -> None:
    """The ways in which the templates of Llama-3.2, SmolLM3 and Qwen3 ask for a date or a mode."""
    tokenizer = load_tokenizer(str(tiny_policy))
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ date_string }}|{{ strftime_now('%Y-%m-%d') }}|{{ messages[-1]['content'] }}"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>{% endif %}"
    )

    def prompt(**model: Any) -> str:
        made = Config(run=RunConfig(languages=("de",)), model=ModelConfig(**model))
        return str(tokenizer.decode(PROMPT_STYLES["tag"](tokenizer, made)(question(), "de")))

    assert prompt().startswith("26 Jul 2024|2024-07-26|") and "<think>" not in prompt()
    assert prompt(date="2026-01-31", template_args={"enable_thinking": False}).startswith("31 Jan 2026|2026-01-31|")
    assert prompt(template_args={"enable_thinking": False}).endswith("<think>\n\n</think>")
    assert prompt(template_args={"date_string": "today"}).startswith("today|2024-07-26|")
    with pytest.raises(ValueError, match="'messages' is not for the user"):
        ModelConfig(template_args={"messages": []})


TURN_ENDS = {  # how the templates of well-known families end an answer, and the token that does it
    "{{ m['content'] }}<|eot_id|>": "<|eot_id|>",  # Llama-3
    "{{ m['content'] | trim }}<end_of_turn>\n": "<end_of_turn>",  # Gemma
    "{{ m['content'] + '<|end|>' + '\n' }}": "<|end|>",  # Phi-3
    " {{ m['content'] }} {{ eos_token }}": "<|im_end|>",  # Llama-2, Mistral
    "{{ m['content'] }}\n\n": None,
}


@pytest.mark.parametrize("template", TURN_ENDS)
def test_the_token_that_ends_an_answer_is_the_templates(
    template: str, tiny_policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = load_tokenizer(str(tiny_policy))
    tokenizer.add_tokens(["<|eot_id|>", "<end_of_turn>", "<|end|>"], special_tokens=True)
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>" + template + "{% endfor %}"
    style = PROMPT_STYLES["select"](tokenizer, config("de"))
    wanted = {TURN_ENDS[template], tokenizer.eos_token} - {None}
    assert set(tokenizer.convert_ids_to_tokens(style.stop_ids)) == wanted
    assert "no token ends an answer" not in caplog.text
    tokenizer.eos_token = None
    without = PROMPT_STYLES["select"](tokenizer, config("de")).stop_ids
    if TURN_ENDS[template] == "<|im_end|>":
        return  # that one was the end-of-sequence token
    assert len(without) == (TURN_ENDS[template] is not None)
    assert ("no token ends an answer" in caplog.text) == (TURN_ENDS[template] is None)


@pytest.mark.parametrize(
    ("ending", "opened"), [("", False), ("<think>\n", True), ("<think>\n\n</think>\n\n", False), ("think", False)]
)
def test_a_template_may_open_the_thought(ending: str, opened: bool, tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_policy))
    tokenizer.chat_template = (
        "{% for m in messages %}{{m['content']}}\n{% endfor %}{% if add_generation_prompt %}" + ending + "{% endif %}"
    )
    assert PROMPT_STYLES["select"](tokenizer, config("de")).opens_thought == opened
