"""Questions from parquet files in the row schema of verl, and the order in which a run asks them."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from common.languages import code_of
from common.process import FatalError
from common.wire import Question, encode

log = logging.getLogger("learner.data")

_COLUMNS = ("prompt", "ability", "reward_model", "extra_info")


def read_questions(path: Path, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int) -> list[Question]:
    """Every row of a parquet file as a question, without those whose prompt is too long (their number is logged).

    A row has ``prompt`` (chat messages), ``ability`` (topic), ``reward_model.ground_truth``, if it likes
    ``reward_model.accepted`` (answers that verify), and ``extra_info`` with ``language`` (English name or code),
    ``topic`` and ``region`` (null, a string or a list).

    Raises:
        FatalError: the file is missing, no parquet, lacks a column, or a row is malformed; names file, row and key.
    """
    table = read_table(str(path))
    missing = [column for column in _COLUMNS if column not in table.column_names]
    if missing:
        raise FatalError(
            f"{path} lacks the column {missing[0]!r}; it has {', '.join(table.column_names)}. docs/data.md has the "
            "columns, and scripts.data.prepare makes them"
        )
    questions = []
    for row, record in enumerate(table.to_pylist()):
        try:
            questions.append(_question(row, record))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FatalError(f"{path}, row {row}: {error!r}; docs/data.md has the columns") from None
    fitting = [question for question in questions if _length(question, tokenizer) <= max_prompt_tokens]
    if not fitting:
        raise FatalError(f"{path} holds no question of at most {max_prompt_tokens} prompt tokens")
    if len(fitting) < len(questions):
        log.warning(
            "%s: left out %d prompts of more than %d tokens", path, len(questions) - len(fitting), max_prompt_tokens
        )
    return fitting


def read_table(source: str) -> pa.Table:
    """A local parquet file, or a data set of the hub: ``owner/name``, ``owner/name:configuration``.

    Raises:
        FatalError: it is neither, or the hub does not answer.
    """
    name, _, configuration = source.partition(":")
    try:
        if Path(source).exists() or not re.fullmatch(r"[\w-]+/[\w.-]+", name) or source.endswith(".parquet"):
            return pq.read_table(source)
        import datasets  # slow to import, and needed only here
        from huggingface_hub import HfApi, constants

        if not constants.HF_HUB_OFFLINE:  # else what is in the cache is taken
            HfApi().dataset_info(name, timeout=10)  # fails at once, where loading would try again for half a minute
        return datasets.load_dataset(name, configuration or None, split="train").data.table
    except FileNotFoundError:
        raise FatalError(f"cannot read {source}: there is no such file") from None
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise FatalError(f"cannot read {source}: {error}") from None
    except httpx.HTTPError as error:
        raise FatalError(f"{source} is no file here, and the hub cannot be reached: {error}") from None


def _question(row: int, record: dict[str, Any]) -> Question:
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
        "topics": _list(extra.get("topic") or record["ability"]),
        "regions": _list(extra.get("region")),
        "accepted": _list(record["reward_model"].get("accepted")),
    }
    return msgspec.convert(question, Question)  # or raises ValueError: it says which is of another type


def _list(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _length(question: Question, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer.encode("\n".join(message.content for message in question.messages)))


def digest(questions: list[Question], seed: int) -> str:
    """Of all that fixes which question is asked when."""
    return hashlib.sha256(encode([seed, *questions])).hexdigest()


class Shuffled:
    """The run's order of questions: epoch after epoch, each a fresh permutation drawn from the seed.

    Position n is the same question in every run with the same seed, so a cursor alone resumes it.
    """

    def __init__(self, questions: list[Question], seed: int) -> None:
        self.questions = questions
        self.seed = seed
        self._order: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}

    def __getitem__(self, sequence: int) -> Question:
        epoch, position = divmod(sequence, len(self.questions))
        if epoch not in self._order:
            self._order = {e: order for e, order in self._order.items() if e >= epoch - 1}
            self._order[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.questions))
        return self.questions[int(self._order[epoch][position])]


def spread(questions: list[Question], count: int) -> list[Question]:
    """At most ``count`` questions, evenly spread over languages and rows."""
    if len(questions) <= count:
        return questions
    ordered = sorted(questions, key=lambda question: (question.language, question.index))
    picks = np.linspace(0, len(ordered) - 1, count).round().astype(int)
    return [ordered[pick] for pick in picks]
