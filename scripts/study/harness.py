"""Scores a model on tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from common.gpus import has_cuda
from common.languages import code_of
from common.process import FatalError
from scripts.study.grading import Item

_COLUMNS = {"global_mmlu": "G-MMLU-Lite", "include": "Include-Lite"}  # by what the names of the tasks begin with


def score_tasks(model: str, tasks: Sequence[str], include: Path | None, limit: int | None) -> dict[str, list[Item]]:
    """Items by column of the table. Blocks until all tasks are done.

    Args:
        include: directory of tasks that are used instead of the harness's own.
        limit: questions of each task.

    Raises:
        FatalError: the model is no directory, or a task is not known.
    """
    if "@" in model:
        raise FatalError("--lm-eval compares the log-probabilities of choices: it needs the weights, not an endpoint")
    import lm_eval  # slow to import, and needed only here
    from lm_eval.tasks import TaskManager

    # The harness takes a quarter of a minute to read the thousands of tasks that come with it.
    manager = TaskManager(include_path=str(include) if include else None, include_defaults=include is None)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise FatalError(f"--lm-eval: no task {unknown[0]!r}; --include-path names a directory with others")
    found = lm_eval.simple_evaluate(
        "hf",
        {"pretrained": model},
        list(tasks),
        limit=limit,
        task_manager=manager,
        bootstrap_iters=0,
        batch_size=8,
        device="cuda" if has_cuda() else "cpu",
    )
    items: dict[str, list[Item]] = {}
    for task, samples in (found or {})["samples"].items():
        column = next((name for prefix, name in _COLUMNS.items() if task.startswith(prefix)), task)
        for sample in samples:
            score = next(float(sample[metric]) for metric in ("acc", "exact_match") if metric in sample)
            item = Item(_language_of(task), score, str(score), str(sample["filtered_resps"])[:200], None)
            items.setdefault(column, []).append(item)
    return items


def _language_of(task: str) -> str:
    for part in task.split("_"):
        with suppress(ValueError):
            return code_of(part)
    return ""
