"""Turns a question into the token ids of a prompt that asks for the answer in a certain language.

Actors send these prompts. The learner makes the same ones when it reads the data, to know how long they are.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import date
from typing import Any

import jinja2
from msgspec.structs import asdict
from transformers import PreTrainedTokenizerBase

from common.config import Config, ModelConfig
from common.header import Header
from common.instructions import NONE_OWN, instruction
from common.languages import POLICY_CHOOSES, tag
from common.process import FatalError
from common.wire import Question

log = logging.getLogger("prompts")

_PROBE = "lrpo-probe"  # a turn of which a chat template's treatment is watched


class PromptError(ValueError):
    """The chat template refuses a conversation."""


class ChatTemplate:
    """The chat template of the policy, with the arguments of ``model.template_args`` and the date of ``model.date``.

    A template that refuses a system turn, or leaves it out, gets its text at the beginning of the first user turn.

    Raises:
        FatalError: there is no chat template, or it fails for a single user turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: ModelConfig) -> None:
        if tokenizer.chat_template is None:
            raise FatalError(
                "the tokenizer of model.path has no chat template, which turns a question into a prompt: use the "
                "instruction-tuned version of the model, or add a chat template to its tokenizer"
            )
        self._tokenizer = tokenizer
        day: date = model.date
        # Templates that write today's date into every prompt ask for it in one of these ways. Pinned, the prompt of a
        # question is the same on every day of a run, and of the runs that are compared with it.
        dated: dict[str, Any] = {"date_string": f"{day:%d %b %Y}", "strftime_now": lambda form: day.strftime(form)}
        self._arguments = dated | model.template_args
        user = {"role": "user", "content": "?"}
        try:
            self._render([user])
        except PromptError as error:
            raise FatalError(f"the chat template of model.path cannot be used: {error}") from None
        try:
            self.takes_system = _PROBE in self._render([{"role": "system", "content": _PROBE}, user])
        except PromptError:
            self.takes_system = False
        prompt = self._render([user])
        # Whether the template ends a prompt with ``<think>``, so that an answer begins inside a thought.
        self.opens_thought = prompt.rfind("<think>") > prompt.rfind("</think>")
        # The token with which the template ends an answer; None where it ends one by text alone, or does not end it.
        # And what it writes before an answer, after the prompt, as gpt-oss's channel; a thought is the answer's own.
        self.answer_opening, self.turn_end = self._find_frame(user, prompt)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the template gets besides the messages, as far as it is JSON."""
        return {name: value for name, value in self._arguments.items() if not callable(value)}

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end an answer: the one of the template, and the tokenizer's end of sequence; may be none."""
        eos: int | None = self._tokenizer.eos_token_id
        return sorted({token for token in (self.turn_end, eos) if token is not None})

    @property
    def answer_end(self) -> int | None:
        """The token that an answer is taught to end with: of the template, else the tokenizer's end of sequence."""
        eos: int | None = self._tokenizer.eos_token_id
        return eos if self.turn_end is None else self.turn_end

    def answer(self, text: str) -> str:
        """An answer as the policy is to write it after the prompt, without the token that ends it.

        It does not go through the template: some keep of an answer only what stands in or after its thought, or not
        even that. A ``<think>`` with which the prompt ends is left out.
        """
        before, opened, after = text.partition("<think>")
        if self.opens_thought and opened and "</think>" not in before:
            text = f"{before}{after.lstrip()}"
        return text if text.startswith(self.answer_opening) else f"{self.answer_opening}{text}"

    def arranged(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """The conversation with a system turn only where the template takes one."""
        return messages if self.takes_system else _without_system_turn(messages)

    def __call__(self, messages: list[dict[str, str]]) -> str:
        """The conversation as text, which ends with the opening of the assistant's turn unless that turn is there.

        Raises:
            PromptError: the template refuses the conversation.
        """
        return self._render(self.arranged(messages))

    def _find_frame(self, user: dict[str, str], prompt: str) -> tuple[str, int | None]:
        try:
            text = self._render([user, {"role": "assistant", "content": _PROBE}])
        except PromptError:
            return "", None
        before, found, ending = text.rpartition(_PROBE)
        opening = before.removeprefix(prompt) if before.startswith(prompt) and "<think>" not in before else ""
        tokens: list[int] = self._tokenizer.encode(ending, add_special_tokens=False) if found else []
        return opening, next((token for token in tokens if token in self._tokenizer.added_tokens_decoder), None)

    def _render(self, messages: list[dict[str, str]]) -> str:
        answered = messages[-1]["role"] == "assistant"
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=not answered, **self._arguments
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:  # whatever the template's own code comes to
            raise PromptError(f"the chat template of model.path refuses the conversation: {error}") from None


def _without_system_turn(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    system = [message["content"] for message in messages if message["role"] == "system"]
    turns = [message for message in messages if message["role"] != "system"]
    first = next((number for number, message in enumerate(turns) if message["role"] == "user"), None)
    if system and first is not None:
        turns[first] = {"role": "user", "content": "\n\n".join([*system, turns[first]["content"]])}
    return turns


def append_tag(messages: list[dict[str, str]], language: str) -> list[dict[str, str]]:
    """Strips the last user turn and appends a line with the tag of the language, as in ``<|out_lang_zh|>``.

    The warm start teaches this form. ``messages`` has role and content of each turn and is not changed.
    """
    last = messages[-1]
    return [*messages[:-1], {**last, "content": f"{last['content'].strip()}\n{tag(language)}"}]


def add_instruction(
    messages: list[dict[str, str]], language: str, own: Mapping[str, str] = NONE_OWN
) -> list[dict[str, str]]:
    """Puts the instruction in the language before the system prompt that the conversation has.

    A policy without warm start is asked in this way. ``messages`` has role and content of each turn and is not changed.

    Args:
        own: ``model.instructions``.
    """
    of_row = "".join("\n\n" + message["content"] for message in messages if message["role"] == "system")
    turns = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": instruction(language, own) + of_row}, *turns]


def strip_last_turn(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Strips the last user turn and asks for no language; ``messages`` is not changed."""
    return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"].strip()}]


class PromptStyle(ABC):
    """One way to ask for an answer in a language.

    Args:
        tokenizer: of the policy.
        config: the whole configuration.

    Raises:
        FatalError: the tokenizer has no chat template, or the style cannot ask for a language of ``run.languages``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
        self._template = ChatTemplate(tokenizer, config.model)
        self._tokenizer = tokenizer
        self._header = Header(config.model.header, config.run.languages)
        self._instructions, self._silent = config.model.instructions, config.model.silent_about_language
        self._checked_languages = set(config.run.languages)
        self._check_languages(config.run.languages)
        if not self.stop_ids:
            log.warning(
                "no token ends an answer: the chat template of model.path has none, nor has the tokenizer an "
                "end-of-sequence token, so that answers end at sampling.max_new_tokens alone"
            )

    @property
    def opens_thought(self) -> bool:
        """Whether the chat template ends a prompt with ``<think>``, so that an answer begins inside a thought."""
        return self._template.opens_thought

    @property
    def stop_ids(self) -> list[int]:
        """The tokens that end an answer; may be none."""
        return self._template.stop_ids

    def __call__(self, question: Question, language: str) -> list[int]:
        """The token ids of the prompt, which ends with the opening of the assistant's turn.

        Raises:
            FatalError: the style cannot ask for this language; one that asks for none can ask for the question's alone.
            PromptError: the chat template refuses the conversation.
        """
        if self._silent and language != question.language:
            raise FatalError(
                f"{self._silent} does not say in which language an answer is to be, so a question in "
                f"{question.language!r} cannot be asked for an answer in {language!r}: ask for languages by another "
                "model.prompt_style"
            )
        if language not in self._checked_languages:  # the language of a question need not be one of the run
            self._check_languages((language,))
            self._checked_languages.add(language)
        turns = [asdict(message) for message in question.messages]
        messages = self.style_messages(turns, language, self._instructions)
        text = f"{self._template(messages)}{self._begin_answer(language)}"
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    @staticmethod
    @abstractmethod
    def style_messages(
        messages: list[dict[str, str]], language: str, instructions: Mapping[str, str] = NONE_OWN
    ) -> list[dict[str, str]]:
        """A copy of the conversation that asks for the language; each turn has ``role`` and ``content``.

        Args:
            instructions: ``model.instructions``, which the style "system" reads.
        """

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

    @staticmethod
    def style_messages(
        messages: list[dict[str, str]], language: str, instructions: Mapping[str, str] = NONE_OWN
    ) -> list[dict[str, str]]:
        return append_tag(messages, language)

    def _check_languages(self, languages: tuple[str, ...]) -> None:
        for language in languages:
            if len(self._tokenizer.encode(tag(language), add_special_tokens=False)) != 1:
                raise FatalError(
                    f"the tokenizer of model.path has no token {tag(language)}: "
                    'prompt_style = "tag" needs a model that was warm-started with the tags of run.languages and of '
                    'the questions\' languages; "system" needs none'
                )


class SystemPrompts(PromptStyle):
    """The style of a policy without a warm start: an instruction in the language, or one's own, as system prompt.

    Raises:
        FatalError: the chat template leaves the instruction out.
    """

    @staticmethod
    def style_messages(
        messages: list[dict[str, str]], language: str, instructions: Mapping[str, str] = NONE_OWN
    ) -> list[dict[str, str]]:
        return add_instruction(messages, language, instructions)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
        super().__init__(tokenizer, config)
        if not self._template.takes_system:
            log.info("the chat template takes no system turn: the instruction goes into the first turn of the user")

    def _check_languages(self, languages: tuple[str, ...]) -> None:
        for language in languages:
            text = self._template(add_instruction([{"role": "user", "content": "?"}], language, self._instructions))
            if instruction(language, self._instructions) not in text:
                raise FatalError('the chat template of model.path has no place for prompt_style = "system"')


class SelectPrompts(PromptStyle):
    """The style of a cold-started policy, whose answers begin with a header that names their language.

    Where the router has chosen the language, the header is part of the prompt.
    """

    @staticmethod
    def style_messages(
        messages: list[dict[str, str]], language: str, instructions: Mapping[str, str] = NONE_OWN
    ) -> list[dict[str, str]]:
        return strip_last_turn(messages)

    def _check_languages(self, languages: tuple[str, ...]) -> None:
        """Returns always, as a header can name any language."""

    def _begin_answer(self, language: str) -> str:
        return "" if language == POLICY_CHOOSES else self._header.text(language)


class PlainPrompts(PromptStyle):
    """Prompts as the rows have them, their own system turns included, for answers in the questions' own languages."""

    @staticmethod
    def style_messages(
        messages: list[dict[str, str]], language: str, instructions: Mapping[str, str] = NONE_OWN
    ) -> list[dict[str, str]]:
        return [*messages]

    def _check_languages(self, languages: tuple[str, ...]) -> None:
        """Returns always, as no language is asked for."""


PROMPT_STYLES: dict[str, type[PromptStyle]] = {
    "tag": TagPrompts,
    "system": SystemPrompts,
    "select": SelectPrompts,
    "plain": PlainPrompts,
}
