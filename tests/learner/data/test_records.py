"""Rows of files of every kind: a row that cannot be read is named, and takes no other with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.process import FatalError
from learner.data.records import Record, Unreadable, read_records
from tests.support.rows import read_rows

ROWS: list[Record] = [{"question": f"Frage {n}: 東京 é?", "answer": f"{n}", "nested": {"n": n}} for n in range(4)]
BOM = b"\xef\xbb\xbf"


def as_lines(rows: list[Record]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("bom", [b"", BOM])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
@pytest.mark.parametrize(
    "text",
    [
        as_lines(ROWS),
        as_lines(ROWS).replace("\n", "\r\n\r\n"),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False),
        "[\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]\n",
        json.dumps({"data": ROWS}, indent=1),
    ],
    ids=["lines", "crlf", "array", "indented", "array of lines", "object with a list"],
)
def test_json_is_read_whatever_its_form_and_name(text: str, name: str, bom: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bom + text.encode())
    assert read_rows(str(tmp_path / name)) == ROWS


def test_one_object_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS[0], indent=2))
    assert read_rows(str(tmp_path / "a.json")) == ROWS[:1]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_csv_has_its_columns_in_the_first_line(name: str, tmp_path: Path) -> None:
    mark = "\t" if name == "a.tsv" else ","
    long = "x" * 200_000
    lines = [
        ["question", "answer"],
        ['"Was, ""genau""\tist\n42?"', "Berlin"],
        ["Wo?", ""],
        ["Wer?", "a", "b"],
        [long, "c"],
    ]
    (tmp_path / name).write_bytes(BOM + "\n".join(mark.join(cells) for cells in lines).encode())
    rows = [record for _, record in read_records(str(tmp_path / name))]
    assert rows[0] == {"question": 'Was, "genau"\tist\n42?', "answer": "Berlin"}
    assert rows[1] == {"question": "Wo?", "answer": None}
    assert isinstance(rows[2], Unreadable) and "3 values" in rows[2].reason
    assert rows[3] == {"question": long, "answer": "c"}


def test_a_directory_may_mix_forms_and_schemas(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    pq.write_table(pa.table({"question": ["a"], "level": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"question": [["b"]], "level": ["two"]}), tmp_path / "2.parquet")
    (tmp_path / "deep" / "3.jsonl").write_text('{"question": "c"}\n')
    (tmp_path / "README.md").write_text("not data")
    found = list(read_records(str(tmp_path)))
    assert [record for _, record in found] == [
        {"question": "a", "level": 1}, {"question": ["b"], "level": "two"}, {"question": "c"},
    ]  # fmt: skip
    assert [(Path(place.file).name, place.row) for place, _ in found] == [
        ("1.parquet", 0),
        ("2.parquet", 0),
        ("3.jsonl", 0),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FatalError, match=r"empty holds no file that ends in \.parquet"):
        list(read_records(str(tmp_path / "empty")))


def test_files_of_a_directory_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "a"}\n')
    (tmp_path / "C.CSV").write_text("question\nc\n")
    (tmp_path / "D.Tsv").write_text("question\tanswer\nd\t1\n")
    pq.write_table(pa.table({"question": ["e"]}), tmp_path / "e.PARQUET")
    (tmp_path / "card.md").write_text("not data")
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl.gz", "deep/b.JSONL.ZST", "f.arrow", "g.txt", "h.zip", "i.xlsx", "j.tar"):
        (tmp_path / name).write_bytes(b"")
    for _ in range(2):
        found = [record["question"] for record in read_rows(str(tmp_path))]
        assert found == ["c", "d", "a", "e"]
    (said,) = [record.message for record in caplog.records]
    assert said.startswith(f"7 files of {tmp_path} are not read") and "card.md" not in said
    assert "b.jsonl.gz, deep/b.JSONL.ZST, f.arrow, g.txt, h.zip and 2 more. Unpack or convert" in said
    with pytest.raises(FatalError, match=r"holds no file that ends in .*; b\.JSONL\.ZST cannot be read: unpack"):
        read_rows(str(tmp_path / "deep"))


def names_read(directory: Path, *splits: str) -> list[str]:
    return list(dict.fromkeys(Path(place.file).name for place, _ in read_records(str(directory), splits or ("train",))))


def fill(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text('{"question": "a"}\n')
    return directory


def test_lists_of_unused_rows_and_kept_answers_are_no_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists = ["data_problems.jsonl", "problems.jsonl", "rates.answers.jsonl", "rates.problems.jsonl"]
    fill(tmp_path, "rates.jsonl", "word_problems.json", *lists)
    for _ in range(2):
        assert names_read(tmp_path) == ["rates.jsonl", "word_problems.json"]
    (said,) = [record.message for record in caplog.records]
    assert said.startswith(f"{', '.join(lists)} of {tmp_path}: not read") and "rename a file that holds data" in said
    with pytest.raises(FatalError, match=r"holds no file .*; a\.problems\.jsonl are lists of unused rows"):
        names_read(fill(tmp_path / "none", "a.problems.jsonl"))


TRAIN = "train-00000-of-00001.jsonl"


@pytest.mark.parametrize(
    ("files", "splits", "read"),
    [
        ([TRAIN, "test-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl"], ["train"], [TRAIN]),
        ([TRAIN, "test-00000-of-00001.jsonl"], ["test", "validation", "train"], ["test-00000-of-00001.jsonl"]),
        ([TRAIN, "valid.jsonl"], ["test", "validation", "train"], ["valid.jsonl"]),
        ([TRAIN, "rated.jsonl"], ["test", "train"], [TRAIN]),
        (["Train_a.jsonl", "train/b.jsonl", "val/c.jsonl"], ["train"], ["Train_a.jsonl", "b.jsonl"]),
        (["test/train_1.jsonl", "train/test_1.jsonl"], ["train"], ["test_1.jsonl"]),
        (["heldout.jsonl", "train.jsonl"], ["test", "train"], ["heldout.jsonl"]),
        (["german.jsonl", "held_out.jsonl", "french.jsonl", "dev.jsonl"], ["train"], ["french.jsonl", "german.jsonl"]),
        (["test_de.jsonl", "deep/test_fr.jsonl"], ["train"], ["test_fr.jsonl", "test_de.jsonl"]),
        (["trainees.jsonl", "testament.jsonl", "valuable.jsonl", "developers.jsonl", "latest.jsonl"], ["train"], None),
    ],
)
def test_one_split_of_a_directory_is_read_and_the_others_are_named(
    files: list[str], splits: list[str], read: list[str] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path / "test", *files)  # whatever the directory itself is called
    for _ in range(2):
        assert names_read(tmp_path / "test", *splits) == (sorted(files) if read is None else read)
    left = [file for file in files if read is not None and Path(file).name not in read]
    said = [record.message for record in caplog.records]
    assert len(said) == bool(left) and all(Path(file).name in said[0].partition("Left out:")[2] for file in left)
    assert not left or f"To read another file or folder name it, as {tmp_path}" in said[0]
    for file in files:
        assert names_read(tmp_path / "test" / file) == [Path(file).name], "a file that is named is read"


def test_of_several_splits_none_of_which_is_wanted_one_is_to_be_named(tmp_path: Path) -> None:
    fill(tmp_path, "test.jsonl", "dev.jsonl")
    with pytest.raises(FatalError, match=r"files of the splits validation and test, and none of train: name a file or"):
        names_read(tmp_path)
    with pytest.raises(FatalError, match="no data are named: give parquet"):
        list(read_records(""))


def test_a_quotation_mark_in_csv_spoils_its_row_alone(tmp_path: Path) -> None:
    good = "Wo?,Berlin,de\n"

    def read(*lines: str) -> list[object]:
        (tmp_path / "a.csv").write_text("\nquestion,answer,language\n" + "".join(lines))
        records = [record for _, record in read_records(str(tmp_path / "a.csv"))]
        return [one.reason if isinstance(one, Unreadable) else one["question"] for one in records]

    def broken(line: int, what: str, *rows: object) -> bool:
        reasons = [row for row in rows if isinstance(row, str) and row.startswith("line ")]
        return bool(reasons) and reasons[0].startswith(f"line {line}: {what}") and "is written twice" in reasons[0]

    found = read(good, '"Wer sagte "Ja"?",Berlin,de\n', good)
    assert [found[0], found[2]] == ["Wo?", "Wo?"] and broken(4, "',' expected after '\"'", *found)
    # Without its second mark a text goes on: over rows, until a mark that ends it, or to the end of the file.
    for rest in ([good, '"Wer, wo?",Berlin,de\n', good], [good, good]):
        found = read(good, '"Offen,Berlin,de\n', *rest)
        assert broken(4, "a quotation mark opens a text that this line does not close", *found)
        assert [found[0], *found[2:]] == ["Wo?", *("Wer, wo?" if "Wer" in line else "Wo?" for line in rest)]
    # Where what follows are no rows, it is more of the text.
    found = read(good, '"Ein Text, der\n', "nicht endet\n", "Was, das?\n")
    assert (
        found[0] == "Wo?" and len(found) == 2 and "nothing is used from there to the end of the file" in str(found[1])
    )
    found = read(good, '"Er, sagte,\n', "so, oder, so\n", 'ein "Wort" mehr",Berlin,de\n', good)
    assert [found[0], found[2]] == ["Wo?", "Wo?"] and "nothing is used from there to line 6" in str(found[1])
    found = read(good, '"Er sagte "Ja" und\n', 'ging.",Berlin,de\n', good)
    assert [found[0], found[3]] == ["Wo?", "Wo?"] and "the rest of the broken row" in str(found[2])
    assert read(good, '"Ein ""Wort""\nund noch eins",Berlin,de\n', '5" Holz,x,de\n') == [
        "Wo?", 'Ein "Wort"\nund noch eins', '5" Holz',
    ]  # fmt: skip


def test_bytes_that_are_not_utf_8_spoil_their_row_alone(tmp_path: Path) -> None:
    array = pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 1, 3, 4], np.int32).tobytes()), pa.py_buffer(b"a\xff\xfeb")
    )
    pq.write_table(pa.table({"q": array, "n": [0, 1, 2]}), tmp_path / "a.parquet")
    rows = [record for _, record in read_records(str(tmp_path / "a.parquet"))]
    assert rows[0] == {"q": "a", "n": 0} and rows[2] == {"q": "b", "n": 2}
    assert isinstance(rows[1], Unreadable) and "'q'" in rows[1].reason
    (tmp_path / "a.jsonl").write_bytes(b'{"q": "a"}\n{"q": "\xff"}\n{"q": "b"}\n')
    assert [place.row for place, _ in read_records(str(tmp_path / "a.jsonl"))] == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", b'[{"q": 1},\n{"q": 2},\n{"q": }]', r"a\.json should be a JSON array, but .*line 3 column 7"),
        ("a.jsonl", b"question,answer\n1,2\n", r"a\.jsonl should be lines of JSON, or one JSON array"),
        ("a.jsonl", "é".encode("utf-16"), r"a\.jsonl is in UTF-16.*save it as UTF-8"),
        ("a.csv", b"a,a\n1,2\n", r"two columns of the name 'a'"),
        (
            "a.csv",
            b'a,"b\n1,2\n',
            r"cannot read .*a\.csv: the names of its columns cannot be read: line 1: unexpected end",
        ),
        ("a.parquet", b"PAR1 or not", r"cannot read .*a\.parquet"),
        ("a.txt", b"text", r"a\.txt: its name does not end in"),
    ],
)
def test_a_file_of_no_use_is_named(name: str, content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FatalError, match=complaint):
        list(read_records(str(tmp_path / name)))
    with pytest.raises(FatalError, match=r"nothing\.json: there is no such file"):
        list(read_records(str(tmp_path / "nothing.json")))


def test_deeply_nested_json_spoils_its_row_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": 1}\n' + "[" * 100_000 + "\n" + '{"q": 2}\n')
    rows = [record for _, record in read_records(str(tmp_path / "a.jsonl"))]
    assert rows[0] == {"q": 1} and isinstance(rows[1], Unreadable) and rows[2] == {"q": 2}


@pytest.fixture
def cached_on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set of the hub with two splits, as its client leaves it in its cache; there is no network."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(f'{{"q": "{split} {n}"}}\n' for n in range(3)))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    cache = tmp_path / "cache"
    datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "made"))
    made = next((tmp_path / "made" / "json").glob("*/*/*"))
    shutil.copytree(made, cache / "owner___name" / "default" / "0.0.0" / "0123456789abcdef")
    info = cache / "owner___name" / "default" / "0.0.0" / "0123456789abcdef"
    for file in info.glob("json-*.arrow"):
        file.rename(file.with_name(file.name.replace("json-", "name-")))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return "owner/name"


def test_a_data_set_of_the_hub_gives_the_split_that_is_wanted(cached_on_hub: str) -> None:
    def first(source: str, *splits: str) -> Any:
        return next(iter(read_records(source, splits)))[1]

    assert first(cached_on_hub, "train") == {"q": "train 0"}
    assert first(cached_on_hub, "test", "train") == {"q": "test 0"}
    assert first(f"{cached_on_hub}@test", "train") == {"q": "test 0"}
    assert first(f"{cached_on_hub}:default@train", "test") == {"q": "train 0"}
    with pytest.raises(FatalError, match=r"has the splits .*: name one, as owner/name@"):
        first(cached_on_hub, "validation")


def test_a_name_that_the_cache_lacks_is_said_to_need_a_network(cached_on_hub: str) -> None:
    with pytest.raises(FatalError, match=r"cannot read nobody/nothing: .*set HF_HUB_OFFLINE=0 to ask it"):
        list(read_records("nobody/nothing"))
