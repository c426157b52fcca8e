"""A task group that raises its first error plainly."""

from __future__ import annotations

import asyncio
from types import TracebackType


class TaskGroup(asyncio.TaskGroup):
    """``asyncio.TaskGroup`` that raises the first error of its body or its tasks instead of an ``ExceptionGroup``.

    What other tasks raise while they are cancelled is dropped. If the task that runs the group was itself cancelled,
    it ends with ``CancelledError`` whatever its tasks raise. The body must not end without an error.
    """

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            if error is None or isinstance(error, asyncio.CancelledError):
                task = asyncio.current_task()
                if error is not None and task is not None and task.cancelling():
                    raise error from None
                error = group.exceptions[0]
            raise error from None
