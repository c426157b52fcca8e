"""Rows of files (parquet, JSON, JSONL, CSV), of directories of such files, and of data sets of the Hugging Face hub.

A row that cannot be read takes the place of its record as ``Unreadable``; the others are read all the same. Of a
directory whose files are named after splits, as those of the hub are, one split is read.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from common.hub import OFFLINE, first_line
from common.process import FatalError
from learner.data.csv_rows import read_csv
from learner.data.problems import NOT_DATA, Place

log = logging.getLogger("learner.data")

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
FORMS = "parquet, JSON, JSONL, CSV, TSV, a directory of such files, or a data set of the hub as owner/name"
# Files of a directory that may hold rows and are not read, which is then said.
_UNREAD_SUFFIXES = (
    ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z", ".arrow", ".feather", ".orc", ".avro", ".txt", ".xls",
    ".xlsx", ".ods", ".pkl", ".pickle",
)  # fmt: skip
_SHOWN = 5  # names that a message has
# What a folder is called, or the name of a file begins with, by the split that it belongs to.
_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "heldout": "test", "held_out": "test",
    "held-out": "test", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
_SPLIT_OF_FILE = re.compile(rf"({'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?![a-z])")
_HUB = re.compile(r"(?P<name>[\w-]+/[\w.-]+)(?::(?P<configuration>[^@]+))?(?:@(?P<split>.+))?")
_BATCH = 1000  # rows of parquet that are turned into Python objects at a time
_HUB_TIMEOUT_S = 10


@dataclass(frozen=True)
class Unreadable:
    """Stands for a row that is no record, and says why."""

    reason: str


Record: TypeAlias = dict[str, Any]


def read_records(source: str, splits: Sequence[str] = ("train",)) -> Iterator[tuple[Place, Record | Unreadable]]:
    """Every row of a source, in order, with its place.

    Args:
        source: the path of a file or directory; or a data set of the hub, as ``owner/name``, with ``:configuration``
            and ``@split`` where they are needed. With ``HF_HUB_OFFLINE`` it must be in the local cache.
        splits: of a data set of the hub that is named without a split the first of these is read that it has, or else
            its only split; of a directory the files as :func:`files_of` says.

    Raises:
        FatalError: there is no such source, a file cannot be read as a whole, or the hub does not answer within 10 s.
    """
    if not source:  # Path("") would be the present directory
        raise FatalError(f"no data are named: give {FORMS}")
    path = Path(source)
    if path.is_dir():
        for file in files_of(path, splits):
            yield from _read_file(file)
    elif path.exists() or _suffix(path) in SUFFIXES or not (hub := _HUB.fullmatch(source)):
        yield from _read_file(path)
    else:
        name, configuration, split = hub.group("name", "configuration", "split")
        table = _read_hub(source, name, configuration, [split] if split else list(splits), named=bool(split))
        yield from _number(source, _of_batches(table.to_batches(max_chunksize=_BATCH)))


def files_of(directory: Path, splits: Sequence[str] | None) -> list[Path]:
    """The files of a directory, also of folders below, that can be read, in the order of their names.

    A file belongs to the split that a folder below the directory is called after, or that its own name begins with:
    train, test (also heldout) or validation (also valid, val, dev). Where any does, one split is read: the first of
    ``splits`` that is there; else the files that belong to none; else the only split. Lists of unused rows and kept
    answers (``NOT_DATA``) are no data. A warning names the files that are left out for these reasons or because of
    their endings, as compressed ones.

    Args:
        splits: None reads all of them.

    Raises:
        FatalError: there is no such file, or only those of several splits none of which is wanted.
    """
    every = sorted(file for file in directory.rglob("*") if file.is_file())
    unread = [file for file in every if _suffix(file) in _UNREAD_SUFFIXES]
    readable = [file for file in every if _suffix(file) in SUFFIXES]
    lists = [file for file in readable if _is_list(file)]
    files = [file for file in readable if not _is_list(file)]
    if not files:
        there = f"; {_some(unread, directory)} cannot be read: unpack or convert what holds rows" if unread else ""
        there += (
            f"; {_some(lists, directory)} are lists of unused rows or kept answers, by their names" if lists else ""
        )
        raise FatalError(f"the directory {directory} holds no file that ends in {', '.join(SUFFIXES)}{there}")
    if lists:
        _warn_once(
            f"{_some(lists, directory)} of {directory}: not read, because lists of unused rows and kept answers are "
            "called so; rename a file that holds data"
        )
    if unread:
        _warn_once(
            f"{len(unread)} files of {directory} are not read, because their names do not end in "
            f"{', '.join(SUFFIXES)}: {_some(unread, directory)}. Unpack or convert those that hold rows"
        )
    return files if splits is None else _of_one_split(files, directory, splits)


def _is_list(file: Path) -> bool:
    return any(fnmatch(file.name.lower(), pattern) for pattern in NOT_DATA)


def _of_one_split(files: list[Path], directory: Path, splits: Sequence[str]) -> list[Path]:
    by_split: defaultdict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_split[_split_of(file.relative_to(directory))].append(file)
    named = [split for split in by_split if split]
    if not named:
        return files
    chosen = next((split for split in splits if split in named), "" if "" in by_split or len(named) > 1 else named[0])
    if chosen not in by_split:
        raise FatalError(
            f"the directory {directory} has files of the splits {' and '.join(named)}, and none of "
            f"{' or '.join(splits)}: name a file or a folder of it, as {by_split[named[0]][0]}"
        )
    if left := [file for split, some in by_split.items() if split != chosen for file in some]:
        what = f"the split {chosen}" if chosen else "what belongs to no split"
        _warn_once(
            f"of {directory} {what} is read: {_some(by_split[chosen], directory)}. Left out: {_some(left, directory)}. "
            f"To read another file or folder name it, as {left[0]}; to read all, give the files names that begin with "
            "no split"
        )
    return by_split[chosen]


def _split_of(file: Path) -> str:
    """The split that a file belongs to by its folders, of which the outermost counts, or its name; "" where none is."""
    folders = (_SPLITS.get(folder.lower()) for folder in file.parts[:-1])
    begins = _SPLIT_OF_FILE.match(file.name.lower())
    return next(filter(None, folders), _SPLITS[begins[1]] if begins else "")


def _some(files: list[Path], directory: Path) -> str:
    names = [str(file.relative_to(directory)) for file in files]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


@cache
def _warn_once(message: str) -> None:
    """A source is read several times in a process."""
    log.warning("%s", message)


def _suffix(path: Path) -> str:
    """In lower case: files that come from elsewhere are also called ROWS.CSV."""
    return path.suffix.lower()


def _read_file(path: Path) -> Iterator[tuple[Place, Record | Unreadable]]:
    try:
        if _suffix(path) == ".parquet":
            with pq.ParquetFile(path) as file:
                yield from _number(str(path), _of_batches(file.iter_batches(batch_size=_BATCH)))
        elif _suffix(path) in (".csv", ".tsv"):
            yield from _number(str(path), _read_csv(path, "\t" if _suffix(path) == ".tsv" else ","))
        elif _suffix(path) in SUFFIXES:
            yield from _read_json(path)
        elif path.exists():
            raise FatalError(f"cannot read {path}: its name does not end in {', '.join(SUFFIXES)}")
        else:
            raise FatalError(f"cannot read {path}: there is no such file. Give {FORMS}")
    except FileNotFoundError:
        raise FatalError(f"cannot read {path}: there is no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise FatalError(f"cannot read {path}: {error}") from None


def _number(file: str, records: Iterable[Record | Unreadable]) -> Iterator[tuple[Place, Record | Unreadable]]:
    for row, record in enumerate(records):
        yield Place(file, row), record


def _of_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[Record | Unreadable]:
    for batch in batches:
        try:
            yield from batch.to_pylist()
        except ValueError:  # a text that is not UTF-8, or a date that Python has not: find the rows
            for row in range(batch.num_rows):
                yield _one_of_batch(batch.slice(row, 1))


def _one_of_batch(row: pa.RecordBatch) -> Record | Unreadable:
    for name in row.schema.names:
        try:
            row[name].to_pylist()
        except ValueError as error:
            return Unreadable(f"the column {name!r} cannot be read: {error}")
    record: Record = row.to_pylist()[0]
    return record


def _read_text(path: Path) -> str:
    """The text of a file. Bytes that are not UTF-8 become lone surrogates, so that only their rows are refused.

    Raises:
        FatalError: the file is in UTF-16 or UTF-32.
    """
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise FatalError(f"{path} is in UTF-16 or UTF-32: save it as UTF-8")
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")  # without the byte order mark


def _read_csv(path: Path, delimiter: str) -> Iterator[Record | Unreadable]:
    rows = read_csv(_read_text(path), delimiter)
    header = next(rows, list[str]())
    if isinstance(header, str):
        raise FatalError(f"cannot read {path}: the names of its columns cannot be read: {header}")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise FatalError(f"{path} has two columns of the name {twice[0]!r}")
    for cells in rows:
        if isinstance(cells, str):
            yield Unreadable(cells)
        elif len(cells) == len(header):
            yield {name: cell or None for name, cell in zip(header, cells, strict=True)}
        else:
            yield Unreadable(f"it has {len(cells)} values, and the first line names {len(header)} columns")


def _read_json(path: Path) -> Iterator[tuple[Place, Record | Unreadable]]:
    """The rows of a JSON array, of ``{"data": [...]}``, of one object, or of lines, whatever the file's name."""
    text = _read_text(path)
    lines = text.split("\n")
    filled = [line for line in lines if line.strip()]
    if filled and (isinstance(_parse(filled[0]), Unreadable) or len(filled) == 1):
        whole = _parse(text)
        if isinstance(whole, Unreadable):
            is_array = filled[0].lstrip().startswith("[")
            if is_array or not any(isinstance(_parse(line), dict) for line in filled):
                form = "a JSON array" if is_array else "lines of JSON, or one JSON array"
                raise FatalError(f"{path} should be {form}, but {whole.reason}")
        else:
            if isinstance(whole, dict) and len(whole) == 1 and isinstance(next(iter(whole.values())), list):
                whole = next(iter(whole.values()))
            rows = whole if isinstance(whole, list) else [whole]
            yield from _number(str(path), map(_as_record, rows))
            return
    for row, line in enumerate(lines):
        if line.strip():
            yield Place(str(path), row), _as_record(_parse(line))


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        return Unreadable("it is nested too deeply")
    except ValueError as error:
        return Unreadable(f"it is no JSON: {error}")


def _as_record(value: Any) -> Record | Unreadable:
    if isinstance(value, (dict, Unreadable)):
        return value
    return Unreadable(f"it is not a JSON object: {str(value)[:80]!r}")


def _read_hub(source: str, name: str, configuration: str | None, splits: list[str], *, named: bool) -> pa.Table:
    try:
        import datasets  # imported here because it is slow to import and rarely needed
        from huggingface_hub import HfApi, constants
    except ImportError as error:
        raise FatalError(
            f"{source} is no local file, and reading the hub needs the package datasets: {error}"
        ) from None
    offline = bool(constants.HF_HUB_OFFLINE)
    try:
        if not offline:
            # This fails at once if the hub cannot be reached, whereas load_dataset would retry for half a minute.
            HfApi().dataset_info(name, timeout=_HUB_TIMEOUT_S)
        if named:
            return datasets.load_dataset(name, configuration, split=splits[0]).data.table
        every = datasets.load_dataset(name, configuration)
    except (httpx.HTTPError, OSError, ValueError) as error:
        if offline:
            raise FatalError(
                f"cannot read {source}: it is no local file, and the cache lacks it; {OFFLINE} ({first_line(error)})"
            ) from None
        raise FatalError(
            f"cannot read {source}: it is no local file, and the hub does not give it: {first_line(error)}"
        ) from None
    chosen = next((split for split in splits if split in every), None)
    chosen = next(iter(every)) if chosen is None and len(every) == 1 else chosen
    if chosen is None:
        raise FatalError(f"{source} has the splits {', '.join(every)}: name one, as {source}@{next(iter(every))}")
    return every[chosen].data.table
