"""How a language is asked for: turns a question into the token ids of its prompt."""

from __future__ import annotations

from msgspec.structs import asdict
from transformers import PreTrainedTokenizerBase

from common.config import Config
from common.header import Header
from common.languages import POLICY_CHOOSES, tag
from common.process import FatalError
from common.wire import Question

# "You are a helpful assistant. Always answer in <the language>.", in the language.
INSTRUCTIONS: dict[str, str] = {
    "ar": "أنت مساعد مفيد. أجب دائمًا باللغة العربية.",
    "bn": "আপনি একজন সহায়ক সহকারী। সর্বদা বাংলায় উত্তর দিন।",
    "de": "Du bist ein hilfreicher Assistent. Antworte immer auf Deutsch.",
    "en": "You are a helpful assistant. Always answer in English.",
    "es": "Eres un asistente útil. Responde siempre en español.",
    "fr": "Tu es un assistant utile. Réponds toujours en français.",
    "hi": "आप एक सहायक असिस्टेंट हैं। हमेशा हिन्दी में उत्तर दें।",
    "id": "Anda adalah asisten yang membantu. Selalu jawab dalam bahasa Indonesia.",
    "it": "Sei un assistente utile. Rispondi sempre in italiano.",
    "ja": "あなたは役に立つアシスタントです。常に日本語で答えてください。",
    "ko": "당신은 유용한 어시스턴트입니다. 항상 한국어로 답변하세요.",
    "nl": "Je bent een behulpzame assistent. Antwoord altijd in het Nederlands.",
    "pl": "Jesteś pomocnym asystentem. Zawsze odpowiadaj po polsku.",
    "pt": "Você é um assistente útil. Responda sempre em português.",
    "ru": "Ты полезный ассистент. Всегда отвечай на русском языке.",
    "sw": "Wewe ni msaidizi mwenye manufaa. Jibu maswali yote kwa lugha ya Kiswahili.",
    "te": "మీరు సహాయకరమైన సహాయకులు. ఎల్లప్పుడూ తెలుగులో సమాధానం ఇవ్వండి.",
    "th": "คุณเป็นผู้ช่วยที่เป็นประโยชน์ ตอบเป็นภาษาไทยเสมอ",
    "tr": "Sen yardımsever bir asistansın. Her zaman Türkçe yanıt ver.",
    "vi": "Bạn là một trợ lý hữu ích. Hãy luôn trả lời bằng tiếng Việt.",
    "zh": "你是一个乐于助人的助手。请始终用中文回答。",
}


def tagged(messages: list[dict[str, str]], language: str) -> list[dict[str, str]]:
    """The last user turn is ``question.strip() + "\\n" + "<|out_lang_zh|>"``, as a warm start teaches."""
    last = messages[-1]
    return [*messages[:-1], {**last, "content": f"{last['content'].strip()}\n{tag(language)}"}]


def instructed(messages: list[dict[str, str]], language: str) -> list[dict[str, str]]:
    """A system prompt in the language, before any that the conversation has; for a policy without a warm start."""
    own = "".join("\n\n" + message["content"] for message in messages if message["role"] == "system")
    turns = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": INSTRUCTIONS[language] + own}, *turns]


def untouched(messages: list[dict[str, str]], language: str) -> list[dict[str, str]]:
    """The last user turn stripped, as every style has it."""
    return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"].strip()}]


class TagPrompts:
    """The style of a warm-started policy: a tag after the last user turn.

    Raises:
        FatalError: the tokenizer splits the tag of a language, so the policy never learned it; or has no chat template.
    """

    styled = staticmethod(tagged)

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
        if tokenizer.chat_template is None:
            raise FatalError("the tokenizer of model.path has no chat template, which makes a prompt of a question")
        self._tokenizer = tokenizer
        self._header = Header(config.model.header, config.run.languages)
        self._checked = set(config.run.languages)
        self._check(config.run.languages)

    def _check(self, languages: tuple[str, ...]) -> None:
        for language in languages:
            if len(self._tokenizer.encode(tag(language), add_special_tokens=False)) != 1:
                raise FatalError(
                    f"the tokenizer of model.path has no token {tag(language)}: "
                    'prompt_style = "tag" needs a model warm-started with the tags of run.languages and of the '
                    'questions\' languages, "system" none'
                )

    def _begin(self, language: str) -> str:
        """What the answer is given to begin with."""
        return ""

    def __call__(self, question: Question, language: str) -> list[int]:
        """Token ids of the prompt, the opening of the assistant's turn included."""
        if language not in self._checked:  # a question's own need not be of the run
            self._check((language,))
            self._checked.add(language)
        messages = self.styled([asdict(message) for message in question.messages], language)
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self._tokenizer.encode(f"{text}{self._begin(language)}", add_special_tokens=False)
        return ids


class SystemPrompts(TagPrompts):
    """Asks by the system prompt: "Zero", without a warm start.

    Raises:
        FatalError: the chat template leaves the system prompt out.
    """

    styled = staticmethod(instructed)

    def _check(self, languages: tuple[str, ...]) -> None:
        for language in languages:
            messages = instructed([{"role": "user", "content": "?"}], language)
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            if INSTRUCTIONS[language] not in str(text):
                raise FatalError('the chat template of model.path has no place for prompt_style = "system"')


class SelectPrompts(TagPrompts):
    """The style of a cold-started policy: it begins with a header that names its language, or is given that header."""

    styled = staticmethod(untouched)

    def _check(self, languages: tuple[str, ...]) -> None:
        pass

    def _begin(self, language: str) -> str:
        return "" if language == POLICY_CHOOSES else self._header.text(language)


STYLES: dict[str, type[TagPrompts]] = {"tag": TagPrompts, "system": SystemPrompts, "select": SelectPrompts}
