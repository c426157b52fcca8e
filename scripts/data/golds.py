"""Finds questions whose accepted answers the term "math" cannot read, so that no answer to them can earn anything."""

from __future__ import annotations

import logging

from common.config import Config
from common.numbers import number_of
from learner.data.problems import Problems, RowError
from learner.data.rows import Rules, read_question_rows
from reward.terms.math import last_box, read_gold
from reward.terms.quality import choose_weights

log = logging.getLogger("scripts.data")

_SHOWN = 80  # characters of an accepted answer that a message quotes


def unread_golds(source: str, config: Config) -> Problems:
    """The rows of a source for whose topic ``reward.terms`` has "math", and of whose accepted answers none can be read.

    Returns:
        A problem of the kind "unread" for each of them. Rows that cannot be read as questions are not among them.
    """
    found = Problems()
    if config.reward.function or not any("math" in row for row in config.reward.terms.values()):
        return found
    log.info("reading the accepted answers of %s as the verifier will", source)
    for row in read_question_rows(source, Rules(config.data.columns, config.data.language or ""), Problems()):
        golds = row.accepted or [row.reference]
        if "math" in choose_weights(config.reward.terms, row.topics) and not any(map(_can_be_read, golds)):
            quoted = " or ".join(repr(gold[:_SHOWN]) for gold in golds)
            reason = f'the term "math" reads no number and no formula in {quoted}, so every answer earns 0 by it'
            found.add(row.place, RowError("accepted" if row.accepted else "answer", reason, "unread"))
    return found


def _can_be_read(gold: str) -> bool:
    shown = last_box(gold)
    return number_of(gold if shown is None else shown, "en") is not None or bool(read_gold(gold))
