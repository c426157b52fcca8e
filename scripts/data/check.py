"""Reads the data of a configuration as the learner will, and says what is wrong with it, before anything is started.

    python -m scripts.data.check CONFIG.toml ... [--section.key value]

Prints how many questions there are by language and topic, and lists the rows that are not used, those whose accepted
answers math-verify cannot read, where the term "math" or the reward function asks it, and those without a further
column that data.columns names. Says, too, which of these columns nothing of the reward reads, where similarity is asked
of languages that the embedder does not know, and for which languages no answer can be checked, as the language model
does not know them, and asks the judges of the reward for a few grades. The exit code is not 0 where the learner would
refuse the data, as where they make no step or do not fit into the model, or the reward process the reward (functions of
your own are loaded for it), or where a judge can grade nothing, or no answer to a question could earn anything because
the language model does not know its language.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import typer

from common.config import load
from common.context import check_context
from common.tokenizer import load_tokenizer
from common.wire import Question
from learner.work.questions import PROBLEMS_FILE, read_questions
from reward.gate import LanguageGate, check_languages
from scripts.data.judge_check import ask_judges_first
from scripts.data.reward_checks import (
    check_languages_of_questions,
    check_reward,
    warning_of_columns,
    warning_of_judges,
    warning_of_similarity,
)
from scripts.data.unscorable import warn_of_rows
from scripts.ops.command_line import command

log = logging.getLogger("scripts.data")


def _summary(name: str, questions: Sequence[Question]) -> str:
    def counted(values: Counter[str]) -> str:
        return ", ".join(f"{count} {value}" for value, count in values.most_common())

    languages = counted(Counter(question.language for question in questions))
    topics = counted(Counter(topic for question in questions for topic in question.topics)) or "none"
    return f"{name}: {len(questions)} questions; languages: {languages}; topics: {topics}"


@command(passes_flags_on=True)
def main(context: typer.Context) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load(context.args)
    check_reward(config)
    for warning in filter(None, (warning_of_judges(config.reward), warning_of_columns(config))):
        log.warning("warning: %s", warning)
    gate = LanguageGate(config.reward.language_model, near=config.reward.near_languages)
    if warning := check_languages(config, gate.knows):
        log.warning("warning: %s", warning)
    found = read_questions(config, load_tokenizer(config.model.path))
    check_languages_of_questions(config, {"data.train": found.train, "data.heldout": found.heldout}, gate.knows)
    print(_summary("data.train", found.train))
    if found.heldout:
        print(_summary("data.heldout", found.heldout))
    print(f"{config.run.dir / PROBLEMS_FILE} lists the rows that are not used")
    check_context(config.with_questions(len(found.train)), found.longest_prompt)
    warn_of_rows(config)
    for warning in ask_judges_first(config, found.train):
        log.warning("warning: %s", warning)
    if warning := warning_of_similarity(config, [*found.train, *found.heldout]):
        log.warning("warning: %s", warning)


if __name__ == "__main__":
    main()
