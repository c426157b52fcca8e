"""Benchmarks: rows of our own in the published forms are read, and scored by hand-made tables, faults included."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats
from transformers import AutoTokenizer

from common import diagnostics
from common.answer import read_answer
from common.process import FatalError
from common.wire import PartLanguages
from learner.data.problems import Place
from reward.detectors import DetectorName
from reward.terms import math
from scripts.study import bench, coverage
from scripts.study.benchmarks import published, rows, scoring
from scripts.study.benchmarks.letters import SeveralTokens, letter_questions, likeliest
from scripts.study.benchmarks.prompts import HARNESS_PROMPTS, harness_prompt, prompt, read_templates
from scripts.study.benchmarks.rows import BenchmarkRow
from scripts.study.benchmarks.scoring import BENCHMARKS, Response
from scripts.study.served_model import cache_file
from tests.support.chat import serving

GERMAN = "Wir zählen zuerst die Äpfel im Korb und dann die Birnen, die auf dem Tisch liegen."
FRENCH = "Nous comptons d'abord les pommes du panier, puis les poires qui sont sur la table."
ENGLISH = "First we count the apples in the basket, and then the pears that lie on the table."


class InThisProcess:
    """Compares formulas without the workers, which take seconds to start; tests/reward has theirs."""

    def verify(
        self, answers: Sequence[tuple[str, list[str], str]], check: scoring.Check | None = None
    ) -> list[float | None]:
        return [float((check or math._verify)(*one)) for one in answers]

    def close(self) -> None:
        pass


@pytest.fixture
def verifier(monkeypatch: pytest.MonkeyPatch) -> scoring.Verifier:
    monkeypatch.setattr(scoring, "MathVerifier", InThisProcess)
    return scoring.Verifier()


def test_what_the_verifier_does_not_get_to_is_verified_again_and_never_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(InThisProcess):
        """Gets to the first two answers of a call."""

        def verify(
            self, answers: Sequence[tuple[str, list[str], str]], check: scoring.Check | None = None
        ) -> list[float | None]:
            return [*super().verify(answers[:2], check), *[None] * (len(answers) - 2)][: len(answers)]

    monkeypatch.setattr(scoring, "MathVerifier", Slow)
    asked = [(f"$\\boxed{{{n}}}$", ["3" if n % 2 else str(n)], "") for n in range(8)]
    assert scoring.Verifier()(asked) == [1, 0, 1, 1, 1, 0, 1, 0]
    with pytest.raises(FatalError, match=r"2 answers could not be verified in 5 rounds.*run the same command again"):
        scoring.Verifier()([*asked, *asked[:4]])


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write(directory: Path, files: dict[str, Any]) -> str:
    """Files by name: a text, a JSON array, or the rows of a parquet file."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(content), path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(directory)


MMATH = {
    "question": "Was ist 2 + 3?",
    "answer": "5",
    "data_source": "CNMO",
    "data_source_id": 0,
    "lang": "de",
    "gid": 9,
}
OPTIONS = {"option_a": "Bern", "option_b": "Rom", "option_c": "Wien", "option_d": "Prag"}
HALF = "$\\frac{1}{2}$"
INCLUDE = {"language": "German", "country": "Austria", "question": "Hauptstadt?", "choices": [*OPTIONS.values()],
           "answer": 2, "subject": "geography", "regional_feature": "region explicit"}  # fmt: skip
FORMS: dict[str, tuple[dict[str, Any], list[tuple[str, str, str, str]]]] = {
    "mmath": (
        {"de.json": [MMATH], "fr.json": [{**MMATH, "lang": "fr", "data_source": "AIME2024", "answer": HALF}]},
        [("de", "Was ist 2 + 3?", "5", "CNMO"), ("fr", "Was ist 2 + 3?", HALF, "AIME2024")],
    ),
    "polymath": (
        {
            "de/low.parquet": [{"id": "low-de-0", "question": "1 + 1?", "answer": "2"}],
            "de/top.parquet": [{"id": "top-de-0", "question": "Dimension?", "answer": "$\\frac{5}{4}$"}],
        },
        [("de", "1 + 1?", "2", "low"), ("de", "Dimension?", "$\\frac{5}{4}$", "top")],
    ),
    "mgsm": (
        {"mgsm_th.tsv": "เท่าไร?\t1,200\n", "mgsm_de.tsv": 'Er sagt "vier" Äpfel?\t4\nNoch?\t-3\n'},
        [("de", 'Er sagt "vier" Äpfel?', "4", ""), ("de", "Noch?", "-3", ""), ("th", "เท่าไร?", "1,200", "")],
    ),
    "mgsm-rev2": (
        {"mgsm_sw.tsv": "Ngapi?\t18\n", "replaced_questions.json": {"sw": [1]}},
        [("sw", "Ngapi?", "18", "")],
    ),
    "msvamp": (
        {
            "test_German.json": lines({"query": "?", "equation": "+ 1 1", "response": "8.0", "m_query": "Wie viele?"}),
            "test_English.json": lines({"m_query": "how many?", "equation": "+ 1 1", "response": "8.0"}),
        },
        [("en", "how many?", "8.0", ""), ("de", "Wie viele?", "8.0", "")],
    ),
    "global-mmlu-lite": (
        {
            "de/test-00000-of-00001.parquet": [
                {"question": "Hauptstadt?", **OPTIONS, "answer": "C", "cultural_sensitivity_label": "CS"}
            ],
            "de/dev-00000-of-00001.parquet": [{"sample_id": "x/2", "question": "Nicht gefragt?", "answer": "A"}],
        },
        [("de", "Hauptstadt?", "C", "CS")],
    ),
    "include-lite": (
        {
            "German/test.parquet": [INCLUDE],
            "North Macedonian/test.parquet": [
                {**{k: v for k, v in INCLUDE.items() if k != "choices"}, **OPTIONS, "language": "North Macedonian"}
            ],
        },
        [("de", "Hauptstadt?", "C", "region explicit"), ("mk", "Hauptstadt?", "C", "region explicit")],
    ),
    "mclm": (
        {
            "mt-math100.parquet": [
                {"en": "1 + 1?", "ja": None, "zh-cn": "1 加 1 是多少？", "zh-tw": "1 加 1 是多少？？", "answer": "2"}
            ],
            "mt-aime2024.parquet": [{"en": "2 + 2?", "ja": "足す?", "zh-cn": None, "answer": "4"}],
            "m-imo.parquet": [{"en": "Prove it.", "answer": None}],
        },
        [("en", "2 + 2?", "4", "MT-AIME2024"), ("ja", "足す?", "4", "MT-AIME2024"), ("en", "1 + 1?", "2", "MT-MATH100"),
         ("zh", "1 加 1 是多少？", "2", "MT-MATH100"), ("zh", "1 加 1 是多少？？", "2", "MT-MATH100")],
    ),
}  # fmt: skip


def test_every_benchmark_has_a_form() -> None:
    assert FORMS.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("name", FORMS)
def test_rows_are_read_as_they_are_published(name: str, tmp_path: Path) -> None:
    files, wanted = FORMS[name]
    found = BENCHMARKS[name].read(write(tmp_path, files), [])
    assert [(row.language, row.question, row.answer, row.group) for row in found] == wanted
    assert all(row.choices == (tuple(OPTIONS.values()) if name in HARNESS_PROMPTS else ()) for row in found)
    one = wanted[-1][0]
    chosen = BENCHMARKS[name].read(str(tmp_path), [one])
    assert [row.language for row in chosen] == [language for language, *_ in wanted if language == one]
    with pytest.raises(FatalError, match=r"no question in (de, )?yo"):
        BENCHMARKS[name].read(str(tmp_path), ["yo", one])


def test_a_question_has_one_id_in_all_languages(tmp_path: Path) -> None:
    files: dict[str, dict[str, Any]] = {
        "mmath": {f"{one}.json": [{**MMATH, "lang": one, "gid": n} for n in order]
                  for one, order in (("de", (3, 1)), ("fr", (1, 3)))},
        "polymath": {f"{one}/low.parquet": [{"id": f"low-{one}-{n}", "question": "?", "answer": "1"} for n in order]
                     for one, order in (("de", (3, 1)), ("fr", (1, 3)))},
        "mgsm": {"mgsm_de.tsv": "question\tanswer\nDrei?\t3\nEins?\t1\n", "mgsm_fr.tsv": "Trois?\t3\nUn?\t1\n"},
        "msvamp": {f"test_{one}.json": lines(*({"m_query": f"{n}?", "response": "1.0"} for n in (3, 1)))
                   for one in ("German", "French")},
        "global-mmlu-lite": {
            f"{one}/test.parquet": [{"sample_id": f"x/{n}", "question": "?", **OPTIONS, "answer": "A"} for n in order]
            for one, order in (("de", (3, 1)), ("fr", (1, 3)))},
        "mclm": {"mt-math100.parquet": [{"de": f"{n}?", "fr": f"{n} ?", "answer": str(n)} for n in (3, 1)]},
    }  # fmt: skip
    for name, some in files.items():
        by_language: dict[str, list[str]] = {}
        for row in BENCHMARKS[name].read(write(tmp_path / name, some), []):
            by_language.setdefault(row.language, []).append(row.id)
        assert {*by_language["de"]} == {*by_language["fr"]} and len({*by_language["de"]}) == 2, name
    english = {**INCLUDE, "language": "English"}
    found = BENCHMARKS["include-lite"].read(
        write(tmp_path / "include", {"German/test.parquet": [INCLUDE], "English/test.parquet": [english]}), []
    )
    assert len({row.id for row in found}) == 2, "every language has its own"


def test_varieties_of_a_language_weigh_as_the_languages_that_they_are_published_as(tmp_path: Path) -> None:
    questions = [{"en": f"{n}?", "zh-cn": f"{n}？", "zh-tw": f"{n}吗？", "answer": str(n)} for n in range(3)]
    data, benchmark = write(tmp_path, {"mt-math100.parquet": questions}), BENCHMARKS["mclm"]
    some = benchmark.read(data, [])
    assert len({(*row.stratum, row.id) for row in some}) == len(some) == 9
    kept = bench.first_of_each(some, 2)
    assert [row.stratum[0] for row in kept] == ["en", "zh-cn", "zh-tw"] * 2
    assert {row.language for row in benchmark.read(data, ["zh"])} == {"zh"} and len(benchmark.read(data, ["zh"])) == 6
    scores = [[float(row.variety == "zh-tw")] for row in kept]
    samples = [[diagnostics.Sample(None, None, None, 1)] for _ in kept]
    found = bench.summarise(benchmark, kept, {"ours": scores}, samples, 0)["ours"]
    assert found["means"]["questions"][0] == pytest.approx(1 / 3)
    assert {name: one["accuracy"] for name, one in found["languages"].items()} == {"en": 0, "zh-cn": 0, "zh-tw": 1}


def test_only_the_names_of_files_and_folders_of_the_data_count(tmp_path: Path) -> None:
    question = {"en": "1 + 1?", "answer": "2"}
    for place in ("home/simon", "aime/mclm", "it"):
        path = write(tmp_path / place, {"mt-math100.parquet": [question], "MT-AIME2024/test.parquet": [question],
                                        "m-imo.parquet": [question], "M-MO/test-0.parquet": [question]})  # fmt: skip
        assert [row.group for row in rows.read_mclm(path, [])] == ["MT-AIME2024", "MT-MATH100"], place
        assert rows.read_mclm(f"{path}/mt-math100.parquet", [])[0].group == "MT-MATH100"
        assert rows.read_mclm(f"{path}/MT-AIME2024", [])[0].group == "MT-AIME2024"
        assert rows.read_mclm(f"{path}/MT-AIME2024/test.parquet", [])[0].group == "MT-AIME2024"
        with pytest.raises(FatalError, match="names no language"):
            rows.read_mgsm(write(tmp_path / place / "own", {"mgsm.tsv": "Quanti?\t4\n"}), [])
    with pytest.raises(FatalError, match="names no language"):
        rows.read_mgsm(write(tmp_path / "it" / "de", {"mgsm.tsv": "Quanti?\t4\n"}), [])
    with pytest.raises(FatalError, match=r"is named after a part of MCLM; these are MT-MATH100"):
        rows.read_mclm(write(tmp_path / "other", {"questions.parquet": [question]}), [])
    with pytest.raises(FatalError, match="has no question"):
        rows.read_mclm(write(tmp_path / "proofs", {"m-imo.parquet": [question]}), [])


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("mmath", {"de.json": [{**MMATH, "data_source": None}]}, r"de\.json, row 0: .*'data_source' is 'None'"),
        ("mmath", {"de.json": [{"problem": "?", "answer": "5"}]}, r"no column 'data_source'.*are problem, answer"),
        ("mmath", {"de.json": [{**MMATH, "data_source": "GSM8K"}]}, r"'GSM8K', which is none of AIME2024"),
        ("mmath", {"de.json": [{**MMATH, "lang": "xx"}]}, r"row 0: unknown language 'xx'"),
        ("polymath", {"de/low.parquet": [{"id": "0", "question": "?", "answer": "1"}]}, r"the id '0' is not of"),
        ("mgsm", {"mgsm_de.tsv": "a\tb\tc\n"}, r"mgsm_de\.tsv, row 0: it has 3 columns"),
        ("mgsm", {"mgsm_de.tsv": "Wie viele?\tvier\n"}, r"the answer 'vier' is no whole number"),
        ("mgsm", {"mgsm.tsv": "Wie viele?\t4\n"}, r"names no language: it takes a name as mgsm_de\.tsv"),
        ("msvamp", {"test_German.json": lines({"query": "?", "response": "1"})}, r"no column 'm_query'.*query"),
        ("msvamp", {"test_German.json": lines({"m_query": "?", "response": "eins"})}, r"'eins' is no number"),
        ("global-mmlu-lite", {"de/test.parquet": [{"question": "?", **OPTIONS, "answer": "E"}]}, "none of A, B, C, D"),
        ("global-mmlu-lite", {"de/test.parquet": [{"question": "?", "answer": "A"}]}, r"no column 'option_a'"),
        ("include-lite", {"test.parquet": [{**INCLUDE, "answer": 4}]}, r"'answer' is '4'; a whole number from 0 to 3"),
        ("include-lite", {"test.parquet": [{**INCLUDE, "choices": ["x"]}]}, r"'choices' is .*option_a to option_d"),
        ("mclm", {"mt-math100.parquet": [{"problem": "?", "answer": "1"}]}, r"no column is named after a language"),
        ("mclm", {"mt-math100.parquet": [{"en": "?"}]}, r"no column 'answer'"),
        ("mclm", {"readme.md": "x"}, r"holds no file that ends in \.parquet"),
        ("mclm", {"dev.parquet": [{"en": "?"}]}, r"holds no file of rows"),
    ],
)  # fmt: skip
def test_a_wrong_column_is_named(name: str, files: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=message):
        BENCHMARKS[name].read(write(tmp_path, files), [])


def test_the_hub_is_asked_for_the_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(source: str) -> list[Any]:
        asked.append(source)
        return []

    monkeypatch.setattr(rows, "read_records", read)
    for name, source in (("polymath", "Qwen/PolyMath"), ("include-lite", "CohereLabs/include-lite-44")):
        with pytest.raises(FatalError, match="no question"):
            BENCHMARKS[name].read(source, ["de", "mk"] if name == "include-lite" else ["de"])
    levels = [f"Qwen/PolyMath:de@{level}" for level in ("low", "medium", "high", "top")]
    assert asked == [
        *levels,
        "CohereLabs/include-lite-44:German@test",
        "CohereLabs/include-lite-44:North Macedonian@test",
    ]
    asked.clear()
    with pytest.raises(FatalError, match="no question"):
        BENCHMARKS["global-mmlu-lite"].read("CohereLabs/Global-MMLU-Lite", [])
    assert len(asked) == 23


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{4} or rather \boxed{5}", "5"),
        (r"<think>\boxed{7}", "7"),  # a thought that never ended
        (r"\boxed{{5}}", "5"),
        (r"so \boxed{3 and 12 apples", "12"),  # a box that never ends: the last number
        ("The answer is 1,234.", "1234"),
        ("It costs -3.50 and no more", "-3.50"),
        ("no number at all", "None"),
        (r"\fbox{9}", "9"),
    ],
)
def test_what_mmath_reads(response: str, answer: str) -> None:
    assert published.answer_mmath(response) == answer


def test_what_polymath_reads() -> None:
    read, close = published.answer_polymath, published.numbers_close_polymath
    assert read(r"<think>\boxed{1}</think>First \boxed{2}, then \boxed{3}") == "2", "the first one, after the thought"
    assert read(r"\boxed{ \frac{1} {2} }") == r"\frac{1}{2}" and read(r"\boxed{1") is None and read("7") is None
    assert close("0.5", "50") and close("5000", "50") and close("50%", "0.5"), "a factor of 100 counts as equal"
    assert close("10000.5", "10000") and not close("10002", "10000") and close("1,000", "1000")
    assert close("x+1", "X+1") and close("x", "2") is None


def test_what_adamame_mathoctopus_and_the_harness_read() -> None:
    assert published.boxes_adamame(r"<think>\boxed{4}, no, \boxed{5}</think>\boxed{6}") == ("6", "4")
    assert published.boxes_adamame(r"\boxed{6} \boxed{7}") == ("6", "") and published.boxes_adamame("6") == ("", "")
    right = published.right_mathoctopus
    assert right("it is 8", "8.0") and right("8.0005", "8.0") and right("-8", "8.0"), "signs are lost"
    assert right("no idea", "0.0") and not right("8,5", "8.5"), "no number is 0, and a decimal comma is none"
    assert right("1,234", "1234.0") and not right("٨", "7.0") and right("٨", "8.0")
    harness = published.right_harness_mgsm
    assert harness("so 1,200.", "1200") and harness("$18", "18") and harness("1,5", "15") and not harness("٤٢", "42")
    assert not harness("none", "5") and not harness("18.00", "18"), "texts are compared"
    assert harness("1.200", "1,200") and harness("-5", "5") and harness("1.5", "15"), "without any punctuation"


def test_the_harness_rule_is_the_harness_s_own() -> None:
    """Its filter and its metric, with the settings of its task of MGSM."""
    import lm_eval
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/mgsm/direct/direct_yaml").read_text())
    (flexible,) = [one["filter"][0] for one in task["filter_list"] if one["name"] == "flexible-extract"]
    read = RegexFilter(flexible["regex_pattern"], flexible["group_select"])
    settings = {name: task["metric_list"][0].get(name, False) for name in ("ignore_case", "ignore_punctuation")}
    texts = ["Es sind 1.200 Euro.", "-5", "1.5", "1,5", "$18", "18.00", "18.", "so 7... oder 8 ...", "٤٢", "", "keine",
             "5 €, also -12", "3/4", "1 200", "a.b,c 9"]  # fmt: skip
    for text in texts:
        (((said),),) = read.apply([[text]], [{}])
        for gold in (1200, 5, -5, 15, 18, 42, 12, 4, 9, 200):
            found = exact_match_hf_evaluate([said], [str(gold)], **settings)["exact_match"]
            assert published.right_harness_mgsm(text, str(gold)) == bool(found), (text, gold)
    assert published.right_harness_mgsm("18", "18.0") and published.right_harness_mgsm("1200", "1,200")


def test_options_are_put_as_the_harness_puts_them() -> None:
    import lm_eval
    from lm_eval.utils import apply_template

    tasks = Path(lm_eval.__file__).parent / "tasks"
    rows_of = {"global-mmlu-lite": "global_mmlu/default/de/_de_template_yaml",
               "include-lite": "include/default/German/_german_template_yaml"}  # fmt: skip
    row = BenchmarkRow("de", " Hauptstadt? ", "C", Place("f", 0), choices=tuple(OPTIONS.values()))
    assert rows_of.keys() == HARNESS_PROMPTS.keys()
    for name, file in rows_of.items():
        form = yaml.safe_load((tasks / file).read_text(encoding="utf-8"))["doc_to_text"]
        assert HARNESS_PROMPTS[name](row) == apply_template(form, {"question": row.question, **OPTIONS}), name


def test_how_formulas_are_compared() -> None:
    equal, mclm = published.equal_formulas, published.equal_mclm
    assert equal(r"$\frac{1}{2}$", ["$0.5$"], "") and not equal("$7$", ["5"], "")
    assert not equal(r"$2\sqrt{3}$", [r"2\sqrt{3}"], ""), "a gold without dollars is read as a number"
    assert mclm(r"\boxed{1}", ["12"], ""), "one text within the other"
    assert mclm(r"\boxed{12}", ["12"], "") and not mclm("nothing", ["12"], "")


def respond(raw: str, answer: str, language: str = "de", group: str = "", choices: tuple[str, ...] = ()) -> Response:
    row = BenchmarkRow(language, "?", answer, Place("file", 0), group, choices)
    return Response(row, raw, read_answer(raw, language))


TABLE = [  # benchmark, response, gold, language, ours, then each published scoring
    ("mmath", r"\boxed{5}", "5", "de", 1, {"MMATH": 1}),
    ("mmath", r"<think>\boxed{5}", "5", "de", 0, {"MMATH": 1}),
    ("mmath", r"\boxed{2\sqrt{3}}", r"2\sqrt{3}", "de", 1, {"MMATH": 0}),
    ("mmath", r"\boxed{4} \boxed{5}", "5", "de", 1, {"MMATH": 1}),
    ("mmath", "ผลลัพธ์คือ ๔๒", "42", "th", 1, {"MMATH": 0}),
    ("polymath", r"\boxed{4}, no: \boxed{5}", "5", "de", 1, {"PolyMath": 0}),
    ("polymath", r"\boxed{50}", "0.5", "de", 0, {"PolyMath": 1}),
    ("polymath", r"\boxed{\frac{5}{4}}", r"$\frac{5}{4}$", "de", 1, {"PolyMath": 1}),
    ("mgsm", "Es sind 1.200 Euro.", "1,200", "de", 1, {"AdaMame": 0, "lm-eval (flexible)": 1}),
    ("mgsm", "Es sind 1,5 Euro.", "15", "de", 0, {"AdaMame": 0, "lm-eval (flexible)": 1}),
    ("mgsm", r"\boxed{18}", "18", "de", 1, {"AdaMame": 1, "lm-eval (flexible)": 1}),
    ("mgsm", r"<think>\boxed{18}</think>\boxed{19}", "18", "de", 0, {"AdaMame": 1, "lm-eval (flexible)": 0}),
    ("mgsm-rev2", "18, also 19", "19", "de", 1, {"AdaMame": 0, "lm-eval (flexible)": 1}),
    ("msvamp", "Es sind -8.", "8.0", "de", 0, {"MathOctopus": 1, "AdaMame": 0}),
    ("msvamp", "Es sind 8,5 Liter.", "8.5", "de", 1, {"MathOctopus": 0, "AdaMame": 0}),
    ("msvamp", "Keine Ahnung.", "0.0", "de", 0, {"MathOctopus": 1, "AdaMame": 0}),
    ("include-lite", "Die Antwort ist C.", "C", "de", 1, {}),
    ("global-mmlu-lite", "<think>C</think>(B)", "C", "de", 0, {}),
    ("mclm", r"\boxed{1}", "12", "de", 0, {"MCLM": 1}),
    ("mclm", r"\boxed{12}", "12", "de", 1, {"MCLM": 1}),
]


def test_scores_as_published_and_as_they_should_be(verifier: scoring.Verifier) -> None:
    for name, raw, gold, language, ours, sources in TABLE:
        benchmark, one = BENCHMARKS[name], [respond(raw, gold, language)]
        assert benchmark.ours(one, verifier) == [ours], (name, raw)
        assert {source: score(one, verifier) for source, score in benchmark.published.items()} == {
            source: [value] for source, value in sources.items()
        }, (name, raw)
    with pytest.raises(FatalError, match="is no number"):
        BENCHMARKS["msvamp"].ours([respond("5", "five")], verifier)


def stratum(values: Any, first: int = 0) -> scoring.Stratum:
    """Questions that are numbered from ``first`` on."""
    return scoring.Stratum(values, [str(number) for number in range(first, first + len(values))])


def test_means_weigh_languages_sources_and_levels_as_published(rng: np.random.Generator) -> None:
    values = {
        (language, level): (rng.random(int(rng.integers(1, 30))) < 0.5).astype(float)
        for language in ("de", "fr")
        for level in ("low", "medium", "high", "top")
    }
    counts = {key: len(some) for key, some in values.items()}

    def estimate(weigh: Any) -> float:
        strata = {key: stratum(some) for key, some in values.items()}
        return scoring.weighted_mean(strata, weigh(counts), np.random.default_rng(0))[0]

    of = {key: some.mean() for key, some in values.items()}
    both = ("de", "fr")
    wanted = [
        np.mean([np.concatenate([v for k, v in values.items() if k[0] == one]).mean() for one in both]),
        np.mean([np.mean([of[one, level] for level in ("low", "medium", "high", "top")]) for one in both]),
        np.mean([(of[o, "low"] + 2 * of[o, "medium"] + 4 * of[o, "high"] + 8 * of[o, "top"]) / 15 for o in both]),
    ]
    found = [estimate(weigh) for weigh in (scoring.over_questions, scoring.over_sources, scoring.by_difficulty)]
    assert found == pytest.approx(wanted)
    some = (rng.random(200) < 0.3).astype(float)
    mean, low, high = scoring.weighted_mean({("de", ""): stratum(some)}, {("de", ""): 1.0}, rng)
    independent = stats.bootstrap((some,), np.mean, n_resamples=2000, method="percentile", rng=rng).confidence_interval
    assert (mean, low, high) == pytest.approx((some.mean(), independent.low, independent.high), abs=0.02)


@pytest.mark.parametrize("languages", [1, 10])
def test_intervals_hold_for_other_questions_in_all_languages_at_once(languages: int, rng: np.random.Generator) -> None:
    trials = 300
    found = coverage.bench_coverage(languages, 2.0, trials, rng, questions=60)
    spread = 4 * (0.95 * 0.05 / trials) ** 0.5  # four standard deviations of a share of 0.95
    assert found["together"].share > 0.94 - spread, "the bootstrap of 60 questions is a little too narrow"
    if languages > 1:
        assert found["apart"].share < 0.8, "translations are no questions of their own"
        assert found["together"].width > 1.5 * found["apart"].width


def test_questions_of_one_language_alone_are_drawn_by_themselves(rng: np.random.Generator) -> None:
    """As of INCLUDE: the interval is that of independent means, and of partly translated sets in between."""
    german, french = ((rng.random(400) < 0.5).astype(float) for _ in range(2))
    weights = {("de", ""): 0.5, ("fr", ""): 0.5}

    def width(first: int, some: Any = french) -> float:
        """With French questions that are numbered from ``first`` on; the German ones are, from 0."""
        strata = {("de", ""): stratum(german), ("fr", ""): stratum(some, first)}
        _, low, high = scoring.weighted_mean(strata, weights, rng)
        return high - low

    alone = 2 * 1.96 * (german.var() + french.var()) ** 0.5 / 2 / 20
    assert width(400) == pytest.approx(alone, rel=0.15)
    assert width(0, german) == pytest.approx(2 * 1.96 * german.std() / 20, rel=0.15), "the same answers, word for word"
    assert width(0, 1 - german) == 0, "one language makes up for the other"
    half = np.concatenate([1 - german[200:], french[:200]])
    assert width(200, half) == pytest.approx(alone / 2**0.5, rel=0.2), "half of the questions are shared"
    few = {("de", ""): stratum(german), ("fr", ""): stratum(french[:1], 7)}
    assert np.isfinite(scoring.weighted_mean(few, weights, rng)).all(), "its one question is not always drawn"


def test_a_question_is_asked_in_its_language(tmp_path: Path) -> None:
    row = BenchmarkRow("de", "Wie viele? ", "4", Place("f", 0))
    assert prompt(row, {}).startswith("Wie viele?\nDenke Schritt") and r"\boxed{}" in prompt(row, {})
    options = BenchmarkRow("sw", "Mji?", "A", Place("f", 0), choices=("Dodoma", "Roma"))
    assert prompt(options, {}).splitlines()[:3] == ["Mji?", "A. Dodoma", "B. Roma"]
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"de": "{question}\nIn \\boxed{{}}."}))
    assert prompt(row, read_templates(path)) == "Wie viele?\nIn \\boxed{}."
    path.write_text(json.dumps({"de": "no place"}))
    with pytest.raises(FatalError, match=r"the prompt of 'de' has no \{question\}"):
        read_templates(path)


class Words:
    """A tokenizer of whole words, which knows them by their numbers."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.known.setdefault(word, len(self.known)) for word in text.split()]


class Characters(Words):
    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


def test_the_likeliest_letter_is_that_of_the_engine() -> None:
    some = [BenchmarkRow("de", f"{n}?", "A", Place("f", n), choices=("x", "y", "z", "w")) for n in range(6)]
    words: Any = Words()

    def engine(request: dict[str, Any]) -> tuple[int, str]:
        assert request["sampling_params"]["max_new_tokens"] == 1 and request["return_logprob"]
        first = next(word for word, number in words.known.items() if number == request["input_ids"][0])
        best = int(first.removesuffix("?")) % 4
        entries = [[-1.0 if n == best else -2.0, token, None] for n, token in enumerate(request["token_ids_logprob"])]
        return 200, json.dumps({"text": "", "meta_info": {"output_token_ids_logprobs": [entries[::-1]]}})

    with serving(engine) as url:
        assert likeliest(letter_questions(some, words, harness_prompt), f"m@{url}") == ["A", "B", "C", "D", "A", "B"]
    characters: Any = Characters()
    with pytest.raises(SeveralTokens, match="makes 2 tokens of the letter A"):
        letter_questions(some, characters, harness_prompt)


def test_the_command_from_published_rows_to_figures(
    verifier: scoring.Verifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two responses a question, of which every score, language and mean is known."""
    says = {
        "q1": [rf"<think>{GERMAN}</think>{GERMAN} \boxed{{5}}"] * 2,
        "q2": [rf"<think>{GERMAN}</think>{GERMAN} \boxed{{\frac{{1}}{{2}}}}", rf"{GERMAN} \boxed{{2}}"],
        "q3": [rf"<think>{ENGLISH}</think>{GERMAN} \boxed{{204}}"] * 2,
        "q4": [rf"<think>{FRENCH} \boxed{{7}}"] * 2,
        "q5": [rf"<think>{FRENCH}</think>{FRENCH} \boxed{{11}}"] * 2,
    }
    golds = {"q1": "5", "q2": r"$\frac{1}{2}$", "q3": "204", "q4": "7", "q5": "12"}
    sources = {"q1": "MATH500", "q2": "MATH500", "q3": "AIME2024", "q4": "MATH500", "q5": "AIME2024"}
    records = [
        {**MMATH, "question": name, "answer": golds[name], "data_source": sources[name], "lang": language}
        for name, language in zip(says, ["de", "de", "de", "fr", "fr"], strict=True)
    ]
    data = write(tmp_path / "data", {"de.json": records[:3], "fr.json": records[3:]})
    asked = []

    def model(request: dict[str, Any]) -> str:
        asked.append(request)
        assert (request["temperature"], request["top_p"], request["max_tokens"]) == (0.6, 0.95, 32768)
        return str(says[request["messages"][-1]["content"][:2]][request["seed"]])

    with serving(model) as url:
        words = ["mmath", f"m@{url}", "--data", data, "--out", str(tmp_path / "out.json"), "--samples", "2"]
        bench.main(words)
        shown = capsys.readouterr().out
        assert len(asked) == 10 and "pass@2" in shown and "as published: MMATH" in shown and "detector gate" in shown
        bench.main([*words, "--json"])
        assert len(asked) == 10, "what was answered is kept"
    found = json.loads(capsys.readouterr().out)
    ours, theirs = found["scorings"]["ours"], found["scorings"]["as published: MMATH"]
    assert ours["means"]["sources"][0] == pytest.approx((0.875 + 0) / 2)
    assert ours["means"]["questions"][0] == pytest.approx((2.5 / 3 + 0) / 2)
    assert theirs["means"]["sources"][0] == pytest.approx((0.875 + 0.5) / 2), "the thought's box counts"
    assert [ours["pass@k"][k][0] for k in ("1", "2")] == pytest.approx([0.4375, 0.5])
    assert ours["groups"] == {"AIME2024": 0.5, "MATH500": pytest.approx(0.5)}
    german, french = ours["languages"]["de"], ours["languages"]["fr"]
    assert (german["accuracy"], german["lc"], german["lc_accuracy"]) == pytest.approx((5 / 6, 4 / 6, 3 / 6))
    assert german["lc_thought"] == pytest.approx(3 / 5) and german["lc_answer"] == 1
    assert (french["accuracy"], french["lc"], french["lc_thought"], french["lc_answer"]) == (0, 0.5, 1, 0.5)
    consistency = found["published_consistency"]
    assert consistency["MMATH LCR, thinking (lid.176)"] == pytest.approx(8 / 10)
    assert consistency["M-Thinker LC (langdetect)"] == pytest.approx(((3 / 4 + 0) / 2 + (0 + 1) / 2) / 2)
    kept = [json.loads(line) for line in (tmp_path / "out.responses.jsonl").read_text().splitlines()]
    assert len(kept) == 10 and kept[0]["scores"] == {"ours": 1, "as published: MMATH": 1}
    for wrong, message in (
        (["nothing", *words[1:]], "no benchmark 'nothing'"),
        ([*words, "--temperature", "0"], "2 greedy responses are one and the same"),
        ([*words, "--languages", "ja"], "has no question in ja"),
    ):
        with pytest.raises(SystemExit, match=message):
            bench.main(wrong)


class Counting:
    """A detector that knows how many texts it was given at a time."""

    name: DetectorName = "gate"

    def __init__(self) -> None:
        self.most = 0

    def knows(self, language: str) -> bool:
        return True

    def parts(self, texts: Sequence[str], asked: Sequence[str]) -> list[PartLanguages | None]:
        self.most = max(self.most, len(texts))
        return [PartLanguages(text.endswith("7"), True, True, False) for text in texts]


def test_a_detector_gets_some_hundred_responses_at_a_time() -> None:
    detector = Counting()
    responses = [respond(f"<think>{n}</think>{n + 1}", "5") for n in range(1000)]
    samples = bench.as_samples(responses, detector, range(1000))
    assert detector.most <= 512, "thoughts and answers"
    assert [one.tokens for one in samples] == [*range(1000)]
    found = [(one.thought.consistent, one.answer.consistent) for one in samples if one.thought and one.answer]
    assert found == [(n % 10 == 7, n % 10 == 6) for n in range(1000)]


def test_questions_that_are_refused_are_told_and_not_too_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data", {"mgsm_de.tsv": "".join(f"Frage {n}?\t{n}\n" for n in range(9))})
    refused, asked = {3}, []

    def model(request: dict[str, Any]) -> str | tuple[int, str]:
        number = int(request["messages"][-1]["content"].split()[1].rstrip("?"))
        asked.append(number)
        return (400, "the prompt is too long") if number in refused else f"{GERMAN} \\boxed{{{number}}}"

    with serving(model) as url:
        words = ["mgsm", f"m@{url}", "--data", data, "--out", str(tmp_path / "out.json"), "--json"]
        bench.main(words)
        shown = capsys.readouterr()
        found = json.loads(shown.out)
        assert found["refused"] == 1 and found["scorings"]["ours"]["means"]["questions"][0] == pytest.approx(8 / 9)
        assert "1 of 9 questions were refused, as" in shown.err and "too long" in shown.err
        kept = [json.loads(line) for line in (tmp_path / "out.responses.jsonl").read_text().splitlines()]
        assert [("refused" in one, one["response"] == "") for one in kept] == [(n == 3, n == 3) for n in range(9)]
        assert "too long" in kept[3]["refused"]
        refused.add(5)
        words = [*words[:5], str(tmp_path / "other.json"), "--calls", "1"]
        asked.clear()
        with pytest.raises(SystemExit, match=r"2 of 9 questions were refused, as .*row 5.*smaller --max-tokens"):
            bench.main(words)
        assert len(asked) <= 7, "at once, and not when all others are answered"
        refused.clear()
        asked.clear()
        bench.main(words)
        assert {3, 5} <= {*asked} and not {0, 1, 2, 4} & {*asked}, "what was answered is kept"


@pytest.fixture
def with_letters(tiny_policy: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer has one token for a letter with the space before it."""
    model = tmp_path / "model"
    shutil.copytree(tiny_policy, model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    for letter in "ABCD":
        tokenizer["model"]["vocab"][f"Ġ{letter}"] = max(tokenizer["model"]["vocab"].values()) + 1
        tokenizer["model"]["merges"].append(["Ġ", letter])
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    return model


def test_weights_are_asked_for_letters_first_and_for_no_more_than_their_context_holds(
    with_letters: Path,
    tiny_policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lengths = [1, 10, 40]
    questions = [
        {"question": "Was? " * length, **OPTIONS, "answer": "C", "cultural_sensitivity_label": "CS"}
        for length in lengths
    ]
    data = write(tmp_path / "data", {"de/test.parquet": questions})
    asked: list[dict[str, Any]] = []

    def engine(request: dict[str, Any]) -> str | tuple[int, str]:
        asked.append(request)
        if "input_ids" not in request:
            return f"{GERMAN} Die Antwort ist B."
        entries = [[-1.0 if n == 2 else -2.0, token, None] for n, token in enumerate(request["token_ids_logprob"])]
        return 200, json.dumps({"text": "", "meta_info": {"output_token_ids_logprobs": [entries]}})

    @contextmanager
    def served(weights: str, *_: object) -> Iterator[str]:
        with serving(engine) as url:
            yield f"m@{url}"

    monkeypatch.setattr(bench, "served", served)
    out = tmp_path / "out.json"
    words = ["--data", data, "--out", str(out), "--prompt-style", "plain", "--json"]
    bench.main(["global-mmlu-lite", str(with_letters), *words])
    shown = capsys.readouterr()
    found = json.loads(shown.out)["scorings"]
    assert ["input_ids" in request for request in asked] == [True] * 3 + [False] * 3
    theirs, ours = found["as published: lm-eval (log-likelihood)"], found["ours"]
    assert theirs["languages"] == {"de": {"accuracy": 1}}, "a letter is in no language"
    assert theirs["means"]["questions"][0] == 1 and ours["means"]["questions"][0] == 0
    assert (ours["languages"]["de"]["lc"], ours["languages"]["de"]["lc_accuracy"]) == (1, 0)
    context = json.loads((with_letters / "config.json").read_text())["max_position_embeddings"]
    tokenizer = AutoTokenizer.from_pretrained(with_letters)
    limits = []
    for request in asked[3:]:
        prompt = tokenizer.apply_chat_template(request["messages"], tokenize=False, add_generation_prompt=True)
        room = context - len(tokenizer.encode(prompt, add_special_tokens=False))
        assert room - 20 <= request["max_tokens"] <= room
        limits.append(request["max_tokens"])
    assert len({*limits}) == 3, "each question has its own"
    assert f"answers have at most {min(limits)} to {max(limits)} tokens instead of 4096" in shown.err
    assert json.loads(out.read_text())["sampling"]["max_tokens_that_fit"] == min(limits)
    asked.clear()
    bench.main(["global-mmlu-lite", str(tiny_policy), *words])
    shown = capsys.readouterr()
    assert "log-likelihood) is left out: the tokenizer makes 2 tokens of the letter A" in shown.err
    assert [*json.loads(shown.out)["scorings"]] == ["ours"] and len(asked) == 3


def test_what_cannot_be_had_ends_the_command_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, asked = write(tmp_path / "data", {"mgsm_en.tsv": "How many?\t4\n"}), []

    def model(request: dict[str, Any]) -> str:
        asked.append(request)
        return "4"

    with serving(model) as url:
        words = ["mgsm", f"m@{url}", "--data", data, "--out", str(tmp_path / "out.json"), "--detector"]
        with pytest.raises(SystemExit, match="lingua needs two languages"):
            bench.main([*words, "lingua"])
        monkeypatch.setitem(sys.modules, "langdetect", None)
        with pytest.raises(SystemExit, match="the detector needs the package langdetect"):
            bench.main([*words, "langdetect"])
    assert not asked


def test_another_model_at_the_same_place_is_asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = tmp_path / "model", tmp_path / "out.json"
    model.mkdir()
    marks = {cache_file(out, str(model))}
    for number, name in enumerate(
        ("model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json", "tokenizer.model", "vocab.txt",
         "tokenizer_config.json", "chat_template.jinja", "generation_config.json"), 2,
    ):  # fmt: skip
        (model / name).write_text("x")
        marks.add(cache_file(out, str(model)))
        assert len(marks) == number, f"{name} plays a part"
    (model / "README.md").write_text("x")
    assert cache_file(out, str(model)) in marks, "this does not"
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    commits = set()
    for commit in ("1" * 40, "2" * 40):
        for name in (f"snapshots/{commit}/config.json", "refs/main"):
            path = hub / "models--owner--name" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(commit)
        commits |= {cache_file(out, "owner/name")}
        assert cache_file(out, "owner/name") in commits
    assert len(commits) == 2 and cache_file(out, "m@http://x/v1") == cache_file(out, "m@http://x/v1")
