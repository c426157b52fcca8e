"""What of a configuration's reward can be known before anything is started: whether it loads, and what it lacks."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from common.config import Config, RewardConfig
from common.user_code import user_file
from common.wire import Question
from learner.train.step_reward import StepReward
from reward.encoder_languages import compares, warning_of_languages
from reward.terms.judge import check_judge
from reward.terms.quality import check_terms
from reward.terms.user_call import UserFunction

_ASKS = {"judge", "judge_or_failure"}  # of the tools that a reward function gets


def check_reward(config: Config) -> None:
    """Returns if the terms load and have the judges that they ask, or the user's functions load.

    The files of ``reward.function`` and ``learner.step_reward`` are run for it, as the processes of a run do.

    Raises:
        ConfigError: what they would refuse when they start, or when the first answer is scored.
    """
    reward = config.reward
    if reward.function:
        UserFunction(reward.function)
    else:
        check_terms(reward.terms)
        if any("judge" in row for row in reward.terms.values()):
            check_judge(reward)
    StepReward.of(config.learner)


def warning_of_judges(reward: RewardConfig) -> str:
    """What to say where a reward function seems to ask a judge and there is none; empty where it does not.

    No more than a warning, as another method may be called ``judge``, or never be called.
    """
    if not reward.function or reward.judges:
        return ""
    names = reached_attributes(reward.function)
    if _ASKS.isdisjoint(names) or "judges" in names:
        return ""
    return (
        f'reward.function = "{reward.function}" seems to ask a judge, and reward.judges names none: if it does, set '
        'reward.judges = ["MODEL@URL"]'
    )


def reached_attributes(where: str) -> set[str]:
    """The names of all attributes in the code of ``FILE.py:NAME`` and of what that names in its file, and so on.

    So of a file with several functions only those count that are used. What other files hold is not seen.
    """
    path, name = user_file(where), where.rpartition(":")[2]
    defined = {
        one.name: one
        for one in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    found, seen, waiting = set[str](), set[str](), [name]
    while waiting:
        if (name := waiting.pop()) in seen or name not in defined:
            continue
        seen.add(name)
        for node in ast.walk(defined[name]):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.Name):
                waiting.append(node.id)
    return found


def warning_of_similarity(config: Config, questions: Sequence[Question]) -> str:
    """What to say where the questions, or the languages that they are answered in, are none of the embedder's."""
    compared = [question for question in questions if compares(config.reward, question.topics)]
    if not compared:
        return ""
    return warning_of_languages(config.reward, [*config.run.languages, *(question.language for question in compared)])
