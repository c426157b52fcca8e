"""What of a configuration's reward can be known before anything is started: whether it loads, and what it lacks."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from common.config import Config, ConfigError, RewardConfig
from common.languages import display_name
from common.user_code import user_file
from common.wire import Question
from learner.data.rows import OURS
from learner.train.step_reward import StepReward
from reward.encoder_languages import compares, warning_of_languages
from reward.terms.judge import check_judge
from reward.terms.quality import check_terms
from reward.terms.user_call import UserFunction
from router.modes import fixed_languages

_READ_ALL = {"asdict", "astuple", "attrgetter", "eval", "exec", "fields", "getattr", "vars", "__dict__"}
_OWN_PACKAGES = {"actor", "common", "learner", "reward", "router", "scripts", "tests"}
_ASKS = {"judge", "judge_or_failure"}  # of the tools that a reward function gets


def check_reward(config: Config) -> None:
    """Returns if the terms load and have the judges that they ask, or the user's functions load.

    The files of ``reward.function`` and ``learner.step_reward`` are run for it, as the processes of a run do.

    Raises:
        ConfigError: what they would refuse when they start, or when the first answer is scored.
    """
    reward = config.reward
    if reward.function:
        known = {*sys.modules}
        UserFunction(reward.function)
        # In a run these two files are in processes of their own, and each finds the modules that lie beside it.
        _forget_neighbours({*sys.modules} - known, user_file(reward.function).resolve().parent)
    else:
        check_terms(reward.terms)
        if any("judge" in row for row in reward.terms.values()):
            check_judge(reward)
    StepReward.of(config.learner)


def check_languages_of_questions(
    config: Config, questions: Mapping[str, Sequence[Question]], knows: Callable[[str], bool]
) -> None:
    """Returns if answers can be checked for the languages of the questions, where the reward is gated.

    Args:
        questions: by the setting that names their source.
        knows: whether the language model knows a language, by code.

    Raises:
        ConfigError: answers to a question are asked for in its own language, and all that have letters would earn 0.
    """
    if not config.reward.is_gated or config.reward.unchecked == "pass":
        return
    for name, asked in questions.items():
        unchecked = [
            one
            for one in asked
            if not knows(one.language) and one.language in fixed_languages(config.router, one.language, one.topics)
        ]
        if unchecked:
            first = unchecked[0]
            but = ' unless it is short, with reward.gate_short = "pass"' if config.reward.gate_short == "pass" else ""
            raise ConfigError(
                f"{len(unchecked)} questions of {name} are asked in their own language, which reward.language_model = "
                f"{config.reward.language_model!r} does not know, so that no answer with letters could earn a "
                f"reward{but}. The first is row {first.index}, in {first.language} ({display_name(first.language)}): "
                'leave them out, give a model that has the language, or set reward.unchecked = "pass" or '
                "reward.near_languages (docs/languages.md)"
            )


def _forget_neighbours(names: Set[str], directory: Path) -> None:
    """Takes modules and packages that lie directly in a directory out of those that are imported.

    Others of their names can be imported then.

    Args:
        names: of the modules that may be taken out, those of packages included.
    """
    found = [name for name in names if _lies_in(directory, name.partition(".")[0])]
    for name in found:
        del sys.modules[name]


def _lies_in(directory: Path, name: str) -> bool:
    """Whether an imported module or package, none of this project's, lies directly in a directory."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or name in _OWN_PACKAGES:
        return False
    path = Path(file).resolve()
    return directory == (path.parent.parent if path.name == "__init__.py" else path.parent)


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


def warning_of_columns(config: Config) -> str:
    """What to say where ``data.columns`` names further columns that nothing of the reward reads; empty where all are.

    A name is read where it is ``reward.pivot``, or stands as a text in the file of ``reward.function``. Nothing is said
    of a function that may read columns in a way that cannot be seen, as :func:`_columns_of` has it.
    """
    reward, further = config.reward, [name for name in config.data.columns if name not in OURS]
    if reward.function:
        columns = _columns_of(user_file(reward.function))
        if columns is None:
            return ""
        unread = [name for name in further if name not in columns.texts]
        reader = f'reward.function = "{reward.function}" does not read'
        hint = f"it reads {', '.join(sorted(columns.keys))}" if columns.keys else "it reads no further column"
    else:
        pivots = any("pivot" in row for row in reward.terms.values())
        unread = [name for name in further if not (pivots and name == reward.pivot)]
        reader = "no term of the reward reads"
        hint = 'the term "pivot" reads the one that reward.pivot names, and `lrpo anchors` its --question'
    return f"{reader} {', '.join(f'data.columns.{name}' for name in unread)}; {hint}" if unread else ""


class _Columns(NamedTuple):
    """How a file of the user's may name further columns."""

    texts: set[str]  # all texts in it
    keys: set[str]  # those that it asks a question's ``extra`` for


def _columns_of(path: Path) -> _Columns | None:
    """None where it may read others: by a name that no text is, by all at once, or by what it imports of the user's."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts, keys, seen = set[str](), set[str](), set[ast.Attribute]()
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)):
                texts.add(text)
            case (
                ast.Subscript(value=ast.Attribute(attr="extra") as extra, slice=ast.Constant(value=str(key)))
                | ast.Call(
                    func=ast.Attribute(value=ast.Attribute(attr="extra") as extra, attr="get"),
                    args=[ast.Constant(value=str(key)), *_],
                )
            ):
                keys.add(key)
                seen.add(extra)
            case ast.Import(names=names) if any(not _is_known(one.name) for one in names):
                return None
            case ast.ImportFrom(module=module, level=level) if level or not _is_known(module or ""):
                return None
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="extra") if node not in seen:
                return None
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) if name in _READ_ALL:
                return None
    return _Columns(texts, keys)


def _is_known(module: str) -> bool:
    """Whether it is of Python, of this project's packages or of numpy, none of which reads a question's columns."""
    return module.partition(".")[0] in {*sys.stdlib_module_names, "common", "reward", "numpy"}


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
