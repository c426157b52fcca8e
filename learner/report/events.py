"""TensorBoard's files, written at once and in few large records; a full disk costs metrics and never the run."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

log = logging.getLogger("learner")


class Events:
    """Appends to new files of ``directory``, until one cannot be written: that is told once.

    Args:
        begin: the step a resumed run goes on from; TensorBoard forgets what was written of later ones.
        head: written first.
    """

    def __init__(self, directory: Path, begin: int, head: Summary) -> None:
        self._directory, self._purge = directory, begin + 1 if begin else 0
        self._files: dict[str, RecordWriter] = {}
        self._failed = False
        self.write(self._purge, head)

    def write(self, step: int, *summaries: Summary, run: str = "") -> None:
        """All values in one record: it is smaller and faster to load than one for each.

        Args:
            run: in TensorBoard's sense, which gives each a colour.
        """
        if self._failed:
            return
        try:
            if run not in self._files:
                path = (
                    self._directory / run / f"events.out.tfevents.{time.time():.6f}.{os.uname().nodename}.{os.getpid()}"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files[run] = RecordWriter(path.open("wb", buffering=0))
                self._put(run, 0, file_version="brain.Event:2")
                self._put(run, self._purge, session_log=SessionLog(status=SessionLog.START))
            self._put(run, step, summary=Summary(value=[value for part in summaries for value in part.value]))
        except OSError as error:
            self._failed = True
            log.warning("no metrics are kept from step %d on, cannot write %s: %s", step, self._directory, error)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _put(self, run: str, step: int, **content: object) -> None:
        self._files[run].write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
