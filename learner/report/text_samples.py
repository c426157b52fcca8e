"""Prompt groups as Markdown, for TensorBoard's TEXT tab."""

from __future__ import annotations

import html
import re

from common.answer import read_answer
from common.header import Header
from learner.groups import Group

_LONGEST = 500  # characters of a question or an answer


def group_as_markdown(group: Group, header: Header) -> str:
    """The question, its reference answer, and a table of the group's answers with their scores.

    Args:
        header: reads the header of an answer whose language the policy chose. It is cut off, as it was for the reward.
    """
    question = group.work.question
    about = ", ".join([question.language, *question.topics, *question.regions])
    lines = [f"**{name}** {_literal(text)}\n" for name, text in [
        (f"Question ({about})", question.messages[-1].content), ("Reference", question.reference),
    ]]  # fmt: skip
    lines += [
        "| language | thought | answer | detected language | quality | reward | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for requested, rollout in zip(group.work.languages, group.rollouts, strict=True):
        score = rollout.score
        tokens = f"{len(rollout.response_ids)}{' (truncated)' if rollout.truncated else ''}"
        numbers = [f"{score.quality:.3f}", f"{score.reward:.3f}", tokens]
        answer = read_answer(rollout.text, requested, header=header, thinking_opened=rollout.thinking_opened)
        thought = _literal(answer.thought) + ("" if answer.thought_closed else " (never ended)")
        cells = [rollout.language, thought, _literal(answer.final), score.detected, *numbers]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"{group.work.id}, answered by {_literal(group.actor)}\n", *lines])


def _literal(text: str) -> str:
    """The text on one line, without any meaning as Markdown or HTML, and cut where it is too long.

    The Unicode isolates around it keep text that runs from right to left from reordering what stands beside it.
    """
    flat = " ".join(text.split())
    flat = flat if len(flat) <= _LONGEST else flat[:_LONGEST] + "…"
    return "\u2068" + re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", html.escape(flat, quote=False)) + "\u2069"
