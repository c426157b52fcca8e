r"""What a benchmark's question is asked with: the sentence that asks for the result in ``\boxed{}``, in its language.

The sentences are our own. The published ones differ by benchmark, and are given as a file, ``--prompts``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from common.languages import code_of
from common.process import FatalError
from scripts.study.benchmarks.rows import LETTERS, BenchmarkRow

_QUESTION = "{question}"
_BOX: Mapping[str, str] = {
    "ar": r"فكّر خطوة بخطوة، واكتب النتيجة النهائية داخل \boxed{}.",
    "bn": r"ধাপে ধাপে চিন্তা করো এবং চূড়ান্ত ফলাফল \boxed{} এর ভিতরে লেখো।",
    "de": r"Denke Schritt für Schritt und schreibe das Endergebnis in \boxed{}.",
    "en": r"Think step by step, and write the final result in \boxed{}.",
    "es": r"Piensa paso a paso y escribe el resultado final en \boxed{}.",
    "fr": r"Réfléchis étape par étape et écris le résultat final dans \boxed{}.",
    "id": r"Pikirkan langkah demi langkah, lalu tulis hasil akhirnya di dalam \boxed{}.",
    "it": r"Ragiona passo dopo passo e scrivi il risultato finale in \boxed{}.",
    "ja": r"順を追って考え、最終的な結果を \boxed{} の中に書いてください。",
    "ko": r"차근차근 생각한 다음 최종 결과를 \boxed{} 안에 쓰세요.",
    "ms": r"Fikirkan langkah demi langkah, kemudian tulis hasil akhir di dalam \boxed{}.",
    "pt": r"Pensa passo a passo e escreve o resultado final em \boxed{}.",
    "ru": r"Рассуждай шаг за шагом и запиши окончательный результат в \boxed{}.",
    "sw": r"Fikiri hatua kwa hatua, kisha andika matokeo ya mwisho ndani ya \boxed{}.",
    "te": r"దశలవారీగా ఆలోచించి, తుది ఫలితాన్ని \boxed{} లో రాయండి.",
    "th": r"คิดทีละขั้นตอน แล้วเขียนผลลัพธ์สุดท้ายไว้ใน \boxed{}",
    "vi": r"Hãy suy nghĩ từng bước và viết kết quả cuối cùng trong \boxed{}.",
    "zh": r"请逐步思考，并把最终结果写在 \boxed{} 中。",
}
_LETTER = "Answer with the letter of the right option."


def prompt(row: BenchmarkRow, templates: Mapping[str, str]) -> str:
    """The question as it is asked.

    Args:
        templates: by language; what is in the place of {question} in one. A language that has none is asked by ours: in
            English where we have no sentence in it, and where the question has options.
    """
    question = "\n".join([row.question.strip(), *options(row)])
    if row.language in templates:
        return templates[row.language].replace(_QUESTION, question)
    return f"{question}\n{_LETTER if row.choices else _BOX.get(row.language, _BOX['en'])}"


def options(row: BenchmarkRow) -> list[str]:
    """The options, one a line, each with its letter."""
    return [f"{letter}. {text}" for letter, text in zip(LETTERS, row.choices, strict=False)]


def harness_prompt(row: BenchmarkRow) -> str:
    """The question with its options as lm-evaluation-harness puts those of Global-MMLU, 0-shot."""
    return "\n".join([row.question.strip(), *options(row), "Answer:"])


def harness_include_prompt(row: BenchmarkRow) -> str:
    """The question as lm-evaluation-harness puts those of INCLUDE, 0-shot: with a space before the last option.

    Its templates (``lm_eval/tasks/include/default/*/_*_template_yaml``) are broken into two lines there, which YAML
    joins by a space.
    """
    *before, last = options(row)
    return "\n".join([row.question.strip(), *before, f" {last}", "Answer:"])


HARNESS_PROMPTS: Mapping[str, Callable[[BenchmarkRow], str]] = {
    "global-mmlu-lite": harness_prompt, "include-lite": harness_include_prompt,
}  # fmt: skip


def read_templates(path: Path | None) -> dict[str, str]:
    """Templates of a JSON object, language -> text with {question} in it; ``{{`` and ``}}`` stand for braces.

    So the dictionaries in the published code can be copied as they are.

    Raises:
        FatalError: the file cannot be read, or an entry has no {question}.
    """
    if path is None:
        return {}
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        templates = {code_of(language): str(text) for language, text in given.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise FatalError(f"cannot read the prompts of {path}: {error}") from None
    for language, text in templates.items():
        if _QUESTION not in text:
            raise FatalError(f"{path}: the prompt of {language!r} has no {_QUESTION} in it")
    return {language: text.replace("{{", "{").replace("}}", "}") for language, text in templates.items()}
