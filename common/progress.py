"""Says what a process does and how long it has been at it, so that no minute of a run is silent."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

Text = str | Callable[[], str]
LOGGER = "progress"
BRIEF_S = 15.0  # the ``silent_s`` of what usually takes less, and is not logged then
_EVERY_S = (15.0, 15.0, 30.0)  # seconds between the lines of an activity; the last one again and again
_WARN_AFTER_S = 60.0


class Activity:
    """Something that may take long, or may have to be waited for; a context manager.

    Within it a thread logs a line after 15, 30 and 60 seconds and then twice a minute. After a minute these lines are
    warnings, if it is known what may be missing.

    Args:
        process: the process in the name of the logger, ``progress.PROCESS``: "learner", "actor" or "reward".
        what: what is done, as in "reading the weights of MODEL", or waited for, as in "waiting for an actor".
        missing: what may be missing and the command that starts or mends it; empty where waiting is all there is to do.
        detail: how far it is. Like ``missing`` it may be a function, which the thread calls when it writes a line.
        silent_s: an activity that has ended by then is not mentioned. 0 also logs its beginning.
    """

    def __init__(
        self, process: str, what: str, *, missing: Text = "", detail: Text = "", silent_s: float = 0.0
    ) -> None:
        self._log = logging.getLogger(f"{LOGGER}.{process}")
        self._what, self._missing, self._silent_s = what, missing, silent_s
        self.detail = detail  # whoever does the work may change it at any time
        self._began = time.monotonic()
        self._mentioned = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, name=f"progress: {what}", daemon=True)

    def begin(self) -> None:
        """Starts to tell. ``with`` does this by itself."""
        self._began = time.monotonic()
        if not self._silent_s:
            self._mentioned = True
            self._log.info("%s", self._what)
        self._thread.start()

    def end(self) -> None:
        """Stops to tell, and says how long it took if that was long. May be called twice. Does not block."""
        if self._ended.is_set():
            return
        self._ended.set()
        took_s = time.monotonic() - self._began
        if self._mentioned and took_s >= 1:
            self._log.info("%s: done after %.0f s", self._what, took_s)

    def __enter__(self) -> Activity:
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end()
        self._ended.set()  # whatever ended it says so itself

    def _tell(self) -> None:
        pauses = iter(_EVERY_S[-1:] if self._silent_s else _EVERY_S)
        pause_s = self._silent_s or next(pauses)
        while not self._ended.wait(pause_s):
            pause_s = next(pauses, _EVERY_S[-1])
            took_s = time.monotonic() - self._began
            detail, missing = _evaluate(self.detail), _evaluate(self._missing)
            detail = f" ({detail})" if detail else ""
            self._mentioned = True
            if missing and took_s > 0.9 * _WARN_AFTER_S:
                self._log.warning("%s for %.0f s already%s: %s", self._what, took_s, detail, missing)
            else:
                self._log.info("%s: %.0f s so far%s", self._what, took_s, detail)


def _evaluate(text: Text) -> str:
    return text if isinstance(text, str) else text()
