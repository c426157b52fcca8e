"""What ends a run early, at a point where it can be saved: SIGTERM, SIGINT, and a wait for actors that was in vain."""

from __future__ import annotations

import signal

from common.process import FatalError


class Interrupted(Exception):
    """The run was asked to end early."""


class NobodyCame(FatalError):
    """A wait for actors, or for their groups, was in vain. Nothing is wrong with the run, so it is saved."""


class Interrupts:
    """Remembers that the process was asked to end; those who wait ask for it with :meth:`check`."""

    def __init__(self) -> None:
        self._asked = False

    def install(self) -> None:
        """From now on SIGTERM and SIGINT are remembered here. Call it on the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def check(self) -> None:
        """Does not block.

        Raises:
            Interrupted: the process was asked to end.
        """
        if self._asked:
            raise Interrupted

    def _remember(self, *_: object) -> None:
        self._asked = True
