"""Reads questions with reference answers from public data sets and from files, in any of the four forms of prepare."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.languages import CODES, code_of
from common.process import FatalError
from learner.work.tables import read_table
from reward.gate import LanguageGate

UNLABELLED = "unlabelled"  # the topic of a row before scripts.data.label
_COLUMNS = ("question", "answer", "language", "topic", "region", "id")
_ROLES = {"system", "user", "assistant"}


class LeftOut(ValueError):
    """Raised for a row that is not broken and yet is not used."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind  # "left out" or "too long"


@dataclass(frozen=True)
class QuestionRow:
    """One question with its reference answer, whatever the source."""

    messages: list[dict[str, str]]  # the last one is the user's
    reference: str
    language: str  # ISO code; empty until it is detected
    topic: str
    regions: list[str]
    source: str  # name of the data set
    place: tuple[str, int]  # file and row in it, from 0, for messages
    accepted: list[str] = field(default_factory=list)
    rating: float | None = None  # of several rows with the same prompt the one with the best rating is kept
    id: str = ""

    @property
    def question(self) -> str:
        return self.messages[-1]["content"]

    @property
    def prompt(self) -> str:
        return "\n".join(message["content"] for message in self.messages)


@dataclass
class RejectedRows:
    """The rows of the sources that became no question, and why."""

    problems: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, place: tuple[str, int], error: Exception) -> None:
        """Lists a row with the reason, and counts it as broken, or as the kind of the LeftOut that it is given."""
        kind = error.kind if isinstance(error, LeftOut) else "broken"
        self.counts[kind] += 1
        self.problems.append({"source": place[0], "row": place[1], "kind": kind, "reason": str(error)[:500]})


@dataclass(frozen=True)
class Rules:
    """Which rows of a source are read, and how."""

    columns: Mapping[str, str] = field(default_factory=dict)  # our name of a column -> the name in the source
    language: str = ""  # the language of rows that name none
    where: Mapping[str, str] = field(default_factory=dict)  # column -> the value that a row must have there
    length: Callable[[str], int] = len  # measures a prompt, in characters or tokens
    longest: int = 100_000  # the longest prompt that is read, by ``length``
    numbers: bool = False  # whether answers may be numbers, as in mGSM


def read(sources: Sequence[str], rules: Rules, rejected: RejectedRows) -> list[QuestionRow]:
    """The questions of all sources, in order; the other rows are added to ``rejected``.

    The columns of a row decide which of the four forms it has that scripts.data.prepare describes.

    Raises:
        FatalError: a source is neither a readable file nor a data set of the hub, or no row has a column that
            ``rules.where`` names.
    """
    rows: list[QuestionRow] = []
    columns_not_seen = set(rules.where)
    for source in sources:
        for place, record in _read_records(source):
            try:
                if not isinstance(record, dict):
                    raise ValueError(f"the row is not a JSON object: {str(record)[:80]!r}")
                columns_not_seen -= record.keys()
                if any(str(record.get(column, value)) != value for column, value in rules.where.items()):
                    raise LeftOut("left out", f"it does not match --where {dict(rules.where)}")
                rows.append(_convert(record, place, rules))
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                rejected.add(place, error)
    if columns_not_seen:
        raise FatalError(f"--where: no row of {', '.join(sources)} has a column {min(columns_not_seen)!r}")
    return _drop_repeated(_detect_languages(rows, rejected), rejected)


def _read_records(source: str) -> Iterator[tuple[tuple[str, int], Any]]:
    """Every row of a source, with its place. A line that is not JSON is given as the text of the error."""
    path = Path(source)
    files = sorted([*path.rglob("*.parquet"), *path.rglob("*.jsonl")]) if path.is_dir() else [path]
    if not files:
        raise FatalError(f"the directory {source} holds no .parquet and no .jsonl file")
    for file in files:
        if file.suffix in (".jsonl", ".json"):
            try:
                lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
            except OSError as error:
                raise FatalError(f"cannot read {file}: {error}") from None
            yield from (((str(file), row), _parse_json(line)) for row, line in enumerate(lines) if line.strip())
        else:
            batches = read_table(source if path == file else str(file)).to_batches(max_chunksize=1000)
            records = (record for batch in batches for record in batch.to_pylist())
            yield from (((str(file), row), record) for row, record in enumerate(records))


def _parse_json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return str(error)


def _convert(record: dict[str, Any], place: tuple[str, int], rules: Rules) -> QuestionRow:
    """The question that a record holds.

    Raises:
        ValueError: a value is missing or of a wrong type.
        LeftOut: the row is not broken, but it is not wanted, or too long.
    """
    if {"context", "response1", "response2"} <= record.keys():
        fields = _read_helpsteer3(record)
    elif {"question", "response", "human_rating"} <= record.keys():
        fields = _read_care(record)
    elif {"prompt", "reward_model", "extra_info"} <= record.keys():
        fields = _read_verl(record)
    else:
        names = {ours: rules.columns.get(ours, ours) for ours in _COLUMNS}
        if missing := {names["question"], names["answer"]} - record.keys():
            raise ValueError(
                f"there is no column {min(missing)!r} among {', '.join(record)}: name yours with --columns"
            )
        fields = {ours: record.get(theirs) for ours, theirs in names.items()}
        if fields["language"] is None and not rules.language:
            raise ValueError(
                "the row names no language: name the column with --columns, or the language with --language"
            )
    language = fields.get("language") or rules.language
    if rules.numbers and isinstance(fields["answer"], int | float):
        fields["answer"] = str(fields["answer"])
    row = QuestionRow(
        messages=_parse_messages(fields["question"]),
        reference=_parse_text(fields["answer"], "the answer"),
        language=code_of(_parse_text(language, "the language")) if language else "",
        topic=next(
            iter(_parse_texts(fields.get("topic"))), UNLABELLED
        ),  # verl's rows may have a list; its first topic is taken
        regions=_parse_texts(fields.get("region")),
        source=str(record.get("data_source") or Path(place[0]).stem),
        place=place,
        accepted=_parse_texts(fields.get("accepted")),
        rating=fields.get("rating"),
        id="" if fields.get("id") is None else str(fields["id"]),
    )
    if (length := rules.length(row.prompt)) > rules.longest:
        raise LeftOut("too long", f"the prompt is {length} long, --max-prompt is {rules.longest}")
    return row


def _read_helpsteer3(record: dict[str, Any]) -> dict[str, Any]:
    preference = record["overall_preference"]
    if not isinstance(preference, int | float):
        raise ValueError(f"overall_preference is not a number: {preference!r}")
    if preference == 0:
        raise LeftOut("left out", "neither answer is preferred: overall_preference is 0")
    answer = record["response1" if preference < 0 else "response2"]
    return {"question": record["context"], "answer": answer, "language": record["language"]}


def _read_care(record: dict[str, Any]) -> dict[str, Any]:
    answer, rest = record.get("answer"), {"language": record.get("language"), "region": record.get("culture")}
    rating = float("inf") if answer else float(record["human_rating"])
    return {"question": record["question"], "answer": answer or record["response"], "rating": rating, **rest}


def _read_verl(record: dict[str, Any]) -> dict[str, Any]:
    reward, extra = record["reward_model"], record["extra_info"]
    return {
        "question": record["prompt"],
        "answer": reward["ground_truth"],
        "accepted": reward.get("accepted"),
        "language": _parse_text(extra["language"], "the language"),
        "topic": extra.get("topic") or record.get("ability"),
        "region": extra.get("region"),
    }


def _parse_messages(value: Any) -> list[dict[str, str]]:
    """The chat messages of a prompt: of a text, which becomes one message, or of a conversation."""
    conversation = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(conversation, list) or not conversation:
        raise ValueError(f"the prompt is neither a text nor a list of messages: {str(value)[:80]!r}")
    messages = [{"role": one["role"], "content": _parse_text(one["content"], "a message")} for one in conversation]
    if wrong := [message["role"] for message in messages if message["role"] not in _ROLES]:
        raise ValueError(f"a message has the role {wrong[0]!r}; the roles are {', '.join(sorted(_ROLES))}")
    if messages[-1]["role"] != "user":
        raise ValueError("the last message is not the user's")
    return messages


def _parse_text(value: Any, what: str) -> str:
    """The value, which must be a text that is not empty; ``what`` names it in the error."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is not a text: {str(value)[:80]!r}")
    if not value.strip():
        raise ValueError(f"{what} is empty")
    return value


def _parse_texts(value: Any) -> list[str]:
    """A list of texts, of which one alone may be given without a list, or none at all."""
    if value is None or value == "":
        return []
    return [
        _parse_text(one, "a topic, region or accepted answer") for one in ([value] if isinstance(value, str) else value)
    ]


def _detect_languages(rows: list[QuestionRow], rejected: RejectedRows) -> list[QuestionRow]:
    """The rows with their languages. CARE names none: the language is detected from the question."""
    unnamed = [row.question for row in rows if not row.language]
    detected = iter(LanguageGate().detect(unnamed) if unnamed else ())
    complete = [row if row.language else replace(row, language=next(detected)) for row in rows]
    for row in complete:
        if row.language not in CODES:
            rejected.add(
                row.place,
                ValueError(f"the language ({row.language or 'none'}) is not a known one: name it with --language"),
            )
    return [row for row in complete if row.language in CODES]


def _drop_repeated(rows: Iterable[QuestionRow], rejected: RejectedRows) -> list[QuestionRow]:
    """Each id and each prompt once, because a held-out prompt that is also trained on would have a worthless score."""
    by_id: dict[str, QuestionRow] = {}
    by_prompt: dict[str, QuestionRow] = {}
    for row in rows:
        if row.id and row.id in by_id:
            rejected.add(row.place, ValueError(f"row {by_id[row.id].place[1]} has the same id {row.id!r}"))
            continue
        first = by_prompt.setdefault(row.prompt, row)
        if first.rating is not None and row.rating is not None and first is not row:
            best, other = (row, first) if row.rating > first.rating else (first, row)
            rejected.add(
                other.place, LeftOut("left out", f"row {best.place[1]} has the same question and a better answer")
            )
            by_prompt[row.prompt] = best
        elif first is not row:
            rejected.add(row.place, ValueError(f"row {first.place[1]} of {first.place[0]} has the same prompt"))
            continue
        by_id[row.id] = row
    return list(by_prompt.values())
