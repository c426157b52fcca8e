"""Makes a question of a record, whatever the names of its columns, and says what is wrong where that is not possible.

The columns of a record decide which of four forms it has:

* HelpSteer3-preference: context, response1, response2, overall_preference, language. The preferred answer is the
  reference; ties have none and are left out;
* CARE: question, answer, response, human_rating, culture. The reference is ``answer``, or where there is none the
  response, with its rating; the culture is the region, and the language is not named;
* verl's rows: prompt, reward_model and what else there is of ability, extra_info and data_source;
* anything else: question, answer, language, topic, region, accepted.

``Rules.columns`` names other columns. A name may lead into a column by dots (``extra_info.lang``), and may end in
`` after TEXT``: then what follows the last TEXT counts (``reward_model.ground_truth after ---``).
"""

from __future__ import annotations

import datetime
import json
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from statistics import mean
from typing import Any

from common.languages import code_of
from learner.data.problems import Place, Problems, RowError
from learner.data.records import Record, Unreadable, read_records

UNLABELLED = "unlabelled"  # the topic of a row that names none
# All other names are further columns.
OURS = ("question", "answer", "language", "topic", "region", "accepted", "id", "pass_rate")
_ROLES = ("system", "user", "assistant")
_AFTER = " after "
_SHOWN = 80  # characters of a wrong value that a message quotes
_ABSENT: Any = object()

# By our name, where a value is looked for; the first one that is there and not null is taken.
_VERL = {
    "question": ("prompt",),
    "answer": ("reward_model.ground_truth",),
    "accepted": ("reward_model.accepted",),
    "language": ("extra_info.language", "extra_info.lang", "language", "lang"),
    "topic": ("extra_info.topic", "ability", "data_source"),
    "region": ("extra_info.region",),
}
_PLAIN = {name: (name,) for name in OURS if name != "pass_rate"} | {"language": ("language", "lang")}


@dataclass(frozen=True)
class QuestionRow:
    """One question with its reference answer, whatever the source."""

    messages: list[dict[str, str]]  # the last one is the user's
    reference: str
    language: str  # ISO code; empty where the form names none and it is to be detected
    topics: list[str]
    regions: list[str]
    source: str  # name of the data set
    place: Place
    accepted: list[str] = field(default_factory=list)
    extra: dict[str, str] = field(default_factory=dict)  # further columns that were asked for
    rating: float | None = None  # of several rows with the same prompt the one with the best rating is kept
    id: str = ""
    pass_rate: Any = None  # as the record has it: by language, or one number; ``mean_pass_rate`` reads it
    rest: Record = field(default_factory=dict)  # the columns of the record that are in none of the other fields

    @property
    def topic(self) -> str:
        """The first topic, or ``UNLABELLED``."""
        return self.topics[0] if self.topics else UNLABELLED

    @property
    def question(self) -> str:
        """The last turn of the user."""
        return self.messages[-1]["content"]

    @property
    def prompt(self) -> str:
        """The texts of all turns."""
        return "\n".join(message["content"] for message in self.messages)


@dataclass(frozen=True)
class Rules:
    """How the rows of a source are read."""

    columns: Mapping[str, str] = field(default_factory=dict)  # our name, or that of a further column -> the source's
    language: str = ""  # the language of rows that name none
    where: Mapping[str, str] = field(default_factory=dict)  # column -> the value that a row must have there
    splits: Sequence[str] = ("train",)  # as for read_records
    needs_language: bool = True  # whether a row without a language is broken
    needs_answer: bool = True  # whether a row without an answer is broken; otherwise answers are not even looked at


def read_question_rows(
    source: str, rules: Rules, problems: Problems, missing: set[str] | None = None
) -> Iterator[QuestionRow]:
    """The questions of a source, in order; the rows that become none are added to ``problems``.

    Args:
        missing: gets the columns that ``rules`` names and no row has, in the end. They may be misspelt.

    Raises:
        FatalError: the source cannot be read.
    """
    not_seen = {*rules.columns.values(), *rules.where}
    for place, record in read_records(source, rules.splits):
        try:
            if isinstance(record, Unreadable):
                raise RowError("", record.reason)
            not_seen = {path for path in not_seen if _look_up(record, path) is _ABSENT}
            if any(str(as_json(record.get(column, value))) != value for column, value in rules.where.items()):
                raise RowError("", f"it does not match --where {dict(rules.where)}", "left out")
            yield parse_row(record, place, rules)
        except RowError as error:
            problems.add(place, error)
    if missing is not None:
        missing |= not_seen


def parse_row(record: Record, place: Place, rules: Rules) -> QuestionRow:
    """The question that a record holds.

    Raises:
        RowError: a value is missing or of a wrong type, or the row is not wanted.
    """
    found = _find_values(record)
    found.values["pass_rate"] = record.get("pass_rate", _ABSENT)
    for ours, path in rules.columns.items():
        found.values[ours], found.names[ours] = _look_up(record, path), path
        if ours in OURS and ours != "pass_rate":  # which stays a column of the row, whoever reads and writes it
            found.used.add(_split_path(path)[0])
    values = {ours: as_json(value) for ours, value in found.values.items() if value is not _ABSENT}
    try:
        return _parse_values(values, record, place, rules, found)
    except RowError as error:
        ours = error.key.partition(".")[0].partition("[")[0]
        key = found.names.get(ours, ours) + error.key.removeprefix(ours)  # as the file has it
        raise RowError(key, str(error), error.kind) from None


@dataclass
class _Found:
    """What a record has, whatever its form."""

    values: dict[str, Any]  # by our names; _ABSENT where a column is missing
    names: dict[str, str]  # by our names, those of the record
    used: set[str]  # the paths that belong to the form
    may_lack_language: bool = False


def _parse_values(values: dict[str, Any], record: Record, place: Place, rules: Rules, found: _Found) -> QuestionRow:
    needed = ("question", "answer") if rules.needs_answer else ("question",)
    if missing := next((name for name in needed if name not in values), None):
        raise RowError(missing, f"there is no such column among {', '.join(record)}: name yours in data.columns, or "
                       f"with --columns {missing}=NAME")  # fmt: skip
    language = values.get("language")
    if language is None or (isinstance(language, str) and not language.strip()):
        language = rules.language
    if not language and rules.needs_language and not found.may_lack_language:
        raise RowError("language", "the row names no language: name the column in data.columns (--columns), or the "
                       "language of all such rows in data.language (--language)")  # fmt: skip
    rating, source = values.get("rating"), record.get("data_source")
    return QuestionRow(
        messages=_parse_messages(values["question"]),
        reference=_parse_answer(values["answer"]) if rules.needs_answer else "",
        language=parse_language(language) if language else "",
        topics=_parse_texts(values.get("topic"), "topic"),
        regions=_parse_texts(values.get("region"), "region"),
        source=source if isinstance(source, str) and source.isprintable() and source else Path(place.file).stem,
        place=place,
        accepted=_parse_texts(values.get("accepted"), "accepted"),
        extra={
            ours: check_text(_as_text(values[ours]), ours, may_be_empty=True)
            for ours in rules.columns
            if ours not in OURS and values.get(ours) is not None
        },
        rating=rating,
        id="" if values.get("id") is None else str(values["id"]),
        pass_rate=values.get("pass_rate"),
        rest=_rest(record, found.used | {"data_source"}),
    )


def mean_pass_rate(row: QuestionRow, languages: Sequence[str]) -> float:
    """The share of right answers to a question, in [0, 1], as a mean over those of the languages that it was asked in.

    The question's own language counts in any case.

    Raises:
        RowError: the row has no pass rate in any of them, or one that is no share.
    """
    by_language = row.pass_rate if isinstance(row.pass_rate, Mapping) else dict.fromkeys(languages, row.pass_rate)
    counted = {*languages, row.language}
    rates = [rate for language, rate in by_language.items() if language in counted and rate is not None]
    if not rates:
        raise RowError("pass_rate", "it has no pass rate: scripts.data.pass_rate measures it", "pass rate")
    shares = []
    for rate in rates:
        share = _number(rate)
        if share is None or not 0 <= share <= 1:
            raise RowError("pass_rate", f"it is no share between 0 and 1: {_quote(rate)}")
        shares.append(share)
    return float(mean(shares))  # exactly: three rates of 0.4 have the mean 0.4


def normal_form(messages: Sequence[Mapping[str, str]]) -> str:
    """What two conversations have in common that differ in Unicode normalisation or white space alone."""
    texts = (f"{one['role']}: {' '.join(unicodedata.normalize('NFC', one['content']).split())}" for one in messages)
    return "\n".join(texts)


def drop_repeated(rows: Sequence[QuestionRow], problems: Problems, *, by_id: bool = False) -> list[QuestionRow]:
    """Each question once: the first row, or the best rated one; the others are added to ``problems`` as repeated.

    Two questions are the same if their :func:`normal_form` is.

    Args:
        by_id: whether an id that a language has twice is a problem, too.
    """
    ids: dict[tuple[str, str], QuestionRow] = {}
    kept: dict[str, QuestionRow] = {}
    for row in rows:
        if by_id and row.id and (first := ids.setdefault((row.id, row.language), row)) is not row:
            reason = f"{first.place} has the same id {row.id!r} in the same language"
            problems.add(row.place, RowError("id", reason))
            continue
        key = normal_form(row.messages)
        first = kept.setdefault(key, row)
        if first is row:
            continue
        better = row.rating is not None and first.rating is not None and row.rating > first.rating
        best, other = (row, first) if better else (first, row)
        kept[key] = best
        reason = f"{best.place} has the same question" + (" and a better answer" if row.rating is not None else "")
        problems.add(other.place, RowError("question", reason, "repeated"))
    return list(kept.values())


def as_json(value: Any) -> Any:
    """A value of a column as JSON would have it, in which commands write rows: so it means the same when read again.

    A decimal becomes its digits, without an exponent and with the zeros at its end; a date or time its text; bytes that
    are UTF-8 a text, as some programs write it to parquet; NaN becomes null, because pandas has it where a value is
    missing. What JSON has, and any other value, stays as it is.
    """
    if isinstance(value, float | Decimal) and math.isnan(value):
        return None
    if isinstance(value, Decimal) and value.is_finite():
        return format(value, "f")
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, list):
        return [as_json(one) for one in value]
    return {key: as_json(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def _number(value: Any) -> float | None:
    """A number, also of a decimal or of a text, as CSV has it; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        return None
    try:
        number = value if isinstance(value, int) else float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _find_values(record: Record) -> _Found:
    columns = set(record)
    if {"context", "response1", "response2"} <= columns:
        used = {"context", "response1", "response2", "overall_preference", "language"}
        return _Found(_of_helpsteer3(record), {"question": "context"}, used)
    if {"question", "response", "human_rating"} <= columns:
        used = {"question", "answer", "response", "human_rating", "language", "culture"}
        return _Found(_of_care(record), {"region": "culture"}, used, may_lack_language=True)
    form = _VERL if {"prompt", "reward_model"} <= columns else _PLAIN
    found = _Found({}, {}, {path for paths in form.values() for path in paths})
    for ours, paths in form.items():
        there = {path: value for path in paths if (value := _look_up(record, path)) is not _ABSENT}
        path = next((path for path, value in there.items() if value not in (None, "")), next(iter(there), paths[0]))
        found.values[ours], found.names[ours] = there.get(path, _ABSENT), path
    return found


def _of_helpsteer3(record: Record) -> dict[str, Any]:
    preference = _number(record.get("overall_preference"))
    if preference is None:
        raise RowError("overall_preference", f"it is not a number: {_quote(record.get('overall_preference'))}")
    if preference == 0:
        raise RowError("overall_preference", "neither answer is preferred: overall_preference is 0", "left out")
    answer = record["response1" if preference < 0 else "response2"]
    return {"question": record["context"], "answer": answer, "language": record.get("language")}


def _of_care(record: Record) -> dict[str, Any]:
    answer, rating = record.get("answer"), _number(record["human_rating"])
    if not answer and rating is None:
        raise RowError("human_rating", f"it is not a number: {_quote(record['human_rating'])}")
    return {
        "question": record["question"],
        "answer": answer or record["response"],
        "rating": math.inf if answer else rating,
        "language": record.get("language"),
        "region": record.get("culture"),
    }


def _split_path(path: str) -> tuple[str, str]:
    column, _, text = path.partition(_AFTER)
    return column, text


def _look_up(record: Record, path: str) -> Any:
    """The value at a path, or ``_ABSENT``. A column whose own name has dots comes first."""
    column, text = _split_path(path)
    value: Any = record.get(column, _ABSENT)
    if value is _ABSENT:
        value = record
        for part in column.split("."):
            if isinstance(value, Mapping):
                value = value.get(part, _ABSENT)
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return _ABSENT
            if value is _ABSENT:
                return _ABSENT
    return value.rpartition(text)[2] if text and isinstance(value, str) else value


def _rest(record: Record, used: set[str]) -> Record:
    """The columns that are not used, and of those of which only parts are used the other parts."""
    rest: Record = {}
    for name, value in record.items():
        parts = {path.removeprefix(f"{name}.") for path in used if path.startswith(f"{name}.")}
        if isinstance(value, Mapping) and parts and name not in used:
            value = {key: part for key, part in value.items() if key not in parts}
        if name not in used and value != {}:
            rest[name] = value
    return rest


def _parse_messages(value: Any) -> list[dict[str, str]]:
    """The chat messages of a prompt: of a text, which becomes one message, or of a conversation."""
    if isinstance(value, str):
        return [{"role": "user", "content": check_text(value, "question")}]
    if not isinstance(value, list) or not value:
        raise RowError("question", f"it is neither a text nor a list of messages: {_quote(value)}")
    messages = []
    for number, one in enumerate(value):
        key = f"question[{number}]"
        if not isinstance(one, Mapping) or not {"role", "content"} <= one.keys():
            raise RowError(key, f"it is no message with role and content: {_quote(one)}")
        if one["role"] not in _ROLES:
            raise RowError(f"{key}.role", f"it is {_quote(one['role'])}; the roles are {', '.join(_ROLES)}")
        messages.append({"role": one["role"], "content": check_text(one["content"], f"{key}.content")})
    if messages[-1]["role"] != "user":
        raise RowError("question", "the last message is not the user's")
    return messages


def _parse_answer(value: Any) -> str:
    """The reference answer; a number becomes its text, as data sets of mathematics have it."""
    return check_text(_text_of_number(value), "answer")


def _text_of_number(value: Any) -> Any:
    """The text of a number that is one; anything else stays as it is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return str(value) if is_number else value


def parse_language(value: Any) -> str:
    """The code of a language.

    Raises:
        RowError: the value is no text, or names no known language.
    """
    try:
        return code_of(check_text(value, "language"))
    except RowError:
        raise
    except ValueError as error:
        raise RowError("language", str(error)) from None


def _parse_texts(value: Any, key: str) -> list[str]:
    """A list of texts, each once, of which one alone may be given without a list; null and empty texts are none."""
    found: list[str] = []
    for number, one in enumerate(value if isinstance(value, list) else [value]):
        if one is None and isinstance(value, list):
            raise RowError(f"{key}[{number}]", "it is null")
        if one is None or (isinstance(one, str) and not one.strip()):
            continue
        found.append(check_text(_text_of_number(one), key))
    return list(dict.fromkeys(found))


def check_text(value: Any, key: str, *, may_be_empty: bool = False) -> str:
    """The value, which must be a text that can be encoded, and is not empty unless it may be.

    Raises:
        RowError: it is not.
    """
    if not isinstance(value, str):
        raise RowError(key, "it is missing (null)" if value is None else f"it is not a text: {_quote(value)}")
    if not value.strip() and not may_be_empty:
        raise RowError(key, "it is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(
            key, f"character {error.start} is half of a character ({value[error.start]!a}, a lone surrogate), or bytes "
            "that are not UTF-8"
        ) from None  # fmt: skip
    return value


def _as_text(value: Any) -> str:
    """A further column as rewards see it: texts as they are, what JSON has as JSON, anything else by str.

    So a row means the same when it is read from JSON, to which a command may have written it.
    """
    has_json = isinstance(value, Mapping | list | int | float)
    return json.dumps(value, ensure_ascii=False, default=str) if has_json else str(value)


def _quote(value: Any) -> str:
    return ascii(value)[:_SHOWN] if isinstance(value, str) and not value.isprintable() else repr(value)[:_SHOWN]
