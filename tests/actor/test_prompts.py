"""Prompts ask for a language by a tag, or by an instruction in the language itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from actor.instructions import INSTRUCTIONS
from actor.prompts import PROMPT_STYLES, opens_thought
from common.config import Config, RunConfig
from common.languages import CODES
from common.process import FatalError
from common.tokenizer import load_tokenizer
from common.wire import Chat
from reward.gate import LanguageGate
from tests.support.groups import question


def config(*languages: str) -> Config:
    return Config(run=RunConfig(languages=languages))


def test_every_language_has_an_instruction_written_in_it() -> None:
    assert set(INSTRUCTIONS) == set(CODES)
    assert LanguageGate().detect([INSTRUCTIONS[code] for code in CODES]) == list(CODES)


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


def test_a_style_that_the_model_cannot_take_is_refused(tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_policy))
    with pytest.raises(FatalError, match=r"no token <\|out_lang_fr\|>"):
        PROMPT_STYLES["tag"](tokenizer, config("de", "fr"))
    with pytest.raises(FatalError, match=r"no token <\|out_lang_fr\|>"):
        PROMPT_STYLES["tag"](tokenizer, config("de"))(question(language="fr"), "fr")
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(FatalError, match="no place for prompt_style"):
        PROMPT_STYLES["system"](tokenizer, config("de"))
    tokenizer.chat_template = None
    for style in PROMPT_STYLES.values():
        with pytest.raises(FatalError, match="no chat template"):
            style(tokenizer, config("de"))


@pytest.mark.parametrize(
    ("ending", "opened"), [("", False), ("<think>\n", True), ("<think>\n\n</think>\n\n", False), ("think", False)]
)
def test_a_template_may_open_the_thought(ending: str, opened: bool, tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_policy))
    tokenizer.chat_template = (
        "{% for m in messages %}{{m['content']}}\n{% endfor %}{% if add_generation_prompt %}" + ending + "{% endif %}"
    )
    assert opens_thought(tokenizer) == opened
