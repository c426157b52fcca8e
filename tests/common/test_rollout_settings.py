"""What a learner compares of an actor's configuration, tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken

from common.config import load
from common.rollout_settings import find_difference, rollout_settings
from common.tokenizer import load_tokenizer

_SYSTEM = ["--model.prompt_style", "system", "--model.instructions.de"]
_TIGRINYA = ["--run.other_languages.tir", "Tigrinya", "--reward.unchecked", "pass"]


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--model.prompt_style", "system"], 'model.prompt_style is "tag" here and "system" in actor x: '),
        (["--sampling.temperature", "0.7"], "sampling.temperature is 1.0 here and 0.7 in actor x: "),
        (["--model.template_args.enable_thinking", "false"], "model.template_args is {} here and {"),
        (["--run.languages", '["de", "en"]'], 'run.languages is ["en"] here and ["de", "en"] in actor x: '),
        ([*_SYSTEM, "Kurz."], 'model.instructions is {} here and {"de": "Kurz."} in actor x: '),
        ([*_SYSTEM, 9999 * "lang "], 'model.instructions is {} here and {"de": "lang lang '),
        (_TIGRINYA, 'run.other_languages is {} here and {"tir": "Tigrinya"} in actor'),
        (["--actor.attempts", "9", "--sync.timeout_s", "9"], ""),  # nothing that the answers depend on
    ],
)
def test_a_setting_that_answers_depend_on_is_named_where_it_differs(
    flags: list[str], found: str, tiny_policy: Path
) -> None:
    tokenizer = load_tokenizer(str(tiny_policy))
    own, others = rollout_settings(load([]), tokenizer), rollout_settings(load(flags), tokenizer)
    assert find_difference(own, own, "x") == ""
    difference = find_difference(own, others, "x")
    assert difference.startswith(found) and bool(difference) == bool(found) and len(difference) < 500


def test_another_tokenizer_and_another_chat_template_are_told_apart(tiny_policy: Path) -> None:
    config, tokenizer = load([]), load_tokenizer(str(tiny_policy))
    own = rollout_settings(config, tokenizer)
    assert own == rollout_settings(config, load_tokenizer(str(tiny_policy))), "however often it is loaded"
    tokenizer.chat_template = str(tokenizer.chat_template) + " "
    assert find_difference(own, rollout_settings(config, tokenizer), "x").startswith("the chat template of model.path")
    other = load_tokenizer(str(tiny_policy))
    other.add_tokens([AddedToken("<another>", special=True)])
    assert find_difference(own, rollout_settings(config, other), "x").startswith("the tokenizer of model.path is ")
