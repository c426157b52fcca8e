"""Questions with reference answers from public data sets and files; what each needs to be one is in ``read``."""

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


class Unused(ValueError):
    """A row that is not broken, yet cannot be used."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind  # "left out" or "too long"


@dataclass(frozen=True)
class Row:
    """One question as every source gives it."""

    messages: list[dict[str, str]]  # the last one is the user's
    reference: str
    language: str  # ISO code; empty until it is detected
    topic: str
    regions: list[str]
    source: str
    place: tuple[str, int]  # source and row, for messages
    accepted: list[str] = field(default_factory=list)
    rating: float | None = None  # of several rows with one prompt the best rated one is meant
    id: str = ""

    @property
    def question(self) -> str:
        return self.messages[-1]["content"]

    @property
    def prompt(self) -> str:
        return "\n".join(message["content"] for message in self.messages)


@dataclass
class Report:
    """What did not become a row, and why."""

    problems: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, place: tuple[str, int], error: Exception) -> None:
        kind = error.kind if isinstance(error, Unused) else "broken"
        self.counts[kind] += 1
        self.problems.append({"source": place[0], "row": place[1], "kind": kind, "reason": str(error)[:500]})


@dataclass(frozen=True)
class Rules:
    """What is taken of a source."""

    columns: Mapping[str, str] = field(default_factory=dict)  # ours -> theirs
    language: str = ""  # of rows that do not tell
    where: Mapping[str, str] = field(default_factory=dict)  # column -> the value of wanted rows
    length: Callable[[str], int] = len  # of a prompt, in characters or tokens
    longest: int = 100_000  # prompt
    numbers: bool = False  # answers may be numbers, as in mGSM


def read(sources: Sequence[str], rules: Rules, report: Report) -> list[Row]:
    """The good rows of all sources, in order.

    By its columns a source is taken for one of the four forms of scripts.data.prepare.

    Raises:
        FatalError: a source is neither a readable file nor a data set of the hub, or no row has a column of
            ``rules.where``.
    """
    rows: list[Row] = []
    unmet = set(rules.where)
    for source in sources:
        for place, record in _records(source):
            try:
                if not isinstance(record, dict):
                    raise ValueError(f"no JSON object: {str(record)[:80]!r}")
                unmet -= record.keys()
                if any(str(record.get(column, value)) != value for column, value in rules.where.items()):
                    raise Unused("left out", f"not asked for by --where {dict(rules.where)}")
                rows.append(_converted(record, place, rules))
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                report.add(place, error)
    if unmet:
        raise FatalError(f"--where: no row of {', '.join(sources)} has a column {min(unmet)!r}")
    return _distinct(_with_language(rows, report), report)


def _records(source: str) -> Iterator[tuple[tuple[str, int], Any]]:
    path = Path(source)
    files = sorted([*path.rglob("*.parquet"), *path.rglob("*.jsonl")]) if path.is_dir() else [path]
    if not files:
        raise FatalError(f"{source} is a directory without .parquet or .jsonl files")
    for file in files:
        if file.suffix in (".jsonl", ".json"):
            try:
                lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
            except OSError as error:
                raise FatalError(f"cannot read {file}: {error}") from None
            yield from (((str(file), row), _json(line)) for row, line in enumerate(lines) if line.strip())
        else:
            batches = read_table(source if path == file else str(file)).to_batches(max_chunksize=1000)
            records = (record for batch in batches for record in batch.to_pylist())
            yield from (((str(file), row), record) for row, record in enumerate(records))


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return str(error)


def _converted(record: dict[str, Any], place: tuple[str, int], rules: Rules) -> Row:
    """
    Raises:
        ValueError: a value is missing or of a wrong type.
        Unused: the row is fine, but not wanted or too long.
    """
    if {"context", "response1", "response2"} <= record.keys():
        fields = _helpsteer3(record)
    elif {"question", "response", "human_rating"} <= record.keys():
        fields = _care(record)
    elif {"prompt", "reward_model", "extra_info"} <= record.keys():
        fields = _verl(record)
    else:
        named = {ours: rules.columns.get(ours, ours) for ours in _COLUMNS}
        if missing := {named["question"], named["answer"]} - record.keys():
            raise ValueError(f"no column {min(missing)!r} among {', '.join(record)}: use --columns")
        fields = {ours: record.get(theirs) for ours, theirs in named.items()}
        if fields["language"] is None and not rules.language:
            raise ValueError("no language: name its column with --columns, or it with --language")
    language = fields.get("language") or rules.language
    if rules.numbers and isinstance(fields["answer"], int | float):
        fields["answer"] = str(fields["answer"])
    row = Row(
        messages=_messages(fields["question"]),
        reference=_text(fields["answer"], "the answer"),
        language=code_of(_text(language, "the language")) if language else "",
        topic=next(iter(_texts(fields.get("topic"))), UNLABELLED),  # of verl's, which may have a list, the first
        regions=_texts(fields.get("region")),
        source=str(record.get("data_source") or Path(place[0]).stem),
        place=place,
        accepted=_texts(fields.get("accepted")),
        rating=fields.get("rating"),
        id="" if fields.get("id") is None else str(fields["id"]),
    )
    if (length := rules.length(row.prompt)) > rules.longest:
        raise Unused("too long", f"the prompt is {length} long, --max-prompt is {rules.longest}")
    return row


def _helpsteer3(record: dict[str, Any]) -> dict[str, Any]:
    preference = record["overall_preference"]
    if not isinstance(preference, int | float):
        raise ValueError(f"overall_preference is no number: {preference!r}")
    if preference == 0:
        raise Unused("left out", "a tie: overall_preference is 0")
    answer = record["response1" if preference < 0 else "response2"]
    return {"question": record["context"], "answer": answer, "language": record["language"]}


def _care(record: dict[str, Any]) -> dict[str, Any]:
    answer, rest = record.get("answer"), {"language": record.get("language"), "region": record.get("culture")}
    rating = float("inf") if answer else float(record["human_rating"])
    return {"question": record["question"], "answer": answer or record["response"], "rating": rating, **rest}


def _verl(record: dict[str, Any]) -> dict[str, Any]:
    reward, extra = record["reward_model"], record["extra_info"]
    return {
        "question": record["prompt"],
        "answer": reward["ground_truth"],
        "accepted": reward.get("accepted"),
        "language": _text(extra["language"], "the language"),
        "topic": extra.get("topic") or record.get("ability"),
        "region": extra.get("region"),
    }


def _messages(value: Any) -> list[dict[str, str]]:
    """Chat messages of a text or of a conversation, which keeps its turns."""
    talk = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(talk, list) or not talk:
        raise ValueError(f"the prompt is no text and no list of messages: {str(value)[:80]!r}")
    found = [{"role": message["role"], "content": _text(message["content"], "a message")} for message in talk]
    if wrong := [message["role"] for message in found if message["role"] not in _ROLES]:
        raise ValueError(f"a message has the role {wrong[0]!r}; known are {', '.join(sorted(_ROLES))}")
    if found[-1]["role"] != "user":
        raise ValueError("the last message is not the user's")
    return found


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is no text: {str(value)[:80]!r}")
    if not value.strip():
        raise ValueError(f"{what} is empty")
    return value


def _texts(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    return [_text(one, "a topic, region or accepted answer") for one in ([value] if isinstance(value, str) else value)]


def _with_language(rows: list[Row], report: Report) -> list[Row]:
    """CARE does not tell the language: it is that of the question."""
    silent = [row for row in rows if not row.language]
    found = iter(LanguageGate().detect([row.question for row in silent]) if silent else ())
    told = [row if row.language else replace(row, language=next(found)) for row in rows]
    for row in told:
        if row.language not in CODES:
            report.add(row.place, ValueError(f"no known language ({row.language or 'none'}): use --language"))
    return [row for row in told if row.language in CODES]


def _distinct(rows: Iterable[Row], report: Report) -> list[Row]:
    """Each id and each prompt once: the same prompt in both splits would make held-out scores worthless."""
    by_id: dict[str, Row] = {}
    by_prompt: dict[str, Row] = {}
    for row in rows:
        if row.id and row.id in by_id:
            report.add(row.place, ValueError(f"id {row.id!r} is that of row {by_id[row.id].place[1]}"))
            continue
        first = by_prompt.setdefault(row.prompt, row)
        if first.rating is not None and row.rating is not None and first is not row:
            best, other = (row, first) if row.rating > first.rating else (first, row)
            report.add(other.place, Unused("left out", f"row {best.place[1]} has this question and a better answer"))
            by_prompt[row.prompt] = best
        elif first is not row:
            report.add(row.place, ValueError(f"the prompt is that of row {first.place[1]} of {first.place[0]}"))
            continue
        by_id[row.id] = row
    return list(by_prompt.values())
