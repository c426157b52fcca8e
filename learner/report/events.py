"""Writes TensorBoard's event files: unbuffered, and in few large records."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

log = logging.getLogger("learner")


class EventWriter:
    """Appends to new event files in ``directory``.

    When a file cannot be written, because the disk is full for example, a warning is logged once and everything after
    it is dropped: that costs metrics and does not stop the run.

    Args:
        begin: the step that a resumed run continues from; TensorBoard discards what was written of later steps.
        first: written before anything else.
    """

    def __init__(self, directory: Path, begin: int, first: Summary) -> None:
        self._directory, self._purge_step = directory, begin + 1 if begin else 0
        self._files: dict[str, RecordWriter] = {}
        self._failed = False
        self.write(self._purge_step, first)

    def write(self, step: int, *summaries: Summary, run: str = "") -> None:
        """Writes all values of the summaries in one record, which is smaller and loads faster than one for each.

        Args:
            run: a run in TensorBoard's sense, a sub-directory; each gets a colour of its own.
        """
        if self._failed:
            return
        try:
            if run not in self._files:
                name = f"events.out.tfevents.{time.time():.6f}.{os.uname().nodename}.{os.getpid()}"
                path = self._directory / run / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files[run] = RecordWriter(path.open("wb", buffering=0))
                self._append(run, 0, file_version="brain.Event:2")
                self._append(run, self._purge_step, session_log=SessionLog(status=SessionLog.START))
            self._append(run, step, summary=Summary(value=[value for part in summaries for value in part.value]))
        except OSError as error:
            self._failed = True
            log.warning("no metrics are kept from step %d on, cannot write %s: %s", step, self._directory, error)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _append(self, run: str, step: int, **content: object) -> None:
        self._files[run].write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
