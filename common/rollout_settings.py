"""What the rollouts of an actor depend on, in a form in which a learner compares it with its own.

An actor reads a configuration and a tokenizer of its own. Where they differ from the learner's, its answers are of
another policy than the one that is trained: to other prompts, at another temperature, or cut at another length.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from common.config import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SETTINGS = {
    "run": ("seed", "languages", "other_languages"),
    "model": ("dtype", "prompt_style", "instructions", "header", "template_args", "date"),
    "sampling": ("temperature", "max_new_tokens"),
}
# Scripts, digits, white space and marks that tokenizers split in different ways, though their vocabularies are equal.
_SAMPLE = (
    "Wie viel sind 12 345,6 × 7?\n\n  Ça fait… 多少钱？ どのくらいですか。 कितना है? كم الثمن؟ Сколько стоит? ราคาเท่าไร"
)
_SHOWN = 200  # characters of a value that a message has in full


def rollout_settings(config: Config, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The settings as JSON by their names, and digests of the tokenizer and its chat template.

    A long value is cut, and has a digest behind it.
    """
    found: dict[str, str] = {}
    for section, names in _SETTINGS.items():
        values = getattr(config, section).model_dump(mode="json")
        found |= {f"{section}.{name}": _text(values[name]) for name in names}
    vocabulary = sorted(tokenizer.get_vocab().items())
    encoded = tokenizer.encode(_SAMPLE, add_special_tokens=False)
    found["the tokenizer of model.path"] = _digest([vocabulary, encoded, tokenizer.eos_token_id])
    found["the chat template of model.path"] = _digest(tokenizer.chat_template)
    return found


def find_difference(own: Mapping[str, str], others: Mapping[str, str], name: str) -> str:
    """What an actor's settings differ in from the learner's, in words; empty if in nothing.

    Args:
        own: the learner's, as ``rollout_settings`` has them.
        others: the actor's.
        name: of the actor.
    """
    for key in sorted({*own, *others}):
        if own.get(key) != others.get(key):
            here, there = (one.get(key, "not given") for one in (own, others))
            return (
                f"{key} is {here} here and {there} in actor {name}: start it with the learner's configuration and model"
            )
    return ""


def _text(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... (digest {_digest(value)})"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
