"""The questions of a run, read from parquet files in the row schema of verl, and the order in which they are asked."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from transformers import PreTrainedTokenizerBase

from common.languages import code_of
from common.process import FatalError
from common.wire import Question, encode
from learner.work.tables import read_table

log = logging.getLogger("learner.data")

_COLUMNS = ("prompt", "ability", "reward_model", "extra_info")


def read_questions(path: Path, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int) -> list[Question]:
    """Reads every row of a parquet file as a question, and leaves out those whose prompt is too long.

    A row has ``prompt`` (chat messages), ``ability`` (a topic), ``reward_model.ground_truth`` (the reference answer),
    and ``extra_info`` with ``language`` (its English name or its code), ``topic`` and ``region`` (null, a string or a
    list). It may have ``reward_model.accepted`` (a list of answers that a verifying reward term takes as correct).

    Args:
        path: the parquet file, or whatever else ``read_table`` reads.
        tokenizer: the policy's.
        max_prompt_tokens: longest prompt, counted without the chat template. How many were too long is logged.

    Raises:
        FatalError: the file is missing, is not parquet, lacks a column, or has a malformed row (the message names the
            file, the row and the key); or every prompt is too long.
    """
    table = read_table(str(path))
    missing = [column for column in _COLUMNS if column not in table.column_names]
    if missing:
        raise FatalError(
            f"{path} lacks the column {missing[0]!r}; it has {', '.join(table.column_names)}. docs/data.md describes "
            "the columns, and scripts.data.prepare makes them"
        )
    questions = []
    for row, record in enumerate(table.to_pylist()):
        try:
            questions.append(_question_of(row, record))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FatalError(f"{path}, row {row}: {error!r}; docs/data.md describes the columns") from None
    fitting = [question for question in questions if _prompt_tokens(question, tokenizer) <= max_prompt_tokens]
    if not fitting:
        raise FatalError(f"{path} holds no question of at most {max_prompt_tokens} prompt tokens")
    if len(fitting) < len(questions):
        log.warning(
            "%s: left out %d prompts of more than %d tokens", path, len(questions) - len(fitting), max_prompt_tokens
        )
    return fitting


def _question_of(row: int, record: dict[str, Any]) -> Question:
    extra = record["extra_info"]
    if not record["prompt"]:
        raise ValueError("the prompt is empty")
    if not str(record["reward_model"]["ground_truth"]).strip():
        raise ValueError("reward_model.ground_truth is empty")
    question = {
        "index": row,
        "messages": [{"role": message["role"], "content": message["content"]} for message in record["prompt"]],
        "reference": record["reward_model"]["ground_truth"],
        "language": code_of(extra["language"]),
        "topics": _as_list(extra.get("topic") or record["ability"]),
        "regions": _as_list(extra.get("region")),
        "accepted": _as_list(record["reward_model"].get("accepted")),
    }
    return msgspec.convert(question, Question)  # raises a ValueError that names the key if a value has the wrong type


def _as_list(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _prompt_tokens(question: Question, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer.encode("\n".join(message.content for message in question.messages)))


def hash_questions(questions: list[Question], seed: int) -> str:
    """A hash of all that decides which question is asked when. A run may resume only if it is the same."""
    return hashlib.sha256(encode([seed, *questions])).hexdigest()


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
