"""How the benchmarks score responses, with the real verifier: nothing that stands before a result makes it wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.answer import read_answer
from learner.data.problems import Place
from scripts.study.benchmarks.rows import BenchmarkRow
from scripts.study.benchmarks.scoring import BENCHMARKS, Response, Verifier


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    pytest.importorskip("math_verify")
    found = Verifier()
    yield found
    found.close()


def respond(raw: str, gold: str, language: str) -> Response:
    return Response(BenchmarkRow(language, "?", gold, Place("file", 0), "", ()), raw, read_answer(raw, language))


NUMBERS = [  # response, gold, language, whether it is right
    (r"\boxed{60\text{ cm}^2}", "60", "de", 1), (r"\boxed{\frac{1}{2}}", "2", "de", 0), (r"\boxed{3π}", "3", "de", 0),
    (r"\boxed{\frac{36}{2}}", "18", "de", 1), (r"\boxed{18} Stück, 2 mehr", "18", "de", 1),
    (r"\boxed{2 + 16}", "18", "de", 1), (r"\boxed{17, 18}", "18", "de", 0),
    (r"\boxed{18 \text{ von } 20}", "20", "de", 0),
    (r"\boxed{18 manzanas}", "18", "es", 1), (r"\boxed{18 яблок}", "18", "ru", 1), (r"\boxed{১৮টি}", "18", "bn", 1),
    (r"\boxed{1.200 Euro}", "1,200", "de", 1), (r"\boxed{1,200}", "1,200", "de", 1), (r"\boxed{8,5}", "8.5", "de", 1),
    ("Es sind **18**.", "18", "de", 1), ("**18** (9 mal 2)", "18", "de", 0), ("3～5个", "35", "zh", 0),
    (r"Es sind 18. \boxed{}", "18", "de", 1), ("", "18", "de", 0), ("<think>18", "18", "de", 0),
    ("<think>" + "a" * 110_000 + r"</think> \boxed{18}", "18", "en", 1), ("1 " * 60_000 + "18", "18", "en", 1),
    ("0." + "3" * 5000 + r"… \boxed{18}", "18", "en", 1),
]  # fmt: skip


@pytest.mark.parametrize("name", ["mgsm", "mgsm-rev2", "msvamp"])
def test_a_box_holds_a_number_or_a_formula_that_equals_it(name: str, verifier: Verifier) -> None:
    responses = [respond(raw, gold, language) for raw, gold, language, _ in NUMBERS]
    found = BENCHMARKS[name].ours(responses, verifier)
    assert [row for row, value in zip(NUMBERS, found, strict=True) if value != row[3]] == []


BOLD = r"Die Lösung ist **42**, denn $7^{12345}$ und $2024!$ sind groß!! Also \boxed{42}"


@pytest.mark.parametrize("name", ["mmath", "polymath", "mclm", "mgsm", "msvamp"])
def test_bold_print_and_large_numbers_on_the_way_cost_no_response_its_worth(name: str, verifier: Verifier) -> None:
    benchmark, responses = BENCHMARKS[name], [respond(BOLD, "42", "de"), respond(BOLD, "43", "de")]
    assert benchmark.ours(responses, verifier) == [1, 0]
    for source, score in benchmark.published.items():
        assert score(responses, verifier) == [1, 0], source
