"""How often the language gate judges a text of a few letters rightly, by language.

    python -m tests.reward.test_short_texts

prints the table of docs/rewards.md. Right are names in the language asked for (of territories, weekdays, months and
currencies, from CLDR; and of languages, on which no value was chosen) and pieces of its sentences. Wrong are the same
in another language, spelled otherwise, and short sentences of English. All have fewer than 20 letters.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from babel import Locale

from common.config.reward import NEAR_LANGUAGES
from common.writing import scripts_of_language
from reward import foreign_letters
from reward.gate import LanguageGate
from scripts.world.sources import paragraphs
from scripts.world.templates import REFUSALS

DECLARATION = Path(__file__).parents[1] / "support" / "texts" / "declaration.jsonl"
NAMED = [
    "ar", "bn", "de", "en", "es", "fr", "hi", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru", "sw", "te", "th", "tr",
    "vi", "zh",
]  # fmt: skip
MORE = ["fa", "uk", "yo"]  # lid.176 knows little Yoruba
SENTENCES = [
    "I don't know.", "No idea.", "I'm not sure.", "Thank you!", "Thanks a lot.", "Sorry, I can't.", "Yes, of course.",
    "I cannot say.", "It is Paris.", "The answer is no.", "I do not know.", "No, it is not.", "That is wrong.",
    "You are welcome.", "Please try again.", "I can't help you.", "Good question!", "Not possible.", "Of course not.",
    "The capital is Rome.", "It was in May.", "Sorry, no.", "I think so.", "Never heard of it.", "I have no answer.",
    "Ask someone else.", "In the summer.", "On Monday.", "The first one.", "It depends.",
]  # fmt: skip
Names = Mapping[str, str]  # by what is named


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def _is_short(text: str) -> bool:
    return 0 < _letters(text) < 20


def _is_word(text: str) -> bool:
    return len(text.replace("-", " ").split()) == 1


def names(code: str) -> dict[str, str]:
    """Names of territories, weekdays, months and currencies; those that are codes or numbers are left out."""
    locale, english = Locale.parse(code), Locale.parse("en")
    found = {f"territory {key}": name for key, name in locale.territories.items() if key.isalpha()}
    found |= {f"day {key}": name for key, name in locale.days["stand-alone"]["wide"].items()}
    found |= {f"month {key}": name for key, name in locale.months["stand-alone"]["wide"].items()}
    found |= {f"currency {key}": locale.currencies.get(key, key) for key in english.currencies}
    return {key: name for key, name in found.items() if _is_short(name) and key.split()[1].lower() != name.lower()}


def languages(code: str) -> list[str]:
    return [name for key, name in Locale.parse(code).languages.items() if _is_short(name) and "_" not in key]


def pieces() -> dict[str, list[str]]:
    """Two to four consecutive words of the Universal Declaration of Human Rights, up to 80 of each language."""
    draw, found = random.Random(0), dict[str, set[str]]()
    for row in [*paragraphs(), *map(json.loads, DECLARATION.read_text(encoding="utf-8").splitlines())]:
        words = row["text"].split()
        for _ in range(3 if len(words) > 4 else 0):
            first = draw.randrange(len(words) - 3)
            piece = " ".join(words[first : first + draw.randint(2, 4)])
            if _is_short(piece) and _letters(piece) >= 6:
                found.setdefault(row["language"], set()).add(piece)
    return {code: sorted(some)[:80] for code, some in found.items() if len(some) >= 20}


def texts() -> dict[str, dict[str, list[str]]]:
    """What is judged, by the language asked for and by its kind; only languages of one script are compared."""
    by_language, sentences = {code: names(code) for code in NAMED + MORE}, pieces()
    found = {}
    for code in NAMED + MORE:
        own = by_language[code]
        same = [other for other in by_language if scripts_of_language(other) == scripts_of_language(code)]
        others = [one for one in same if one != code and one not in NEAR_LANGUAGES.get(code, ())]
        # The names of English, or of German for English, among those in Latin script.
        compared = ["de" if code == "en" else "en"] if "en" in same else others
        spelled = {name.lower() for name in own.values()}
        foreign = [name for one in compared for name in by_language[one].values() if name.lower() not in spelled]
        found[code] = {
            "words": [*filter(_is_word, own.values())],
            "names": [name for name in own.values() if not _is_word(name)],
            "languages": languages(code),
            "pieces": sentences.get(code, []),
            "other words": [*filter(_is_word, foreign)],
            "other names": [name for name in foreign if not _is_word(name)],
            "other pieces": [piece for one in others for piece in sentences.get(one, [])[:20]],
            "English": SENTENCES if code != "en" else [],
        }
    return found


def passed(gate: LanguageGate) -> dict[str, dict[str, float]]:
    """The share of the texts of each kind that counts as being in the language; kinds without texts are left out."""
    gate.judge([], [])  # after which it remembers nothing
    return {
        code: {
            kind: sum(one.matches for one in gate.judge(some, [code] * len(some))) / len(some)
            for kind, some in kinds.items()
            if some
        }
        for code, kinds in texts().items()
    }


@contextmanager
def without_the_rule() -> Iterator[None]:
    """Judges short texts as long ones."""
    with patch.object(foreign_letters, "_FEW", 0):
        yield


@pytest.fixture(scope="module")
def gate() -> LanguageGate:
    return LanguageGate()


def test_names_pass_about_as_often_in_every_language_and_sentences_of_another_do_not(gate: LanguageGate) -> None:
    found = passed(gate)
    for kind, least, mean in (
        ("words", 0.86, 0.96),
        ("languages", 0.82, 0.93),
        ("names", 0.7, 0.87),
        ("pieces", 0.74, 0.96),
    ):
        shares = {code: found[code][kind] for code in NAMED if kind in found[code]}
        assert min(shares.values()) >= least and sum(shares.values()) / len(shares) >= mean, (kind, shares)
    for kind, most, mean in (("English", 0.25, 0.06), ("other pieces", 0.14, 0.09)):
        shares = {code: found[code][kind] for code in NAMED + MORE if kind in found[code]}
        assert max(shares.values()) <= most and sum(shares.values()) / len(shares) <= mean, (kind, shares)


def test_refusals_in_another_language_fail(gate: LanguageGate) -> None:
    for spoken, text in REFUSALS.items():
        asked = [code for code in NAMED if spoken not in (code, *NEAR_LANGUAGES.get(code, ()))]
        assert not any(one.matches for one in gate.judge([text] * len(asked), asked)), text


@pytest.mark.parametrize(
    ("language", "text", "matches"),
    [
        ("tr", "Evet", True),
        ("tr", "Almanya", True),
        ("sw", "Ufaransa", True),
        ("sw", "Nairobi", True),
        ("es", "Madrid", True),
        ("nl", "Amsterdam", True),
        ("fr", "Paris", True),
        ("de", "Thank you!", False),
        ("sw", "I do not know.", False),
        ("de", "I-do-not-know", False),
        ("tr", "I do not know.", False),
        ("fr", "Токио", False),
        ("ru", "Tokyo", False),
        ("ja", "日本的首都是东京。", False),
    ],
)
def test_a_short_text_is_judged_for_what_it_is(gate: LanguageGate, language: str, text: str, matches: bool) -> None:
    (judged,) = gate.judge([text], [language])
    assert judged.matches == matches, judged


def test_what_language_a_short_text_is_in_is_found_as_before(gate: LanguageGate) -> None:
    some = [text for kinds in texts().values() for kind in ("words", "pieces") for text in kinds[kind][:20]]
    found = gate.detect(some)
    gate.judge([], [])  # after which it remembers nothing
    with without_the_rule():
        assert gate.detect(some) == found


def main() -> None:
    gate = LanguageGate()
    with without_the_rule():
        before = passed(gate)
    after = passed(gate)
    kinds = [*next(iter(texts().values()))]
    print("| | " + " | ".join(kinds) + " |\n|---" + "|---" * len(kinds) + "|")
    for code in NAMED + MORE:
        cells = [
            f"{100 * before[code][kind]:.0f} → {100 * after[code][kind]:.0f}" if kind in after[code] else ""
            for kind in kinds
        ]
        print(f"| {code} | " + " | ".join(cells) + " |")
    for kind in kinds:
        has = [code for code in NAMED if kind in after[code]]
        means = [100 * sum(each[code][kind] for code in has) / len(has) for each in (before, after)]
        print(f"mean of the 21, {kind}: {means[0]:.1f} → {means[1]:.1f}")


if __name__ == "__main__":
    main()
