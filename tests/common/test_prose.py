"""What of a text is code and what is natural language, which may be made to look like code."""

from __future__ import annotations

import time

import pytest

from common.prose import judged_words, without_code

_ENGLISH = "We are asked for the capital city of Germany and this is the city of Berlin which everybody knows"


def ticked(form: str) -> str:
    return " ".join(f"`{form.format(word)}`" for word in _ENGLISH.split())


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Die Funktion `print` gibt `None` zurück.", "Die Funktion gibt zurück."),
        ("Rufe `foo` auf.", "Rufe auf."),
        ("`len(x)`", ""),
        ("`None`", ""),
        ("函数 `append` 添加元素。", "函数 添加元素。"),
        ("`sort` 메서드는 정렬합니다.", "메서드는 정렬합니다."),
        ("Siehe https://de.wikipedia.org/wiki/Berlin dort.", "Siehe dort."),
        ("Auf http://localhost:8000/ läuft er.", "Auf läuft er."),
        ("```python\nfor city in cities:\n    print(city.name)\n```", ""),
        ("```c\n#include <stdio.h>\n#define MAX 10\nint main(void) {\n  int i;\n  return 0;\n}\n```", ""),
        ("```css\nbody {\n  color: red;\n  font-family: Arial, sans-serif;\n}\n```", ""),
        ("```bash\n#!/bin/bash\n```", ""),
        ("```sql\nSELECT name FROM users\nORDER BY name;\n```", ""),
        ("```python\nprint('hello world')\n```", ""),
        ("```python\nx = 1\n```", ""),
    ],
)
def test_code_is_left_out(text: str, kept: str) -> None:
    assert " ".join(without_code(text).split()) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        *((ticked(form), _ENGLISH) for form in ("{}", "{}()", "_{}")),
        (ticked("{},").replace("` `", "``"), _ENGLISH),
        (f"`{_ENGLISH.replace(' ', '_')}`", _ENGLISH),
        (f"`{_ENGLISH.replace(' ', '.')}`", _ENGLISH),
        (" ".join(f"https://x.de/{word}" for word in _ENGLISH.split()), _ENGLISH.replace(" ", " x de ")),
        ("https://We https://add", "https://We https://add"),
        (f"```{_ENGLISH}```", _ENGLISH),
        (f"```{_ENGLISH}\n```", _ENGLISH),
        (f"```{_ENGLISH}\nx = 1\n```", _ENGLISH),
        ("".join(f"```{word}\n```\n" for word in _ENGLISH.split()), _ENGLISH),
        ("```\n# We add both\n// for both are known;\n* and so on\n-- then we see\n```",
         "We add both for both are known and so on then we see"),
        ("```\n<!-- We add both -->\n/* and so on */\n```", "We add both and so on"),
        ("```\nx = 3  # We add both\ny = 4 // and so on\n```", "We add both and so on"),
        ("```\nWe add both; so we get seven;\n```", "We add both so we get seven"),
        ('```\nprint("We add both numbers")\ns = \'and so it goes\';\n```', "We add both numbers and so it goes"),
        ("```\n# 我们把两个数相加\nx = '所以我们得到七这个数'\n```", "我们把两个数相加 所以我们得到七这个数"),
    ],
)  # fmt: skip
def test_language_that_looks_like_code_is_kept(text: str, kept: str) -> None:
    found = " ".join(without_code(text).split())
    assert found.removeprefix("x de ") == kept


def test_a_little_code_beside_much_text_stays_code_and_much_of_it_does_not() -> None:
    rest = "Das ist ein Satz mit sehr vielen deutschen Wörtern."
    assert "liste" not in judged_words(f"{rest} `liste` und `anzahl`")
    assert "liste" in judged_words(f"{rest} `liste` {ticked('{}')}")
    # What is padded with the symbols of formulas, which nobody judges, has no more text.
    assert "Germany" in judged_words(" ".join(f"{word} $ab ab ab$" for word in ticked("{}").split()))


@pytest.mark.parametrize(
    "text", ["`a`", "`a`b ", "# a\n", "a;", "x /*", " #", "'\"", "https://a.b/", "```\n", "-", " "]
)
def test_the_time_grows_with_the_length_alone(text: str) -> None:
    began = time.perf_counter()
    judged_words("```\n" + text * (100_000 // len(text)))
    judged_words(text * (100_000 // len(text)))
    assert time.perf_counter() - began < 20
