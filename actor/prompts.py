"""Turns a question into the token ids of a prompt that asks for the answer in a certain language."""

from __future__ import annotations

from abc import ABC, abstractmethod

from msgspec.structs import asdict
from transformers import PreTrainedTokenizerBase

from actor.instructions import INSTRUCTIONS
from common.config import Config
from common.header import Header
from common.languages import POLICY_CHOOSES, tag
from common.process import FatalError
from common.wire import Question


def append_tag(messages: list[dict[str, str]], language: str) -> list[dict[str, str]]:
    """Strips the last user turn and appends a line with the tag of the language, as in ``<|out_lang_zh|>``.

    The warm start teaches this form. ``messages`` has role and content of each turn and is not changed.
    """
    last = messages[-1]
    return [*messages[:-1], {**last, "content": f"{last['content'].strip()}\n{tag(language)}"}]


def add_instruction(messages: list[dict[str, str]], language: str) -> list[dict[str, str]]:
    """Puts the instruction in the language before the system prompt that the conversation has.

    A policy without warm start is asked in this way. ``messages`` has role and content of each turn and is not changed.
    """
    own = "".join("\n\n" + message["content"] for message in messages if message["role"] == "system")
    turns = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": INSTRUCTIONS[language] + own}, *turns]


def strip_last_turn(messages: list[dict[str, str]], language: str) -> list[dict[str, str]]:
    """Strips the last user turn and asks for no language; ``messages`` is not changed."""
    return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"].strip()}]


def opens_thought(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template ends a prompt with ``<think>``, so that an answer begins inside a thought."""
    messages = [{"role": "user", "content": "?"}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return text.rfind("<think>") > text.rfind("</think>")


class PromptStyle(ABC):
    """One way to ask for an answer in a language.

    Args:
        tokenizer: of the policy.
        config: the whole configuration.

    Raises:
        FatalError: the tokenizer has no chat template, or the style cannot ask for a language of ``run.languages``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
        if tokenizer.chat_template is None:
            raise FatalError("the tokenizer of model.path has no chat template, which turns a question into a prompt")
        self._tokenizer = tokenizer
        self._header = Header(config.model.header, config.run.languages)
        self._checked_languages = set(config.run.languages)
        self._check_languages(config.run.languages)

    def __call__(self, question: Question, language: str) -> list[int]:
        """The token ids of the prompt, which ends with the opening of the assistant's turn.

        Raises:
            FatalError: the style cannot ask for this language.
        """
        if language not in self._checked_languages:  # the language of a question need not be one of the run
            self._check_languages((language,))
            self._checked_languages.add(language)
        messages = self.style_messages([asdict(message) for message in question.messages], language)
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self._tokenizer.encode(f"{text}{self._begin_answer(language)}", add_special_tokens=False)
        return ids

    @staticmethod
    @abstractmethod
    def style_messages(messages: list[dict[str, str]], language: str) -> list[dict[str, str]]:
        """A copy of the conversation that asks for the language; each turn has ``role`` and ``content``."""

    @abstractmethod
    def _check_languages(self, languages: tuple[str, ...]) -> None:
        """Raises FatalError if the style cannot ask for one of these languages."""

    def _begin_answer(self, language: str) -> str:
        """The text with which the answer begins as part of the prompt."""
        return ""


class TagPrompts(PromptStyle):
    """The style of a warm-started policy: a tag after the last user turn.

    Raises:
        FatalError: the tokenizer splits the tag of a language, so the policy has never learned it.
    """

    style_messages = staticmethod(append_tag)

    def _check_languages(self, languages: tuple[str, ...]) -> None:
        for language in languages:
            if len(self._tokenizer.encode(tag(language), add_special_tokens=False)) != 1:
                raise FatalError(
                    f"the tokenizer of model.path has no token {tag(language)}: "
                    'prompt_style = "tag" needs a model that was warm-started with the tags of run.languages and of '
                    'the questions\' languages; "system" needs none'
                )


class SystemPrompts(PromptStyle):
    """The style of a policy without a warm start: an instruction in the language as system prompt.

    Raises:
        FatalError: the chat template leaves the system prompt out.
    """

    style_messages = staticmethod(add_instruction)

    def _check_languages(self, languages: tuple[str, ...]) -> None:
        for language in languages:
            messages = add_instruction([{"role": "user", "content": "?"}], language)
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            if INSTRUCTIONS[language] not in str(text):
                raise FatalError('the chat template of model.path has no place for prompt_style = "system"')


class SelectPrompts(PromptStyle):
    """The style of a cold-started policy, whose answers begin with a header that names their language.

    Where the router has chosen the language, the header is part of the prompt.
    """

    style_messages = staticmethod(strip_last_turn)

    def _check_languages(self, languages: tuple[str, ...]) -> None:
        """Returns always, as a header can name any language."""

    def _begin_answer(self, language: str) -> str:
        return "" if language == POLICY_CHOOSES else self._header.text(language)


PROMPT_STYLES: dict[str, type[PromptStyle]] = {"tag": TagPrompts, "system": SystemPrompts, "select": SelectPrompts}
