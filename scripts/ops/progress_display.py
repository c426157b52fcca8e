"""What a command that starts several processes shows of them: one live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_LINE = re.compile(r"^\d\d:\d\d:\d\d (?P<level>[A-Z]+) (?P<logger>[\w.]+): (?P<message>.*)")
_STEP = re.compile(r"^step (?P<step>\d+)/(?P<steps>\d+)\s+(?P<figures>.*)")
_REFRESHES_PER_S = 4


class Display(AbstractContextManager["Display"], Protocol):
    """Shows the lines that processes log."""

    def started(self, name: str) -> None:
        """A process has been started, perhaps again."""

    def line(self, name: str, text: str) -> None:
        """The process ``name`` has logged a line; which lines are shown is up to the display."""

    def message(self, text: str) -> None:
        """Something that is no process's own line."""


class PlainLines:
    """Prints warnings, progress and what the learner says. Lines of other processes begin with their name."""

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, name: str) -> None:
        """Nothing: the process says itself what it does."""

    def line(self, name: str, text: str) -> None:
        """Prints the line if it is one for people."""
        if _is_for_people(text):
            print(text if name.startswith("learner") else f"[{name}] {text}", flush=True)

    def message(self, text: str) -> None:
        """Prints it."""
        print(text, flush=True)


class LiveTable:
    """A bar for the steps, the newest figures, and what each process does and since when; warnings scroll above it."""

    def __init__(self, console: Console) -> None:
        self._doing: dict[str, tuple[str, float]] = {}
        self._step, self._steps, self._figures = 0, 0, ""
        self._live = Live(self, console=console, refresh_per_second=_REFRESHES_PER_S)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, name: str) -> None:
        """Enters the process."""
        self._doing[name] = ("starting", time.monotonic())

    def line(self, name: str, text: str) -> None:
        """Takes up what the process does now."""
        found = _LINE.match(text)
        if found is None:
            return
        message = found["message"]
        if step := _STEP.match(message):
            self._step, self._steps, self._figures = int(step["step"]), int(step["steps"]), step["figures"]
            self._doing[name] = ("training", time.monotonic())
            return
        if _is_for_people(text):
            self._doing[name] = (message.partition(": done")[0], time.monotonic())
        if found["level"] != "INFO" or found["logger"] == "learner":
            self._live.console.print(Text(f"[{name}] {text}"))

    def message(self, text: str) -> None:
        """Prints it above the table."""
        self._live.console.print(Text(text))

    def __rich__(self) -> Group:
        table = Table("process", "does", "for", expand=True)
        for name, (what, since) in self._doing.items():
            table.add_row(name, Text(what, overflow="ellipsis", no_wrap=True), f"{time.monotonic() - since:.0f} s")
        if not self._steps:
            return Group(table)
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_row(f"step {self._step}/{self._steps}", ProgressBar(total=self._steps, completed=self._step))
        return Group(table, bar, Text(self._figures))


def make_display() -> Display:
    """The display for where standard output goes."""
    console = Console()
    return LiveTable(console) if console.is_terminal else PlainLines()


def _is_for_people(text: str) -> bool:
    wanted = (" INFO learner: ", " progress.", " WARNING ", " ERROR ")
    return any(word in text for word in wanted)
