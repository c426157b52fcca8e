"""The questions of a run, read and checked before anything starts, and the order in which they are asked."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.config import Config
from common.process import FatalError
from common.prompts import PROMPT_STYLES, PromptError, PromptStyle
from common.wire import Chat, Question, encode
from learner.data.problems import Place, Problems, RowError
from learner.data.rows import QuestionRow, Rules, drop_repeated, mean_pass_rate, normal_form, read_question_rows

log = logging.getLogger("learner.data")

PROBLEMS_FILE = "data_problems.jsonl"  # in run.dir: every row that is not used, with the reason
_TELL_EVERY_S = 10.0


@dataclass(frozen=True)
class RunQuestions:
    """What a run asks."""

    train: list[Question]  # at least one
    heldout: list[Question]  # none of them is among ``train``
    longest_prompt: int  # tokens of the longest prompt, in the language in which it is longest


def read_questions(config: Config, tokenizer: PreTrainedTokenizerBase) -> RunQuestions:
    """Reads ``data.train`` and ``data.heldout``, and checks every row; blocks until all are checked.

    Rows that are broken, repeated, held out and trained on at the same time, or too long are not used, nor training
    rows whose pass rate is outside of ``data.pass_rate``. They are logged with file, row, key and reason, the first 20
    of a kind, and all of them are written to ``data_problems.jsonl`` in ``run.dir``. A prompt is as long as it is sent:
    with chat template, tag or instruction, in the language in which it is longest.

    Args:
        config: the sections ``data``, ``run`` and ``model``.
        tokenizer: the policy's.

    Raises:
        FatalError: a source cannot be read, no row is left of one, ``data.broken_rows`` is "refuse" and some are
            broken, or prompts cannot be made in the languages of the run.
    """
    problems = Problems()
    checked = _CheckedPrompts(PROMPT_STYLES[config.model.prompt_style](tokenizer, config), config)
    try:
        train = _with_pass_rate(config, _read(config, config.data.train, checked, problems), problems)
        heldout: list[QuestionRow] = []
        if config.data.heldout:
            try:
                heldout = _read(config, config.data.heldout, checked, problems)
            except FatalError as error:  # a recipe before the user's own file may have named it
                raise FatalError(
                    f"data.heldout = {config.data.heldout!r}: {error}. Name another, or leave it out with data.heldout "
                    '= ""'
                ) from None
            heldout = _without_trained(heldout, train, config.data.heldout, problems)
    finally:
        problems.write(config.run.dir / PROBLEMS_FILE)
        _tell(problems, config.run.dir / PROBLEMS_FILE)
    if config.data.broken_rows == "refuse" and (broken := problems.of("broken")):
        raise FatalError(
            f'data.broken_rows = "refuse", and {len(broken)} rows are broken; {config.run.dir / PROBLEMS_FILE} lists '
            f"them. The first is {broken[0]}"
        )
    return RunQuestions(_numbered(train), _numbered(heldout), checked.longest([*train, *heldout]))


def _read(config: Config, source: str, checked: _CheckedPrompts, problems: Problems) -> list[QuestionRow]:
    log.info("reading data: %s", source)
    before = len(problems.found)
    rules = Rules(config.data.columns, config.data.language or "")
    missing: set[str] = set()
    read = list(read_question_rows(source, rules, problems, missing))
    if read and missing:
        named = next(f"data.columns.{ours} = {path!r}" for ours, path in rules.columns.items() if path in missing)
        if source == config.data.train:
            raise FatalError(f"no row of {source} has what {named} names; the first has {', '.join(read[0].rest)}")
        log.warning("no row of %s has what %s names", source, named)
    rows = drop_repeated(read, problems)
    fitting = checked.fitting(rows, source, problems)
    if not fitting:
        reasons = problems.found[before:]
        if not reasons:
            raise FatalError(f"{source} holds no rows")
        too_long = sum(problem.kind == "too long" for problem in reasons)
        if too_long:
            raise FatalError(
                f"{source} holds no question of at most {config.data.max_prompt_tokens} prompt tokens "
                f"(data.max_prompt_tokens); {too_long} rows are longer"
            )
        raise FatalError(f"{source} holds no good row. {reasons[0]}. docs/data.md describes the columns")
    log.info("reading data: %s: %d questions", source, len(fitting))
    return fitting


def usable_rows(
    config: Config, tokenizer: PreTrainedTokenizerBase, source: str, problems: Problems
) -> list[QuestionRow]:
    """The rows of one source that a run could ask, whatever their pass rate; the others are added to ``problems``.

    Raises:
        FatalError: as of ``read_questions``.
    """
    checked = _CheckedPrompts(PROMPT_STYLES[config.model.prompt_style](tokenizer, config), config)
    return _read(config, source, checked, problems)


def _with_pass_rate(config: Config, rows: list[QuestionRow], problems: Problems) -> list[QuestionRow]:
    """The rows whose pass rate is within ``data.pass_rate``; the others are added to ``problems``."""
    if config.data.pass_rate is None:
        return rows
    low, high = config.data.pass_rate
    kept = []
    for row in rows:
        try:
            rate = mean_pass_rate(row, config.run.languages)
            if not low <= rate <= high:
                reason = f"its pass rate is {rate:.3g}, data.pass_rate is [{low:g}, {high:g}]"
                raise RowError("pass_rate", reason, "pass rate")
            kept.append(row)
        except RowError as error:
            problems.add(row.place, error)
    if not kept:
        raise FatalError(
            f"data.pass_rate = [{low:g}, {high:g}] leaves none of the {len(rows)} questions of {config.data.train}: "
            f"widen it, or measure the rates with scripts.data.pass_rate. {problems.found[-1]}"
        )
    return kept


class _CheckedPrompts:
    """Finds out which rows can be sent as prompts of at most ``data.max_prompt_tokens`` tokens."""

    def __init__(self, style: PromptStyle, config: Config) -> None:
        self._style = style
        # Where prompts do not say the language, every question is asked for an answer in its own.
        self._languages = () if config.model.silent_about_language else config.run.languages
        self._limit = config.data.max_prompt_tokens
        self._tokens: dict[Place, int] = {}  # of the longest prompt of a row that fits
        self._lengths: dict[str, int | str] = {}  # by language: tokens of a short prompt, or why there can be none

    def fitting(self, rows: Sequence[QuestionRow], source: str, problems: Problems) -> list[QuestionRow]:
        """The rows that fit; the others are added to ``problems``."""
        kept, told = list[QuestionRow](), time.monotonic()
        for number, row in enumerate(rows):
            if time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                log.info("reading data: %s: %d of %d prompts counted", source, number, len(rows))
            try:
                self._check(row)
                kept.append(row)
            except RowError as error:
                problems.add(row.place, error)
        return kept

    def _check(self, row: QuestionRow) -> None:
        own = self._length_of_short_prompt(row.language)
        if isinstance(own, str):  # an evaluation asks each question in its own language, too
            raise RowError("language", own)
        language = max((*self._languages, row.language), key=self._length_of_short_prompt)
        try:
            tokens = len(self._style(as_question(0, row), language))
        except PromptError as error:
            raise RowError("question", str(error)) from None
        if tokens > self._limit:
            reason = f"the prompt has {tokens} tokens, data.max_prompt_tokens is {self._limit}"
            raise RowError("question", reason, "too long")
        self._tokens[row.place] = tokens

    def longest(self, rows: Sequence[QuestionRow]) -> int:
        """Tokens of the longest prompt of some rows that fit, in the language in which it is longest."""
        return max(self._tokens[row.place] for row in rows)

    def _length_of_short_prompt(self, language: str) -> Any:
        if language not in self._lengths:
            short = Question(0, [Chat("user", "?")], "?", language, [], [])
            try:
                self._lengths[language] = len(self._style(short, language))
            except FatalError as error:
                self._lengths[language] = str(error)
        return self._lengths[language]


def _without_trained(
    heldout: list[QuestionRow], train: list[QuestionRow], source: str, problems: Problems
) -> list[QuestionRow]:
    """The held-out rows whose question is not trained on: a score on the others would be worth nothing."""
    trained = {normal_form(row.messages): row for row in train}
    kept = []
    for row in heldout:
        first = trained.get(normal_form(row.messages))
        if first is None:
            kept.append(row)
        else:
            problems.add(row.place, RowError("question", f"it is trained on: {first.place}", "trained on"))
    if not kept:
        raise FatalError(
            f"every question of data.heldout = {source} is in data.train, too: give others, or leave it out"
        )
    return kept


def _tell(problems: Problems, path: Path) -> None:
    counts = problems.counts
    if not counts:
        return
    for kind in ("broken", "repeated", "trained on"):
        for line in problems.lines(kind):
            log.warning("%s: %s", kind, line)
    text = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    log.warning("left out %d rows: %s; %s lists all of them", counts.total(), text, path)


def _numbered(rows: Sequence[QuestionRow]) -> list[Question]:
    """The questions of a source that is one file have their row as index, those of several are counted through."""
    several = len({row.place.file for row in rows}) > 1
    return [as_question(number if several else row.place.row, row) for number, row in enumerate(rows)]


def as_question(index: int, row: QuestionRow) -> Question:
    """The row as it travels; ``index`` is its number among the questions."""
    return Question(
        index=index,
        messages=[Chat(**message) for message in row.messages],
        reference=row.reference,
        language=row.language,
        topics=row.topics,
        regions=row.regions,
        accepted=row.accepted,
        extra=row.extra,
    )


def hash_questions(questions: list[Question], seed: int) -> str:
    """A hash of all that decides which question is asked when. A run may resume only if it is the same."""
    return hashlib.sha256(encode([seed, *questions])).hexdigest()


def digest_of_questions(questions: Sequence[Question]) -> str:
    """Of everything that these questions are, in their order."""
    return hashlib.sha256(encode([*questions])).hexdigest()


class ShuffledQuestions:
    """The questions in the order in which a run asks them: one epoch after the other, each shuffled anew.

    ``order[n]`` is question number n of the run, n = 0, 1, 2, … without end. It depends on the questions and the seed
    alone, so that a run resumes from a number.

    Args:
        questions: at least one.
        seed: of the shuffling.
    """

    def __init__(self, questions: list[Question], seed: int) -> None:
        self.questions = questions
        self.seed = seed
        self._permutations: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}  # by epoch; a cache of the newest few

    def __getitem__(self, sequence: int) -> Question:
        epoch, position = divmod(sequence, len(self.questions))
        if epoch not in self._permutations:
            self._permutations = {number: kept for number, kept in self._permutations.items() if number >= epoch - 1}
            self._permutations[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.questions))
        return self.questions[int(self._permutations[epoch][position])]


def pick_evenly(questions: list[Question], count: int) -> list[Question]:
    """At most ``count`` of the questions, spread evenly over languages and rows. Draws no random numbers."""
    if len(questions) <= count:
        return questions
    ordered = sorted(questions, key=lambda question: (question.language, question.index))
    picks = np.linspace(0, len(ordered) - 1, count).round().astype(int)
    return [ordered[pick] for pick in picks]
