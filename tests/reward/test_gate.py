"""The language gate: which language a text is in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.process import FatalError
from reward.gate import LanguageGate, clean, has_language
from tests.support.scoring import LANGUAGES, SENTENCES


@pytest.fixture(scope="module")
def gate() -> LanguageGate:
    return LanguageGate()


def test_gate_knows_the_languages(gate: LanguageGate) -> None:
    assert gate.detect(list(SENTENCES.values())) == LANGUAGES


@pytest.mark.parametrize(
    "text", ["", "   \n\t", "😀🎉😀", "?!… — «»", "```python\nprint('hello world')\n```", "a" + " ." * 20]
)
def test_gate_finds_no_language(gate: LanguageGate, text: str) -> None:
    assert gate.detect([text]) == [""]


def test_gate_ignores_fenced_code(gate: LanguageGate) -> None:
    code = "```python\nfor each in range(10):\n    print('this is the english language, is it not')\n```"
    assert gate.detect([f"{code}\nDie Antwort\n\nsteht oben.\n{code}"]) == ["de"]
    assert clean(f" one {code} two\r\n\u2028three ") == "one two three"


def test_gate_threshold_is_five_percent_of_the_characters() -> None:
    assert has_language("a" + "." * 19)
    assert not has_language("a" + "." * 20)


@settings(max_examples=25)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=60), max_size=8))
def test_gate_takes_any_text_and_batching_changes_nothing(gate: LanguageGate, texts: list[str]) -> None:
    together = gate.detect(texts)
    assert together == [gate.detect([text])[0] for text in texts]
    for text, language in zip(texts, together, strict=True):
        body = " ".join(text.split()) if "```" not in text else clean(text)
        expected = bool(body) and 20 * sum(character.isalnum() for character in body) >= len(body)
        assert bool(language) == expected


@pytest.mark.parametrize("repeats", [1, 3, 12])
def test_pieces_name_the_same_language_as_the_whole(gate: LanguageGate, repeats: int) -> None:
    long = [" ".join([text] * repeats) for text in SENTENCES.values()]
    assert LanguageGate(piece=20).detect(long) == gate.detect(long) == LANGUAGES
    mixed = [f"{SENTENCES[a]} {SENTENCES[b]} {SENTENCES[b]} {SENTENCES[b]}" for a in LANGUAGES for b in LANGUAGES]
    assert LanguageGate(piece=12).detect(mixed) == gate.detect(mixed), "where pieces disagree the whole text is asked"


def test_gate_may_choose_among_some_languages_and_ask_for_certainty(gate: LanguageGate) -> None:
    close = "O gato bebe leite"  # also Galician, Occitan, ...
    assert gate.detect([close, close, ""], [{"pt", "de"}, {"ja"}, {"pt"}]) == ["pt", "ja", ""]
    texts = [*SENTENCES.values(), "ok", "Hotel Taxi", "12 34"]
    label, chance = gate._model.predict([clean(text) for text in texts])
    for least in (0.3, 0.9):
        expected = [
            name[0].removeprefix("__label__") if p[0] >= least else "" for name, p in zip(label, chance, strict=True)
        ]
        strict = LanguageGate(min_probability=least, piece=2)
        assert strict.detect(texts) == expected
        anything = {name for name in expected if name}
        assert [found in ("", was) for found, was in zip(strict.detect(texts, [anything] * 13), expected, strict=True)]


def test_gate_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=r"absent\.ftz"):
        LanguageGate(str(tmp_path / "absent.ftz"))
    (tmp_path / "broken.ftz").write_text("this is no model")
    with pytest.raises(FatalError, match=r"broken\.ftz"):
        LanguageGate(str(tmp_path / "broken.ftz"))
