"""Which answers run and which wait: SGLang's scheduler in small, with a memory for so many tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """One answer on its way, with what has been generated."""

    prompt: list[int]
    limit: int  # tokens at most
    adapter: str = ""  # name of the adapter that makes it
    asked: list[int] = field(default_factory=list)  # tokens whose log-probabilities are told for each of its tokens
    chosen: list[list[list[Any]]] = field(default_factory=list)  # these, as [log-probability, token, None]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)  # of the weights that made each token
    retractions: int = 0
    runs: bool = False  # holds memory for its tokens; else it waits
    finish: dict[str, object] = field(default_factory=dict)  # why it has ended

    def __len__(self) -> int:
        return len(self.prompt) + len(self.ids)


class Memory:
    """The answers of an engine, in the order in which they came to run.

    Args:
        tokens: there is memory for.
        most: answers that may run at the same time.
    """

    def __init__(self, tokens: float, most: int) -> None:
        self.tokens, self.most = tokens, most
        self.running: list[Answer] = []
        self.waiting: list[Answer] = []

    def used(self) -> int:
        return sum(map(len, self.running))

    def add(self, answer: Answer) -> None:
        self.waiting.append(answer)

    def remove(self, answer: Answer) -> None:
        for queue in (self.running, self.waiting):
            if any(one is answer for one in queue):
                queue[:] = [one for one in queue if one is not answer]
        answer.runs = False

    def admit(self) -> None:
        """Lets those run that wait, in their order, as long as there is room for them and a next token of all."""
        while self.waiting and len(self.running) < self.most:
            if self.used() + len(self.waiting[0]) + len(self.running) + 1 > self.tokens:
                return
            answer = self.waiting.pop(0)
            answer.runs = True
            self.running.append(answer)

    def make_room(self) -> None:
        """Puts the newest answers back until each of the others can have a token more; at least one goes on."""
        while len(self.running) > 1 and self.used() + len(self.running) > self.tokens:
            self._put_back(self.running.pop())

    def retract_all(self) -> None:
        while self.running:
            self._put_back(self.running.pop())

    def _put_back(self, answer: Answer) -> None:
        answer.runs = False
        answer.retractions += 1
        self.waiting.insert(0, answer)
