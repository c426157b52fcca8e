"""Rank 0 decides, all ranks do: named collective actions and the batches they need, over the default gloo group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from common import wire
from learner.groups import Group


class Command(wire.WireStruct):
    action: str
    batch: list[Group]
    number: int = 0  # step


Action = Callable[[Command], Any]


class Ranks:
    """The learner's processes as one.

    Args:
        actions: by name; each is run by every rank with the same command. Names ``stop`` and ``wait``, which does
            nothing but tell the others to wait on, are taken.

    Example, on all ranks:
        >>> ranks = Ranks({"train": train})  # doctest: +SKIP
        >>> ranks.obey() if dist.get_rank() else ranks.call("train", batch=batch)  # doctest: +SKIP
    """

    def __init__(self, actions: dict[str, Action]) -> None:
        self._actions: dict[str, Action] = {"wait": lambda _: None, **actions}

    def call(self, action: str, number: int = 0, batch: list[Group] | None = None) -> Any:
        """Has every rank do it; the result of rank 0, the only one to call this."""
        command = Command(action=action, number=number, batch=batch or [])
        if dist.get_world_size() > 1:
            broadcast(wire.encode(command))
        return self._actions[action](command) if action != "stop" else None

    def obey(self) -> None:
        """What the other ranks do until rank 0 calls ``stop``."""
        while True:
            command = wire.unpack(broadcast(b""), Command)
            if command.action == "stop":
                return
            self._actions[command.action](command)


def broadcast(data: bytes) -> bytes:
    """The ``data`` of rank 0, on all ranks; all call it together, the others with nothing."""
    size = torch.tensor([len(data)])
    dist.broadcast(size, src=0)
    buffer = torch.empty(int(size), dtype=torch.uint8)
    if data:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(buffer, src=0)
    return buffer.numpy().tobytes()
