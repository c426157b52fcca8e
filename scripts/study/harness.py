"""Scores a model on tasks of lm-evaluation-harness."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.gpus import has_cuda
from common.languages import code_of
from common.process import FatalError
from scripts.study.grading import Item, mark

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

# The harness's tasks of Global-MMLU-Lite: a group for each language, and its subjects. ``global_mmlu_full_*`` are of
# Global-MMLU itself, and ``include_base_44_*`` of INCLUDE-Base; of INCLUDE-Lite there are none.
_GLOBAL_MMLU_LITE = re.compile(
    r"global_mmlu_(ar|bn|de|en|es|fr|hi|id|it|ja|ko|pt|sw|yo|zh)"
    r"(_(business|humanities|medical|other|social_sciences|stem))?"
)
_METRICS = ("acc", "exact_match", "acc_norm")  # in this order, the one that is reported


@dataclass(frozen=True)
class Tasks:
    """Tasks that the harness has, and can score on a model."""

    model: str
    names: list[str]
    manager: TaskManager


def find_tasks(model: str, names: Sequence[str], include: Path | None) -> Tasks:
    """Finds the tasks, which takes a quarter of a minute: the harness reads the thousands that come with it.

    Args:
        include: directory of tasks that are used instead of the harness's own.

    Raises:
        FatalError: the model is an endpoint, the harness is not installed, or it does not know a task.
    """
    if "@" in model:
        raise FatalError("--lm-eval compares the log-probabilities of choices: it needs the weights, not an endpoint")
    try:
        from lm_eval.tasks import TaskManager  # slow to import, and needed only here
    except ImportError as error:
        raise FatalError(f'--lm-eval needs the package lm_eval: pip install "lrpo[research]" ({error})') from None
    manager = TaskManager(include_path=str(include) if include else None, include_defaults=include is None)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise FatalError(f"--lm-eval: no task {unknown[0]!r}; --include-path names a directory with others")
    return Tasks(model, [*names], manager)


def score_tasks(tasks: Tasks, limit: int | None) -> dict[str, list[Item]]:
    """Items by column of the table. Blocks until all tasks are done.

    Args:
        limit: questions of each task.

    Raises:
        FatalError: no task scores single questions.
    """
    import lm_eval

    found = lm_eval.simple_evaluate(
        "hf",
        {"pretrained": tasks.model},
        tasks.names,
        limit=limit,
        task_manager=tasks.manager,
        bootstrap_iters=0,
        batch_size=8,
        device="cuda" if has_cuda() else "cpu",
    )
    assert found is not None, "only another rank than the first one gets nothing"
    return items_of(found["samples"], groups_of(tasks.names, found["group_subtasks"]))


def groups_of(asked: Sequence[str], members: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Task -> the group of tasks that was asked for and that it belongs to, at any depth.

    Args:
        members: of each group the tasks and groups in it.
    """
    found: dict[str, str] = {}
    for group in asked:
        left = list(members.get(group, ()))
        while left:
            task = left.pop()
            found.setdefault(task, group)
            left += members.get(task, ())
    return found


def items_of(
    samples_of: Mapping[str, Sequence[Mapping[str, Any]]], group_of: Mapping[str, str] | None = None
) -> dict[str, list[Item]]:
    """Items by column of the table, of the samples that the harness logged by task.

    Tasks of Global-MMLU-Lite share the column of the paper's table. Any other has a column of its own, or one with the
    rest of its group. A task with several filters of its answers has a sample of each question for each of them, and so
    a column each.

    Args:
        group_of: task -> the group that was asked for; a task that is not in it was asked for itself.

    Raises:
        FatalError: no task has a metric of single questions.
    """
    items: dict[str, list[Item]] = {}
    left_out = []
    for task, samples in samples_of.items():
        metric = _metric_of(samples)
        if metric is None:
            named = sorted({name for sample in samples for name in sample.get("metrics", ())})
            left_out.append(f"{task} ({', '.join(named) or 'no metric'})")
            continue
        column = "G-MMLU-Lite" if _GLOBAL_MMLU_LITE.fullmatch(task) else (group_of or {}).get(task, task)
        several = len({sample.get("filter") for sample in samples}) > 1
        for sample in samples:
            score = float(sample[metric])
            question = mark(task, str(sample["doc_id"]), str(sample["doc_hash"]))
            id = str(sample["doc"].get("sample_id") or "")  # Global-MMLU's, the same in all languages
            said = str(sample["filtered_resps"])[:200]
            item = Item(_language_of(task), score, str(score), said, None, question, id)
            items.setdefault(f"{column} ({sample['filter']})" if several else column, []).append(item)
    if left_out:
        text = f"no metric that scores single questions from 0 to 1: {', '.join(left_out)}"
        if not items:
            raise FatalError(f"--lm-eval: {text}")
        print(f"left out: {text}")
    return items


def _metric_of(samples: Sequence[Mapping[str, Any]]) -> str | None:
    """The metric that is reported of a task: the first of ``_METRICS`` that it has, else any other from 0 to 1."""
    if not samples:
        return None
    others: list[str] = sorted({name for sample in samples for name in sample.get("metrics", ())} - {*_METRICS})
    for name in (*_METRICS, *others):
        values = [sample.get(name) for sample in samples]
        if all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
            return name
    return None


def _language_of(task: str) -> str:
    """The last part of a task's name that names a language: in ``lambada_mt_de`` the first is no language.

    That of the prompt is none: ``include_base_44_chinese_few_shot_en_stem`` asks in Chinese.
    """
    for part in reversed(task.replace("few_shot_en", "").split("_")):
        with suppress(ValueError):
            return code_of(part)
    return ""
