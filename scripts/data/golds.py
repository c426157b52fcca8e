"""Finds questions whose accepted answers "math" or "choice" cannot read, so that no answer to them can be right."""

from __future__ import annotations

import logging
import re

from common.config import Config
from common.numbers import number_of
from common.user_code import user_file
from learner.data.problems import Problems, RowError
from learner.data.rows import Rules, read_question_rows
from reward.terms.choice import gold_letters
from reward.terms.math import last_box, read_gold
from reward.terms.quality import choose_weights

log = logging.getLogger("scripts.data")

_SHOWN = 80  # characters of an accepted answer that a message quotes
_CALLS_VERIFIER = re.compile(r"\.verify(_all)?\(")  # of the tools that a reward function gets
_READS_GOLDS = re.compile(r"\.(accepted|reference)\b")  # of its group


def unread_golds(source: str, config: Config) -> Problems:
    """The rows of a source whose answers a term compares with accepted ones of which it can read none.

    The term "choice" reads letters of options, where ``reward.terms`` has it for the topic of a row. math-verify reads
    numbers and formulas. It is asked where ``reward.terms`` has "math" for the topic of a row, or for all rows where
    the file of ``reward.function`` calls ``tools.verify`` and names the group's accepted answers.

    Returns:
        A problem of the kind "unread" for each of them. Rows that cannot be read as questions are not among them.
    """
    found = Problems()
    function, terms = config.reward.function, config.reward.terms
    if not (_verifies(function) if function else any({"math", "choice"} & {*row} for row in terms.values())):
        return found
    who = f"tools.verify, which {function} calls," if function else 'the term "math"'
    log.info("reading the accepted answers of %s as the reward will", source)
    for row in read_question_rows(source, Rules(config.data.columns, config.data.language or ""), Problems()):
        golds = row.accepted or [row.reference]
        used = {"math"} if function else {*choose_weights(terms, row.topics)}
        quoted = " or ".join(repr(gold[:_SHOWN]) for gold in golds)
        reasons = []
        if "math" in used and not any(map(_can_be_read, golds)):
            reasons.append(f"{who} reads no number and no formula in {quoted}, so every answer earns 0 by it")
        if "choice" in used and not gold_letters(golds):
            reasons.append(
                f'the term "choice" reads no letter of an option in {quoted}, so every answer earns 0 by it: '
                "letter the options A, B, C, ... in the question, and give the letter of the right one"
            )
        for reason in reasons:
            found.add(row.place, RowError("accepted" if row.accepted else "answer", reason, "unread"))
    return found


def _verifies(function: str) -> bool:
    """Whether the file of a reward function verifies answers against accepted ones, as far as its text shows."""
    try:
        text = user_file(function).read_text(encoding="utf-8")
    except (OSError, ValueError):  # the reward process says what is wrong with it
        return False
    return bool(_CALLS_VERIFIER.search(text) and _READS_GOLDS.search(text))


def _can_be_read(gold: str) -> bool:
    shown = last_box(gold)
    return number_of(gold if shown is None else shown, "en") is not None or bool(read_gold(gold))
