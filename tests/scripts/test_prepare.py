"""From published column layouts to questions: what is taken, what is reported, how it is split."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Config, DataConfig, ModelConfig, RunConfig
from common.process import FatalError
from common.tokenizer import load_tokenizer
from learner.data.problems import Place, Problems
from learner.data.records import read_records
from learner.data.rows import QuestionRow, Rules
from learner.work.questions import read_questions
from reward.calibration.files import PairStatistics
from scripts.data.prepare import main, split
from scripts.data.sources import read
from tests.support.rows import read_rows

HELPSTEER3 = {
    "domain": "multilingual",
    "language": "german",
    "context": [
        {"role": "user", "content": "Nenne eine Stadt."},
        {"role": "assistant", "content": "Köln."},
        {"role": "user", "content": "Noch eine?"},
    ],
    "response1": "Bremen.",
    "response2": "Berlin liegt an der Spree.",
    "overall_preference": 2,
    "individual_preference": [{"score": 2, "reasoning": "…", "feedback_1": "…", "feedback_2": "…"}],
}
CARE = {"question": "端午节为什么要吃粽子？", "answer": None, "culture": "Chinese", "model": "m"}
REFERENCE = {  # as the reference implementation's data set has it
    "prompt": [{"content": "日本の首都はどこですか？", "role": "user"}],
    "ability": "Regional Knowledge",
    "reward_model": {"ground_truth": "日本の首都は東京です。", "style": "model"},
    "question": "日本の首都はどこですか？",
    "answer": "日本の首都は東京です。",
    "data_source": "care",
    "extra_info": {"index": 3, "split": "train", "language": "japanese", "topic": "Regional Knowledge",
                   "region": "Japan"},
}  # fmt: skip


def parquet(path: Path, *rows: dict[str, Any]) -> str:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return str(path)


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def taken(*sources: str, **rules: Any) -> tuple[list[QuestionRow], Problems]:
    problems = Problems()
    return read(sources, Rules(**rules), problems), problems


def test_helpsteer3_keeps_the_conversation_and_the_preferred_answer(tmp_path: Path) -> None:
    tie = {**HELPSTEER3, "overall_preference": 0}
    code = {**HELPSTEER3, "domain": "code", "language": "python"}
    first = {**HELPSTEER3, "overall_preference": -1, "context": HELPSTEER3["context"][:1]}  # type: ignore[index]
    source = parquet(tmp_path / "h.parquet", HELPSTEER3, tie, code, first)
    rows, rejected = taken(source, where={"domain": "multilingual"})
    assert [(row.reference, row.language, len(row.messages)) for row in rows] == [
        ("Berlin liegt an der Spree.", "de", 3),
        ("Bremen.", "de", 1),
    ]
    assert rows[0].question == "Noch eine?"
    assert [(p.row, p.kind) for p in rejected.found] == [(1, "left out"), (2, "left out")]
    with pytest.raises(FatalError, match=r"no row of .* has a column 'domian'"):
        taken(source, where={"domian": "multilingual"})
    other = parquet(tmp_path / "r.parquet", REFERENCE)
    assert len(taken(source, other, where={"domain": "multilingual"})[0]) == 3, "a source without the column is whole"
    _, rejected = taken(source)
    assert rejected.found[1].kind == "broken" and "unknown language 'python'" in rejected.found[1].reason


def test_a_language_that_is_declared_is_known_to_commands_without_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"{n}?", "answer": "a", "language": "tir_Ethi"} for n in range(4)]
    words = [jsonl(tmp_path / "rows.jsonl", *rows), "--out", str(tmp_path / "data"), "--heldout", "0.25"]
    with pytest.raises(SystemExit):
        main(words)
    said = capsys.readouterr()
    assert 'run.other_languages = {ti = "Tigrinya"}' in said.out + said.err
    main([*words, "--run.other_languages", '{tir = "Tigrinya"}'])
    [row] = read_rows(str(tmp_path / "data" / "heldout.parquet"))
    assert row["extra_info"]["language"] == "tigrinya"
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--run.other_languages=tir"])
    assert "run.other_languages = 'tir'" in capsys.readouterr().err


def test_care_takes_the_best_rated_response_and_detects_the_language(tmp_path: Path) -> None:
    rated = [
        {**CARE, "response": text, "human_rating": rating}
        for text, rating in [("坏", 2.0), ("好答案", 9.0), ("中", 5.0)]
    ]
    gold = {
        **CARE,
        "question": "ما هي عاصمة مصر؟",
        "answer": "القاهرة",
        "culture": "Arab",
        "response": "x",
        "human_rating": 1.0,
    }
    rows, rejected = taken(parquet(tmp_path / "c.parquet", *rated, gold))
    assert [(row.language, row.reference, row.regions) for row in rows] == [
        ("zh", "好答案", ["Chinese"]),
        ("ar", "القاهرة", ["Arab"]),
    ]
    assert rejected.counts == {"repeated": 2}


def test_the_reference_row_loads_as_it_is_and_comes_out_the_same(tiny_policy: Path, tmp_path: Path) -> None:
    source = parquet(tmp_path / "reference.parquet", REFERENCE)
    tokenizer = load_tokenizer(str(tiny_policy))
    config = Config(
        run=RunConfig(dir=tmp_path / "run"),
        data=DataConfig(train=source),
        model=ModelConfig(path=str(tiny_policy), prompt_style="system"),
    )
    direct = read_questions(config, tokenizer).train
    main([source, "--out", str(tmp_path / "out"), "--heldout", "0"])
    prepared = config.model_copy(update={"data": DataConfig(train=str(tmp_path / "out" / "train.parquet"))})
    again = read_questions(prepared, tokenizer).train
    assert direct == again
    assert (direct[0].language, direct[0].regions, direct[0].topics) == ("ja", ["Japan"], ["Regional Knowledge"])
    written = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()[0]
    assert written["extra_info"]["language"] == "japanese" and written["data_source"] == "care"


def test_the_reference_statistics_load_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("lang_a,lang_b,count,mean,std\nArabic,English,30,0.9386,0.02\nChinese,Chinese,30,0.9968,0.001\n")
    levels = PairStatistics.read(path).levels
    assert levels["ar", "en"].mean == 0.9386 and levels["zh", "zh"].count == 30


def test_broken_rows_are_reported_by_number_and_the_good_ones_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"id": 1, "q": "Wie heißt die Hauptstadt?", "answer": "Berlin.", "language": "de"}
    rows = [
        good,
        {**good, "id": 2, "q": "Was?", "answer": ""},
        {**good, "id": 3, "q": "Wo?", "answer": None},
        {**good, "id": 4, "q": "Wer?", "answer": {"text": "Ich."}},
        {**good, "id": 5, "q": ["Wann?"]},
        {**good, "id": 1, "q": "Warum?"},
        {**good, "id": 6},
        {**good, "id": 7, "q": "x" * 10_000_000},
        {**good, "id": 8, "q": "Wieso?", "language": "Germann"},
        "{no json",
        "[1]",
        {**good, "id": 9, "q": "Wohin?", "language": None},
        {**good, "id": 10, "q": "Woher?"},
    ]
    out = tmp_path / "out"
    command = [jsonl(tmp_path / "r.jsonl", *rows), "--out", str(out), "--columns", "question=q", "--heldout", "0"]
    main(command)
    problems = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
    assert sorted(problem["row"] for problem in problems) == [*range(1, 12)]
    reason = {problem["row"]: problem["reason"] for problem in problems}
    words = {
        1: "empty",
        3: "not a text",
        5: "row 0 has the same id '1' in the same language",
        6: "row 0 has the same question",
        7: "10000000 long",
    }
    for row, part in {**words, 8: "did you mean 'german'", 11: "names no language"}.items():
        assert part in reason[row]
    kept = pq.read_table(out / "train.parquet").to_pylist()
    assert [row["question"] for row in kept] == ["Wie heißt die Hauptstadt?", "Woher?"]
    card = (out / "card.md").read_text()
    assert "9 broken" in card and "1 repeated" in card and "1 too long" in card and "| de | 2 | 2 |" in card
    with pytest.raises(SystemExit, match="11 broken, repeated or too long rows"):
        main([*command, "--strict"])
    with pytest.raises(SystemExit, match="no good row"):
        main([jsonl(tmp_path / "b.jsonl", {"q": 1}), "--out", str(out)])


@pytest.mark.parametrize("share", ["10", "-0.1"])
def test_a_share_that_is_none_is_refused(share: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question": "a", "answer": "y", "language": "en"}
    with pytest.raises(SystemExit) as error:
        main([jsonl(tmp_path / "r.jsonl", row), "--out", str(tmp_path / "out"), "--heldout", share])
    assert error.value.code == 2 and "'--heldout'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": "y", "language": "en"} for n in range(2)]
    source = jsonl(tmp_path / "r.jsonl", *rows)
    with pytest.raises(SystemExit, match=r"--heldout 0\.9 holds out all of the 2 good rows"):
        main([source, "--out", str(tmp_path / "out"), "--heldout", "0.9"])
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["problems.jsonl"]
    main([source, "--out", str(tmp_path / "out"), "--heldout", "0.5"])
    places = {place.file for place, _ in read_records(str(tmp_path / "out"))}
    assert places == {str(tmp_path / "out" / "train.parquet")}, "neither what is held out nor the list of problems"


def test_long_prompts_are_counted_in_tokens(tiny_policy: Path, tmp_path: Path) -> None:
    rows = [{"question": "x" * n, "answer": "y", "language": "en"} for n in (40, 41)]
    source = jsonl(tmp_path / "r.jsonl", *rows)
    limits = ["--tokenizer", str(tiny_policy), "--max-prompt", "40", "--heldout", "0"]
    main([source, "--out", str(tmp_path), *limits])
    assert "1 too long" in (tmp_path / "card.md").read_text()
    assert len(pq.read_table(tmp_path / "train.parquet")) == 1


def test_columns_that_are_not_known_are_kept(tmp_path: Path) -> None:
    """Whatever their types: of those without a common type texts are kept as they are, and others as JSON."""
    info: dict[str, Any] = REFERENCE["extra_info"]  # type: ignore[assignment]
    extra = {
        **REFERENCE,
        "level": 3,
        "mixed": 1,
        "extra_info": {**info, "en_question": "?", "none": {}},
    }
    other = {
        "question": "Wo?",
        "answer": "Dort.",
        "language": "de",
        "mixed": "\ud83d",
        "prompt": "another",
        "deep": [[1]],
    }
    main(
        [jsonl(tmp_path / "r.jsonl", extra, other), "--out", str(tmp_path), "--heldout", "0", "--columns", "hint=level"]
    )
    first, second = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert (first["level"], first["hint"], first["extra_info"]["en_question"]) == (3, "3", "?")
    assert (second["source_prompt"], second["deep"]) == ("another", [[1]])
    assert (first["mixed"], second["mixed"]) == ("1", "\\ud83d")


def test_several_topics_are_kept(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": "a", "language": "de", "topic": ["A", "B"][: n + 1]} for n in range(2)]
    main([jsonl(tmp_path / "r.jsonl", *rows), "--out", str(tmp_path), "--heldout", "0"])
    again, _ = taken(str(tmp_path / "train.parquet"))
    assert [row.topics for row in again] == [["A"], ["A", "B"]]


def test_a_source_that_is_nowhere_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FatalError, match=r"nothing\.jsonl"):
        taken(str(tmp_path / "nothing.jsonl"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FatalError, match="cannot read nobody/nothing"):
        read_rows("nobody/nothing")


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.tuples(st.sampled_from(["de", "en", "zh"]), st.integers(-20, 20)), unique=True, max_size=100),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_translation_of_a_trained_question_is_held_out(rows: list[tuple[str, int]], share: float, seed: int) -> None:
    """Rows with an id below 0 have none."""
    made = [
        QuestionRow([{"role": "user", "content": str(n)}], "a", language, [], [], "s", Place("s", n),
                    id="" if number < 0 else str(number))
        for n, (language, number) in enumerate(rows)
    ]  # fmt: skip
    train, heldout = split(made, share, seed)
    assert sorted([*train, *heldout], key=made.index) == made and split(made, share, seed) == (train, heldout)
    assert not ({row.id for row in train} & {row.id for row in heldout}) - {""}
    spoken = {row.id: {one.language for one in made if one.id == row.id} for row in made if row.id}
    translated = {one for one, languages in spoken.items() if len(languages) > 1}
    assert len({row.id for row in heldout} & translated) == round(share * len(translated))
    others = Counter(row.language for row in made if row.id not in translated)
    held = Counter(row.language for row in heldout if row.id not in translated)
    assert all(held[language] == round(share * count) for language, count in others.items())


def test_the_ids_of_a_file_hold_translations_together(tmp_path: Path) -> None:
    rows = [
        {"id": n, "question": f"{n} {language}?", "answer": "a", "language": language}
        for language in ("de", "en", "fr")
        for n in range(20)
    ]
    main([jsonl(tmp_path / "r.jsonl", *rows), "--out", str(tmp_path), "--heldout", "0.25"])
    train, held = (
        {(row["question"].split()[0], row["extra_info"]["language"]) for row in read_rows(str(tmp_path / name))}
        for name in ("train.parquet", "heldout.parquet")
    )
    assert len(held) == 15 and len({number for number, _ in held}) == 5
    assert not {number for number, _ in train} & {number for number, _ in held}


@settings(deadline=None, max_examples=50)
@given(
    languages=st.lists(st.sampled_from(["de", "en", "zh"]), max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_split_is_stratified_complete_and_repeatable(languages: list[str], share: float, seed: int) -> None:
    rows = [
        QuestionRow([{"role": "user", "content": str(n)}], "a", one, ["t"], [], "s", Place("s", n))
        for n, one in enumerate(languages)
    ]
    train, heldout = split(rows, share, seed)
    assert sorted([*train, *heldout], key=rows.index) == rows
    counts = Counter(row.language for row in heldout)
    for language, total in Counter(languages).items():
        assert counts[language] == round(share * total)
    assert split(rows, share, seed) == (train, heldout)
