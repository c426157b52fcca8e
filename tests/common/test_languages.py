"""Languages by any name: what a code, a tag or a name means, and what is said of those that are unknown."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from pathlib import Path

import fasttext
import langcodes
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.languages import CODES, code_of, count_as_one, english_name, native_name, tag
from reward.gate import shipped_model

ROOT = Path(__file__).parents[2]
# Labels of lid.176 that are not, or no longer, the codes of the standards.
ODD_LABELS = {"als", "bh", "bxr", "diq", "eml", "gom", "mhr", "nah", "no", "pnb", "sh", "tl"}


def test_they_are_those_that_the_detector_knows() -> None:
    labels = fasttext.load_model(str(shipped_model())).get_labels()
    assert {label.removeprefix("__label__") for label in labels} == set(CODES) and len(CODES) == 176


@given(
    code=st.sampled_from(CODES),
    form=st.sampled_from(["code", "english", "native", "alpha3", "region", "script", "tag"]),
    case=st.sampled_from([str, str.upper, str.lower, str.title]),
    unicode_form=st.sampled_from(["NFC", "NFD"]),
    space=st.sampled_from(["", " ", "\n"]),
)
def test_every_form_of_every_language_leads_back_to_it(
    code: str, form: str, case: object, unicode_form: str, space: str
) -> None:
    """langcodes makes the three-letter codes and the likely scripts, independently of what reads them."""
    assert callable(case)
    name = {"code": code, "english": english_name(code), "native": native_name(code), "tag": code}.get(form)
    if name is None and code in ODD_LABELS:
        return
    if name is None:
        language = langcodes.Language.get(code)
        likely = language.maximize()
        name = {"alpha3": language.to_alpha3(), "region": f"{code}-{likely.territory or 'US'}"}.get(form)
        name = name or f"{code}_{likely.script or 'Latn'}"
    assert code_of(f"{space}{unicodedata.normalize(unicode_form, case(name))}{space}") == code  # type: ignore[arg-type]
    assert tag(code) == f"<|out_lang_{code}|>" and code_of(code) == code


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("pt-BR", "pt"), ("zh-Hant", "zh"), ("zh_CN", "zh"), ("zho", "zh"), ("chi", "zh"), ("cmn", "zh"), ("nb", "no"),
        ("nob", "no"), ("nno", "nn"), ("iw", "he"), ("in", "id"), ("ji", "yi"), ("mo", "ro"), ("fil", "tl"),
        ("eng_Latn", "en"), ("arb_Arab", "ar"), ("als_Latn", "sq"), ("swh", "sw"), ("zsm", "ms"), ("pes", "fa"),
        ("zh-yue", "yue"), ("sr-Latn", "sr"), ("hbs", "sh"), ("gsw", "als"), ("Simplified Chinese", "zh"),
        ("Chinese (Simplified)", "zh"), ("bokmål", "no"),
        ("Mandarin", "zh"), ("Brazilian Portuguese", "pt"), ("Portuguese (Brazil)", "pt"), ("Farsi", "fa"),
        ("Norwegian Bokmål", "no"), ("svenska", "sv"), ("Ελληνικά", "el"), ("ΕΛΛΗΝΙΚΑ", "el"), ("Українська", "uk"),
        ("日本語", "ja"), ("简体中文", "zh"), ("한국어", "ko"), ("हिन्दी", "hi"), ("Español", "es"), ("espanol", "es"),
        ("Bangla", "bn"), ("Bengali", "bn"), ("Central Kurdish", "ckb"),
    ],
)  # fmt: skip
def test_names_in_use(name: str, code: str) -> None:
    assert code_of(name) == code


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("frnch", "did you mean 'french'"),
        ("Germann", "did you mean 'german'"),
        ("italien", "did you mean 'italian'"),
        ("tlh", "it is Klingon, which is none of the 176 languages"),
        ("klingon", "it is Klingon"),
        ("nan-Hant", "which is none of the 176"),
        ("xx", "give an ISO 639 code"),
        ("und", "give an ISO 639 code"),
        ("", "give an ISO 639 code"),
        ("python", "give an ISO 639 code"),
        ("\ud83d", "give an ISO 639 code"),
    ],
)
def test_an_unknown_language_never_becomes_another(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint) as error:
        code_of(name)
    str(error.value).encode()


@given(st.text(max_size=12))
def test_any_text_is_a_language_or_an_error_of_one_line(text: str) -> None:
    try:
        assert code_of(text) in CODES
    except ValueError as error:
        assert "unknown language" in str(error) and "\n" not in str(error)


def test_which_languages_count_as_one() -> None:
    assert count_as_one("no", "nn") and count_as_one("de", "de")
    assert not count_as_one("id", "ms") and not count_as_one("de", "") and not count_as_one("no", "da")


def test_a_known_language_needs_neither_torch_nor_the_library_of_names() -> None:
    check = (
        "import sys, common.languages as c; c.code_of('German'); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'langcodes', 'language_data', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
