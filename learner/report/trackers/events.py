"""Writes TensorBoard's event files: unbuffered, and in few large records."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

log = logging.getLogger("learner")

_APART_S = 1e-3  # between the first events of two runs
_PREFIX = "events.out.tfevents."


class EventWriter:
    """Appends to new event files in ``directory`` and its sub-directories, each of which is a run to TensorBoard.

    TensorBoard gives the runs its seven colours in the order in which they began. Therefore all files are made at once,
    and their first events have times in the order of ``runs``.

    When a file cannot be written, because the disk is full for example, a warning is logged once and everything after
    it is dropped: that costs metrics and does not stop the run.

    Args:
        begin: the step that a resumed run continues from; TensorBoard discards what was written of later steps.
        runs: names of sub-directories; "" is ``directory`` itself.
    """

    def __init__(self, directory: Path, begin: int, runs: Sequence[str] = ("",)) -> None:
        self._directory, self._files = directory, dict[str, RecordWriter]()
        self._failed = False
        purge_step, now = begin + 1 if begin else 0, max(time.time(), 1 + _newest(directory, runs))
        name = f"{_PREFIX}{now:.6f}.{os.uname().nodename}.{os.getpid()}"
        try:
            for number, run in enumerate(runs):
                path, began = directory / run / name, now + number * _APART_S
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files[run] = RecordWriter(path.open("wb", buffering=0))
                self._append(run, Event(wall_time=began, file_version="brain.Event:2"))
                start = SessionLog(status=SessionLog.START)
                self._append(run, Event(wall_time=began, step=purge_step, session_log=start))
        except OSError as error:
            self._fail(purge_step, error)

    def write(self, step: int, summary: Summary, run: str = "") -> None:
        """Writes all values of a summary in one record, which is smaller and loads faster than one for each."""
        if self._failed:
            return
        try:
            self._append(run, Event(wall_time=time.time(), step=step, summary=summary))
        except OSError as error:
            self._fail(step, error)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _append(self, run: str, event: Event) -> None:
        self._files[run].write(event.SerializeToString())

    def _fail(self, step: int, error: OSError) -> None:
        self._failed = True
        log.warning("no metrics are kept from step %d on, cannot write %s: %s", step, self._directory, error)


def _newest(directory: Path, runs: Sequence[str]) -> float:
    """The time in the name of the newest event file; 0 where there is none.

    TensorBoard reads the files of a run in the order of their names, and takes the last for its end. A clock that was
    set back must not put a resumed run before what it goes on from.
    """
    found = [0.0]
    for run in runs:
        for path in (directory / run).glob(f"{_PREFIX}*"):
            with suppress(ValueError, IndexError):  # of another program
                found.append(float(".".join(path.name.removeprefix(_PREFIX).split(".")[:2])))
    return max(found)
