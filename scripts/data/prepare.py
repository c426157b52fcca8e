"""Turns public preference data into questions: ``train.parquet``, ``heldout.parquet``, a data card, a list of problems.

    python -m scripts.data.prepare --out data SOURCE ... [--where domain=multilingual] [--strict]

A SOURCE is whatever ``data.train`` may be: a parquet, JSON, JSONL, CSV or TSV file, a directory of such files, or a
data set of the hub (``owner/name:configuration@split``). ``learner/data/rows.py`` names the forms of rows that are
recognised; ``--columns question=q,answer=a`` names the columns of others.

What is written has the columns of verl's rows (docs/data.md), and those that the source has besides. A row that is
broken (no answer, a wrong type, an unknown language, an id twice), repeated or too long is in ``problems.jsonl`` with
file, row (from 0), key and reason, and so is what is left out on purpose; the others are kept. ``--strict`` makes
broken, repeated and too long rows an error. Rows of one id in several languages are translations of one another; they
are held out together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer

from common.languages import english_name
from common.process import FatalError
from common.tokenizer import load_tokenizer
from learner.data.problems import Problems
from learner.data.rows import QuestionRow, Rules
from scripts.data.sources import read
from scripts.data.tables import write
from scripts.ops.command_line import command

_TRANSLATED = "~"  # stands beside the languages, behind all of them, for rows that are translations of one another
_STRUCTS = ("reward_model", "extra_info")
_TEXT, _TEXTS = pa.string(), pa.list_(pa.string())
SCHEMA = pa.schema(
    {
        "prompt": pa.list_(pa.struct({"role": _TEXT, "content": _TEXT})),
        "ability": _TEXT,  # the topic
        "reward_model": pa.struct({"ground_truth": _TEXT, "accepted": _TEXTS, "style": _TEXT}),
        "question": _TEXT,  # the last turn of the user
        "answer": _TEXT,
        "data_source": _TEXT,
        "extra_info": pa.struct(
            {"index": pa.int64(), "split": _TEXT, "language": _TEXT, "topic": _TEXT, "region": _TEXTS}
        ),
    }
)


def records(rows: Sequence[QuestionRow], split: str = "") -> list[dict[str, Any]]:
    """The rows of a written file: the columns of ``SCHEMA``, those that the source has besides, and those asked for.

    Args:
        split: the name of the file. The rows are numbered where it is given; else they keep what the source says.
    """
    several = any(len(row.topics) > 1 for row in rows)
    places = [{"index": number, "split": split} if split else {} for number in range(len(rows))]
    return [_record(row, place, several_topics=several) for row, place in zip(rows, places, strict=True)]


def _record(row: QuestionRow, place: Mapping[str, Any], *, several_topics: bool) -> dict[str, Any]:
    rest = dict(row.rest)
    rest_of = {name: value if isinstance(value := rest.pop(name, None), Mapping) else {} for name in _STRUCTS}
    own = {
        "prompt": row.messages,
        "ability": row.topic,
        "reward_model": {
            "style": "model",
            **rest_of["reward_model"],
            "ground_truth": row.reference,
            "accepted": row.accepted,
        },
        "question": row.question,
        "answer": row.reference,
        "data_source": row.source,
        "extra_info": {
            **rest_of["extra_info"],
            **place,
            "language": english_name(row.language),
            "topic": row.topics if several_topics else row.topic,
            "region": row.regions or None,
        },
    }
    return {f"source_{name}" if name in own else name: value for name, value in {**row.extra, **rest}.items()} | own


def split(rows: Sequence[QuestionRow], share: float, seed: int) -> tuple[list[QuestionRow], list[QuestionRow]]:
    """Train and held-out rows: of each language ``share`` is held out, rounded, drawn with the seed; order is kept.

    Of rows whose id is in several languages, which are translations of one another, this share of the ids is held out
    in all their languages, because a translation of a question that was trained on is not held out.
    """
    spoken: defaultdict[str, set[str]] = defaultdict(set)  # the languages of an id
    for row in rows:
        spoken[row.id].add(row.language)
    groups: defaultdict[str, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(rows):
        is_translated = bool(row.id) and len(spoken[row.id]) > 1
        group, member = (_TRANSLATED, row.id) if is_translated else (row.language, str(number))
        groups[group][member].append(number)
    held: set[int] = set()
    for number, group in enumerate(sorted(groups)):
        members = list(groups[group].values())
        drawn = np.random.default_rng([seed, number]).permutation(len(members))[: round(share * len(members))]
        held.update(row for one in drawn.tolist() for row in members[one])
    return [r for n, r in enumerate(rows) if n not in held], [r for n, r in enumerate(rows) if n in held]


def card(
    parts: Mapping[str, Sequence[QuestionRow]], problems: Problems, length: Callable[[str], int], unit: str
) -> str:
    """The data card: rows by language and topic, lengths, and what was left out."""
    rows = [row for part in parts.values() for row in part]
    topics = sorted({row.topic for row in rows})
    cells = Counter((row.language, row.topic) for row in rows)
    languages = [language for language, _ in Counter(row.language for row in rows).most_common()]
    regions = Counter(region for row in rows for region in row.regions)
    lines = ["# Data card", "", f"{len(rows)} rows: " + ", ".join(f"{len(p)} {name}" for name, p in parts.items()), ""]
    lines += [f"{count} {kind} (problems.jsonl)" for kind, count in sorted(problems.counts.items())]
    lines += ["", "| language | " + " | ".join(topics) + " | all |", "|---" * (len(topics) + 2) + "|"]
    for language in languages:
        counts = [cells[language, topic] for topic in topics]
        lines.append(f"| {language} | " + " | ".join(map(str, [*counts, sum(counts)])) + " |")
    lines += ["", f"| length in {unit} | median | 95% | longest |", "|---|---|---|---|"]
    for name, texts in (("prompt", [row.prompt for row in rows]), ("reference", [row.reference for row in rows])):
        middle, most, longest = np.quantile([length(text) for text in texts], [0.5, 0.95, 1])
        lines.append(f"| {name} | {middle:.0f} | {most:.0f} | {longest:.0f} |")
    lines += ["", "Sources: " + ", ".join(f"{n} {s}" for s, n in Counter(row.source for row in rows).most_common())]
    lines += ["", "Regions: " + (", ".join(f"{n} {region}" for region, n in regions.most_common()) or "none")]
    return "\n".join(lines) + "\n"


def pairs(text: str) -> dict[str, str]:
    """The names and values of a text of the form ``a=b,c=d``.

    Raises:
        FatalError: a part has no equals sign.
    """
    parts = [part.partition("=") for part in text.split(",") if part]
    if wrong := [name for name, equals, _ in parts if not equals]:
        raise FatalError(f"{wrong[0]!r} in {text!r} does not have the form name=value")
    return {name: value for name, _, value in parts}


@command()
def main(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Files, directories, or owner/name[:configuration].")
    ],
    *,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    columns: Annotated[
        str,
        typer.Option(
            help="OURS=THEIRS,... where ours are question, answer, language, topic, region, accepted and id, or any "
            "name of a further column; as data.columns."
        ),
    ] = "",
    language: Annotated[str, typer.Option(help="Language of the rows that do not name one.")] = "",
    where: Annotated[str, typer.Option(help="COLUMN=VALUE,...: only these rows.")] = "",
    heldout: Annotated[
        float, typer.Option(min=0, max=1, help="Share of each language, and of ids in several, that is held out.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split.")] = 42,
    tokenizer: Annotated[
        str, typer.Option(help="A model, in whose tokens lengths are counted; without it they are in characters.")
    ] = "",
    max_prompt: Annotated[
        int | None,
        typer.Option(min=1, help="Longer prompts are listed and left out; default 512 tokens, 20000 characters."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Broken, repeated or too long rows are an error, code 1.")
    ] = False,
) -> None:
    length, unit, longest = len, "characters", 20_000
    if tokenizer:
        encode = load_tokenizer(tokenizer).encode
        length, unit, longest = (lambda text: len(encode(text))), "tokens", 512
    problems = Problems()
    rows = read(sources, Rules(pairs(columns), language, pairs(where)), problems, length, max_prompt or longest)
    problems.write(out / "problems.jsonl")
    for kind in ("broken", "repeated"):
        for line in problems.lines(kind):
            print(f"{kind}: {line}")
    if not rows:
        raise FatalError(f"no good row in {', '.join(sources)}; {out / 'problems.jsonl'} says why")
    parts = dict(zip(("train", "heldout"), split(rows, heldout, seed), strict=True))
    if not parts["train"]:
        raise FatalError(
            f"--heldout {heldout:g} holds out all of the {len(rows)} good rows and leaves none to train on: lower it"
        )
    for name, part in parts.items():
        write(records(part, name), out / f"{name}.parquet", SCHEMA)
    text = card(parts, problems, length, unit)
    (out / "card.md").write_text(text, encoding="utf-8")
    print(text)
    if strict and (bad := len(problems.of("broken", "repeated", "too long"))):
        raise FatalError(f"{bad} broken, repeated or too long rows, listed in {out / 'problems.jsonl'}")


if __name__ == "__main__":
    main()
