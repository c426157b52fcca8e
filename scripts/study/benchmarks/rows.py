"""Reads the rows of public benchmarks as they are published: from local files in their layout, or from the hub.

A benchmark is scored whole or not at all, so a row that is not as it should be ends the reading. The error names the
file, the row and the column that is missing, and the columns that are there.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from common.languages import code_of
from common.numbers import number_of
from common.process import FatalError
from learner.data.problems import Place
from learner.data.records import SUFFIXES, Record, Unreadable, files_of, read_records

LETTERS = "ABCDEFGH"
_HUB = re.compile(r"[\w-]+/[\w.-]+")
_LEVELS = ("low", "medium", "high", "top")  # of PolyMath; its code says "middle" where its files say "medium"
_POLYMATH_ID = re.compile(r"(low|medium|high|top)-(\w+)-(\d+)")
_SOURCES = ("AIME2024", "AIME2025", "CNMO", "MATH500")  # of MMATH
_MCLM_TAKEN = ("MT-MATH100", "MT-AIME2024")
_MCLM_PARTS = (*_MCLM_TAKEN, "M-IMO", "M-MO")
_SPLIT = "test"
_NOT_ASKED = re.compile(r"(dev|train|validation)([\W_]|$)|replaced_questions")  # names of files


@dataclass(frozen=True)
class BenchmarkRow:
    """A question of a benchmark.

    Attributes:
        language: of the question, as a code.
        answer: as published: a formula, a number, or the letter of the right option.
        group: what the benchmark divides its questions by: the source, the level, the kind; ``""`` for nothing.
        choices: the texts of the options; empty where the answer is free.
        id: within its group; the same in every language that the question was translated to.
        variety: what the benchmark calls the language, where it asks in varieties of one that have the same code, as
            zh-cn and zh-tw; ``""`` where it does not.
    """

    language: str
    question: str
    answer: str
    place: Place
    group: str = ""
    choices: tuple[str, ...] = ()
    id: str = ""
    variety: str = ""

    @property
    def stratum(self) -> tuple[str, str]:
        """Language, or variety of one, and group: what a mean weighs, and what figures are given for."""
        return self.variety or self.language, self.group


def read_mmath(source: str, languages: Collection[str]) -> list[BenchmarkRow]:
    """MMATH: ``LANGUAGE.json`` with question, answer, data_source and lang, and gid, which numbers the questions.

    Raises:
        FatalError: as for all readers here, of a source that cannot be read or a row that is not as it should be.
    """

    def row(record: Record, place: Place) -> BenchmarkRow:
        source = _text(record, "data_source", place).upper()  # the first version of the data has lower case
        if source not in _SOURCES:
            raise FatalError(f"{place}: data_source is {source!r}, which is none of {', '.join(_SOURCES)}")
        language = _language(_text(record, "lang", place), place)
        return BenchmarkRow(language, *_both(record, place), place, source, id=_id(record, "gid", place))

    return _rows(source, languages, row)


def read_polymath(source: str, languages: Collection[str]) -> list[BenchmarkRow]:
    """PolyMath: ``LANGUAGE/LEVEL.parquet`` with id (``LEVEL-LANGUAGE-NUMBER``), question and answer."""

    def row(record: Record, place: Place) -> BenchmarkRow:
        found = _POLYMATH_ID.fullmatch(id := _text(record, "id", place))
        if found is None:
            raise FatalError(f"{place}: the id {id!r} is not of the form LEVEL-LANGUAGE-NUMBER, as low-de-0")
        return BenchmarkRow(_language(found[2], place), *_both(record, place), place, found[1], id=found[3])

    configurations = [f"{language}@{level}" for language in languages or _POLYMATH for level in _LEVELS]
    return _rows(source, languages, row, hub=configurations)


def read_mgsm(source: str, languages: Collection[str]) -> list[BenchmarkRow]:
    """MGSM and MGSM-Rev2: ``mgsm_LANGUAGE.tsv`` without a header, question and answer; on the hub answer_number."""

    def row(record: Record, place: Place) -> BenchmarkRow:
        answer = _text(record, "answer_number", place)
        if not re.fullmatch(r"-?[\d,]+(\.0+)?", answer):
            raise FatalError(f"{place}: the answer {answer!r} is no whole number")
        question = _text(record, "question", place)
        return BenchmarkRow(_language_of_place(place), question, answer, place, id=_id(record, "number", place))

    return _rows(source, languages, row, hub=[*(languages or _MGSM)], records=_mgsm_records)


def read_msvamp(source: str, languages: Collection[str]) -> list[BenchmarkRow]:
    """MSVAMP: ``test_English.json`` and so on, lines with m_query and response."""

    def row(record: Record, place: Place) -> BenchmarkRow:
        question, answer = _text(record, "m_query", place), _text(record, "response", place)
        if number_of(answer, "en") is None:
            raise FatalError(f"{place}: the answer {answer!r} is no number")
        return BenchmarkRow(_language_of_place(place), question, answer, place, id=str(place.row))

    return _rows(source, languages, row, hub=[*(languages or _MSVAMP)])


def read_global_mmlu(source: str, languages: Collection[str]) -> list[BenchmarkRow]:
    """Global-MMLU-Lite: a configuration of each language with question, option_a to option_d, answer (a letter)."""

    def row(record: Record, place: Place) -> BenchmarkRow:
        answer = _text(record, "answer", place).strip().upper()
        choices = tuple(_text(record, f"option_{letter}", place) for letter in "abcd")
        if answer not in LETTERS[:4]:
            raise FatalError(f"{place}: answer is {answer!r}, which is none of A, B, C, D")
        kind, question = str(record.get("cultural_sensitivity_label") or ""), _text(record, "question", place)
        id = _id(record, "sample_id", place)
        return BenchmarkRow(_language_of_place(place), question, answer, place, kind, choices, id)

    return _rows(source, languages, row, hub=[*(languages or _GLOBAL_MMLU)])


def read_include(source: str, languages: Collection[str]) -> list[BenchmarkRow]:
    """INCLUDE-Lite: a configuration of each language with question, choices or option_a to option_d, answer (0 to 3).

    Its column language names the language. ``include_base_44`` of lm-evaluation-harness is another set, INCLUDE-Base.
    """

    def row(record: Record, place: Place) -> BenchmarkRow:
        language = _language(_text(record, "language", place).replace("North Macedonian", "Macedonian"), place)
        given = record.get("choices")
        with suppress(ValueError, TypeError):
            given = json.loads(given) if isinstance(given, str) else given
        if given is None and "option_a" in record:
            given = [_text(record, f"option_{letter}", place) for letter in "abcd"]
        if not (isinstance(given, list) and len(given) == 4 and all(isinstance(one, str) for one in given)):
            raise _wrong(record, "choices", place, "a list of four texts, or option_a to option_d")
        number = record.get("answer")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 4:
            raise _wrong(record, "answer", place, "a whole number from 0 to 3")
        question, kind = _text(record, "question", place), str(record.get("regional_feature") or "")
        id = f"{language} {place.file} {place.row}"  # every language has questions of its own
        return BenchmarkRow(language, question, LETTERS[number], place, kind, tuple(given), id)

    wanted = languages or _INCLUDE
    return _rows(source, languages, row, hub=[name for code, name in _INCLUDE.items() if code in wanted])


def read_mclm(source: str, languages: Collection[str]) -> list[BenchmarkRow]:
    """MCLM: configurations with a column for each language, and answer. Questions that a language lacks are null.

    Its two columns of Chinese, zh-cn and zh-tw, weigh as two languages; ``--languages zh`` asks both.

    Only MT-MATH100 and MT-AIME2024 are taken, whose answers can be compared by a rule; those of M-IMO and M-MO need a
    judge. Files and folders are named after them, as ``mt-math100.parquet``.
    """
    rows: list[BenchmarkRow] = []
    for place, record in _records(source, _MCLM_TAKEN, _plain_records):
        group = _mclm_part(source, place)
        if group not in _MCLM_TAKEN:
            continue
        columns = {}
        for name in record:
            with suppress(ValueError):
                columns[name] = code_of(name)
        if not columns:
            raise FatalError(f"{place}: no column is named after a language; there are {', '.join(record)}")
        answer = _text(record, "answer", place)
        rows += [
            BenchmarkRow(code, str(record[name]), answer, place, group, id=str(place.row), variety=name)
            for name, code in columns.items()
            if record[name] and (not languages or code in languages)
        ]
    return _nonempty(rows, source, languages)


def _mclm_part(source: str, place: Place) -> str:
    """The configuration that a row is of, by the name of its file, or else of a folder within the source.

    Whatever else is in the path says nothing: /home/simon holds no olympiads.

    Raises:
        FatalError: these name none.
    """
    name, _, configuration = place.file.partition(":")
    path = Path(name)
    within = path.relative_to(source).parts[-2::-1] if Path(source).is_dir() else (path.parent.name,)
    for candidate in [configuration.partition("@")[0]] if configuration else [path.stem, *within, Path(source).name]:
        for part in _MCLM_PARTS:
            if re.match(part.replace("-", "[-_ ]?"), candidate, re.IGNORECASE):
                return part
    raise FatalError(
        f"{place.file}: neither file nor folder is named after a part of MCLM; these are {', '.join(_MCLM_PARTS)}"
    )


# -- what the readers share ----------------------------------------------------------------------------------------


def _rows(
    source: str,
    languages: Collection[str],
    row: Callable[[Record, Place], BenchmarkRow],
    *,
    hub: Sequence[str] = (),
    records: Callable[[str], Iterator[tuple[Place, Record]]] | None = None,
) -> list[BenchmarkRow]:
    found = [row(record, place) for place, record in _records(source, hub, records or _plain_records)]
    return _nonempty([one for one in found if not languages or one.language in languages], source, languages)


def _nonempty(rows: list[BenchmarkRow], source: str, languages: Collection[str]) -> list[BenchmarkRow]:
    if not rows:
        raise FatalError(f"{source} has no question{' in ' + ', '.join(sorted(languages)) if languages else ''}")
    missing = set(languages) - {one.language for one in rows}
    if missing:
        raise FatalError(f"{source} has no question in {', '.join(sorted(missing))}")
    return rows


def _records(
    source: str, hub: Sequence[str], read: Callable[[str], Iterator[tuple[Place, Record]]]
) -> Iterator[tuple[Place, Record]]:
    """The records of a local file, of the files of a directory, or of configurations of a data set of the hub."""
    path = Path(source)
    if path.is_dir():
        files = [file for file in files_of(path, None) if not _NOT_ASKED.match(file.name)]
        if not files:
            raise FatalError(f"the directory {source} holds no file of rows ({', '.join(SUFFIXES)})")
        for file in files:
            yield from read(str(file))
    elif not path.exists() and hub and _HUB.fullmatch(source):
        for configuration in hub:
            split = "" if "@" in configuration else f"@{_SPLIT}"
            yield from _plain_records(f"{source}:{configuration}{split}")
    else:
        yield from read(source)


def _plain_records(source: str) -> Iterator[tuple[Place, Record]]:
    for place, record in read_records(source):
        if isinstance(record, Unreadable):
            raise FatalError(f"{place}: {record.reason}")
        yield place, record


def _mgsm_records(source: str) -> Iterator[tuple[Place, Record]]:
    """The lines of a file without a header: a question and its answer with a tab between them."""
    if not source.lower().endswith(".tsv"):
        yield from _plain_records(source)
        return
    try:
        lines = list(csv.reader(Path(source).read_text(encoding="utf-8-sig").splitlines(), "excel-tab", quoting=3))
    except (OSError, ValueError) as error:
        raise FatalError(f"cannot read {source}: {error}") from None
    header = 0
    for number, cells in enumerate(lines):
        place = Place(source, number)
        if number == 0 and [cell.lower() for cell in cells] == ["question", "answer"]:
            header = 1
        if not cells or number < header:
            continue
        if len(cells) != 2:
            raise FatalError(f"{place}: it has {len(cells)} columns; a question, a tab and an answer are needed")
        yield place, {"question": cells[0], "answer_number": cells[1].strip(), "number": number - header}


def _both(record: Record, place: Place) -> tuple[str, str]:
    return _text(record, "question", place), _text(record, "answer", place)


def _text(record: Record, name: str, place: Place) -> str:
    value = record.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise _wrong(record, name, place, "a text or a number")
    return value


def _id(record: Record, name: str, place: Place) -> str:
    """What numbers the questions in all languages alike; where there is no such column, the row in the file."""
    return str(place.row) if record.get(name) is None else str(record[name])


def _wrong(record: Record, name: str, place: Place, wanted: str) -> FatalError:
    if name in record:
        return FatalError(f"{place}: the column {name!r} is {str(record[name])[:60]!r}; {wanted} is needed")
    return FatalError(f"{place}: there is no column {name!r}, which has to be {wanted}; there are {', '.join(record)}")


def _language(name: str, place: Place) -> str:
    try:
        return code_of(name)
    except ValueError as error:
        raise FatalError(f"{place}: {error}") from None


def _language_of_place(place: Place) -> str:
    """The language that a file is named after, as mgsm_de.tsv, test_German.json or de/test-0.parquet; or a data set."""
    name, _, configuration = place.file.partition(":")
    path = Path(name)
    candidates = [path.stem.rpartition("_")[2]]
    if re.match(r"test\b", path.name):  # any other folder may have a name like a language's by chance
        candidates.append(path.parent.name)
    if configuration:
        candidates = [configuration.partition("@")[0]]
    for candidate in candidates:
        with suppress(ValueError):
            return code_of(candidate)
    raise FatalError(
        f"{place.file} names no language: it takes a name as mgsm_de.tsv, test_German.json, de/test.parquet"
    )


_POLYMATH = ("en", "zh", "ar", "bn", "de", "es", "fr", "id", "it", "ja", "ko", "ms", "pt", "ru", "sw", "te", "th", "vi")
_MGSM = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
_MSVAMP = ("bn", "zh", "en", "fr", "de", "ja", "ru", "es", "sw", "th")
_GLOBAL_MMLU = (
    "ar",
    "bn",
    "cs",
    "cy",
    "de",
    "en",
    "es",
    "fr",
    "hi",
    "hu",
    "id",
    "it",
    "ja",
    "ko",
    "my",
    "or",
    "pt",
    "sk",
    "sq",
    "sw",
    "tg",
    "yo",
    "zh",
)
_INCLUDE: Mapping[str, str] = {
    "sq": "Albanian", "ar": "Arabic", "hy": "Armenian", "az": "Azerbaijani", "eu": "Basque", "be": "Belarusian",
    "bn": "Bengali", "bg": "Bulgarian", "zh": "Chinese", "hr": "Croatian", "nl": "Dutch", "et": "Estonian",
    "fi": "Finnish", "fr": "French", "ka": "Georgian", "de": "German", "el": "Greek", "he": "Hebrew", "hi": "Hindi",
    "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "kk": "Kazakh", "ko": "Korean",
    "lt": "Lithuanian", "ms": "Malay", "ml": "Malayalam", "ne": "Nepali", "mk": "North Macedonian", "fa": "Persian",
    "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sr": "Serbian", "es": "Spanish", "tl": "Tagalog",
    "ta": "Tamil", "te": "Telugu", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vi": "Vietnamese",
}  # fmt: skip
Reader = Callable[[str, Collection[str]], list[BenchmarkRow]]
