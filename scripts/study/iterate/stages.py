"""The three stages of an iteration. Each says what it kept and dropped and why, and returns that for the record."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.config import Config
from common.diagnostics import RIGHT
from common.process import FatalError
from learner.data.problems import Place, RowError
from learner.data.rows import QuestionRow, mean_pass_rate
from scripts.data.anchors import Plan, anchored_records, make, told, without_columns
from scripts.data.answering import scored_by
from scripts.data.digests import digest_of_file
from scripts.data.pass_rate import measure, question_key, rated_records, table
from scripts.data.tables import write
from scripts.ops.finished_run import read_summary
from scripts.ops.local_run import gains, run_all

FATES_FILE = "questions.jsonl"  # a line for each question that was asked, with its pass rates and what became of it
# Lines of JSON, which hold whatever the rows of data.train have.
FILTERED_FILE, ANCHORED_FILE = "filtered.jsonl", "anchored.jsonl"
KEPT, NO_ANCHOR = "kept", "no anchor"


@dataclass(frozen=True)
class Filtering:
    """Which questions an iteration trains on."""

    samples: int = 8  # answers to each question in each language
    right: float = RIGHT  # from what on an answer is right, see common.diagnostics.solves
    per_language: int = 0  # most questions of a language, drawn by the seed; 0: all
    unused: bool = False  # whether those that an earlier iteration trained on are left out
    consistent: bool = False  # whether a right answer must be in the language asked for, also without reward.gated
    by: str = ""  # the term that says alone what is right, see scripts.data.answering.scored_by; "": the rewards
    anchored_only: bool = False  # whether questions that got no anchor are left out


def filter_questions(
    config: Config, directory: Path, number: int, how: Filtering, plan: Plan, used: frozenset[str]
) -> dict[str, Any]:
    """Keeps the questions that the policy of ``config`` answers rightly sometimes, in ``filtered.jsonl``.

    Sometimes means within ``data.pass_rate``, or where that is not set neither always nor never.

    Args:
        used: the keys of the questions that earlier iterations trained on.

    Raises:
        FatalError: none is left.
    """
    config = scored_by(without_columns(config, plan.columns), how.by)  # the columns are made in the next stage
    left_out = used if how.unused else frozenset[str]()
    rated = directory / "rated.jsonl"
    found = measure(config, rated, how.samples, how.right, consistent=how.consistent, without=left_out)
    fates = {row.place: _fate(config, row, found.rates.get(row.place)) for row in found.rows}
    _limit_languages(found.rows, fates, how.per_language, [config.run.seed, number])
    _write_lines(
        directory / FATES_FILE,
        (
            {"key": question_key(row), **row.place._asdict(), "language": row.language,
             "pass_rate": found.rates.get(row.place), "fate": fates[row.place]}
            for row in found.rows
        ),
    )  # fmt: skip
    counts = Counter(fates.values())
    kept = [row for row in found.rows if fates[row.place] == KEPT]
    dropped = {fate: count for fate, count in counts.most_common() if fate != KEPT}
    refused = {kind: count for kind, count in found.problems.counts.most_common() if kind != "not measured"}
    histogram = table(found.by_language())
    why = ", ".join(f"{count} {fate}" for fate, count in {**dropped, **refused}.items()) or "none"
    if not kept:
        raise FatalError(
            f"iteration {number}: no question is left to train on. Dropped: {why}. The pass rates of "
            f"{config.model.path}, in which an answer is right whose accuracy, or quality where no part of the reward "
            f"is its accuracy, is at least {how.right:g}:\n{histogram}\n"
            "give other questions, widen data.pass_rate, ask more often (--samples), or lower --right"
        )
    path = directory / FILTERED_FILE
    write(rated_records(config.data.train, kept, found.rates), path)
    print(histogram)
    print(f"kept {len(kept)} questions ({_by_language(kept)}); dropped: {why}; {directory / FATES_FILE} lists all")
    return {
        "kept": len(kept), "by_language": dict(Counter(row.language for row in kept)), "dropped": dropped,
        "refused": refused, "histogram": histogram.splitlines(), "digest": digest_of_file(path),
    }  # fmt: skip


def _fate(config: Config, row: QuestionRow, rates: Mapping[str, float] | None) -> str:
    if rates is None:
        return "not measured"
    try:
        rate = mean_pass_rate(replace(row, pass_rate=dict(rates)), config.run.languages)
    except RowError:
        return "not measured"
    if config.data.pass_rate is None:
        return "never right" if rate == 0 else "always right" if rate == 1 else KEPT
    low, high = config.data.pass_rate
    return f"right in less than {low:g}" if rate < low else f"right in more than {high:g}" if rate > high else KEPT


def _limit_languages(rows: Sequence[QuestionRow], fates: dict[Place, str], most: int, seed: Sequence[int]) -> None:
    """Draws at most so many of the questions of each language that are kept, without regard to their pass rates."""
    by_language: defaultdict[str, list[Place]] = defaultdict(list)
    for row in rows:
        if fates[row.place] == KEPT:
            by_language[row.language].append(row.place)
    random = np.random.default_rng(seed)
    for language in sorted(by_language):
        places = by_language[language]
        if most and len(places) > most:
            for spare in random.permutation(len(places))[most:]:
                fates[places[int(spare)]] = f"beyond {most} of its language"


def _by_language(rows: Sequence[QuestionRow]) -> str:
    return ", ".join(f"{count} {language}" for language, count in Counter(row.language for row in rows).most_common())


def kept_keys(directory: Path) -> set[str]:
    """The keys of the questions that an iteration trained on, once its anchors are made."""
    entries = map(json.loads, (directory / FATES_FILE).read_bytes().splitlines())
    return {entry["key"] for entry in entries if entry["fate"] == KEPT}


def make_anchors(
    config: Config, directory: Path, number: int, plan: Plan, *, anchored_only: bool = False
) -> dict[str, Any]:
    """Writes the kept questions with their anchors, by the policy of ``config``, to ``anchored.jsonl``.

    Args:
        anchored_only: leave out those that got none, as a reward may be unable to score them. ``questions.jsonl``
            then says so, and a later iteration may have them.

    Raises:
        FatalError: no question gets one.
    """
    if not plan.columns:
        print("no anchors: the recipe compares answers with none")
        return {"made": 0, "digest": None}
    source = str(directory / FILTERED_FILE)
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": source})})
    path = directory / ANCHORED_FILE
    found = make(config, path, plan)
    line = told(found, plan)
    if not found.anchors:
        raise FatalError(
            f"iteration {number}: {line}. Without anchors this is another recipe: allow more answers (--anchor-rounds) "
            "or lower --right, name the questions in that language (--anchor-question), or do without (--anchor none)"
        )
    kept = [row for row in found.rows if row.place in found.anchors or not anchored_only]
    write(anchored_records(source, kept, found.anchors, plan.columns), path)
    if anchored_only:
        _note_anchors(directory, {question_key(row) for row in kept})
    print(line)
    return {
        "made": len(found.anchors), "questions": len(kept), "rounds": found.asked,
        "without": dict(found.without), "digest": digest_of_file(path),
    }  # fmt: skip


def _note_anchors(directory: Path, anchored: Set[str]) -> None:
    """Enters which of the kept questions got no anchor and are left out; what was entered before is done anew."""
    path = directory / FATES_FILE
    entries = [json.loads(line) for line in path.read_bytes().splitlines()]
    for entry in entries:
        if entry["fate"] in (KEPT, NO_ANCHOR):
            entry["fate"] = KEPT if entry["key"] in anchored else NO_ANCHOR
    partial = path.with_suffix(".partial")
    _write_lines(partial, entries)
    os.replace(partial, path)


def train(
    words: Sequence[str], directory: Path, number: int, actors: int | None, columns: Iterable[str]
) -> dict[str, Any]:
    """Trains on the questions of the iteration, or goes on where that was interrupted.

    Args:
        words: configuration files and flags, with the model that the iteration begins from.
        actors: as of ``run_all``.
        columns: those of data.columns that the anchors are in.

    Raises:
        ChildFailed: a process of the run failed.
        FatalError: it ended without a trained model.
    """
    run_dir, anchors = directory / "run", list(columns)
    questions = directory / (ANCHORED_FILE if anchors else FILTERED_FILE)
    flags = ["--data.train", str(questions), "--run.dir", str(run_dir)]
    for column in anchors:
        flags += [f"--data.columns.{column}", column]
    if read_summary(run_dir) is None:
        run_all([*words, *flags], run_dir, actors)
    summary = read_summary(run_dir)
    if summary is None:
        raise FatalError(
            f"iteration {number}: {run_dir} has ended without a summary; its logs are in {run_dir / 'logs'}"
        )
    outcomes = {key: value for key, value in summary.items() if key.startswith("groups_") and value}
    print(gains(summary))
    print(
        f"{summary['steps']} steps; " + ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in outcomes.items())
    )
    figures = ("reward", "heldout", "compliance")
    return {
        "steps": summary["steps"], **outcomes,
        **{f"{figure}_{when}": summary[f"{figure}_{when}"] for figure in figures for when in ("before", "after")},
        "digest": digest_of_file(run_dir / "summary.json"),
    }  # fmt: skip


def _write_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")
