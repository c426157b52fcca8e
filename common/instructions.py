"""The system prompt that asks for an answer in a language, written in that language."""

from __future__ import annotations

from common.languages import english_name, native_name

# By language code: "You are a helpful assistant. Always answer in <the language>."
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


def instruction(language: str) -> str:
    """The sentence that asks for an answer in a language, which is given by its code.

    Where nobody has written one in the language itself, it is an English one with the language's own name.
    """
    if language in INSTRUCTIONS:
        return INSTRUCTIONS[language]
    english, native = english_name(language).title(), native_name(language)
    name = english if native == english else f"{english} ({native})"
    return f"You are a helpful assistant. Always answer in {name}, and in no other language."
