"""One sentence in ten languages, and requests to score answers to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.wire import ScoreRequest

SENTENCES = {
    "ar": "عاصمة اليابان هي مدينة طوكيو.",
    "de": "Die Hauptstadt von Japan ist Tokio.",
    "en": "The capital of Japan is Tokyo.",
    "es": "La capital de Japón es Tokio.",
    "fr": "La capitale du Japon est Tokyo.",
    "ja": "日本の首都は東京です。",
    "ko": "일본의 수도는 도쿄입니다.",
    "pt": "A capital do Japão é a cidade de Tóquio.",
    "ru": "Столица Японии — город Токио.",
    "zh": "日本的首都是东京。",
}
LANGUAGES = list(SENTENCES)


def request(
    answers: Sequence[str],
    languages: Sequence[str],
    reference: str = SENTENCES["en"],
    reference_language: str = "en",
    id: int = 1,
    **others: Any,
) -> ScoreRequest:
    return ScoreRequest(
        id=id,
        reference=reference,
        reference_language=reference_language,
        answers=list(answers),
        languages=list(languages),
        **others,
    )
