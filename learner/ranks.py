"""Rank 0 decides, all ranks do: named actions that every process of the learner runs together.

Commands, and the batches they need, go over the default process group (gloo). This is what happens when one fails:

* **A rank other than 0 raises** inside an action, or is killed. Its process ends. Any rank that waits for it in a
  collective gets a RuntimeError as soon as gloo sees the closed connection; a rank that waits for the next command gets
  it when rank 0 has ended. torchrun sees the first process that ended with an error, asks the others to end and starts
  all of them again from the newest checkpoint, ``learner.restarts`` times; then the run ends with that first error.
* **Rank 0 raises** outside an action: it runs ``stop`` on its way out, so the others end normally, and its error is the
  run's. Inside an action the others may be in another collective than ``stop``: they end with an error of theirs when
  rank 0 has ended and its connections are closed.
* **Rank 0 dies** without a word: the others get a RuntimeError in the collective they are in, or wait for.
* **A collective takes too long** (a rank hangs): after the timeout of the default group, ``learner.batch_timeout_s`` +
  ``actor.start_timeout_s``, it raises on the ranks that wait. So rank 0 must run some action within that time: the
  action ``wait`` does nothing but begin the time anew, before a long wait for actors.
* **torchrun dies**: Linux kills every rank with it (``common.parent.die_with_parent``).

No rank goes on alone, and no step is half taken: a checkpoint is either whole, from all ranks, or not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from common import wire
from learner.groups import Group

_STOP, _WAIT = "stop", "wait"


class Command(wire.WireStruct):
    """What all ranks are to do.

    Args:
        action: its name.
        batch: the groups of a training step, else none.
        number: the step, for actions that need it.
    """

    action: str
    batch: list[Group]
    number: int = 0


Action = Callable[[Command], Any]


class Ranks:
    """The learner's processes as one; how it fails is in the module's docstring.

    Args:
        actions: by name; every rank runs an action with the same command. The names ``stop`` (the others return from
            :meth:`follow`) and ``wait`` (nothing, but the others' time to wait for a command begins anew) are taken.

    Example, on all ranks:
        >>> ranks = Ranks({"train": train})  # doctest: +SKIP
        >>> ranks.follow() if dist.get_rank() else ranks.run("train", batch=batch)  # doctest: +SKIP
    """

    def __init__(self, actions: dict[str, Action]) -> None:
        self._actions: dict[str, Action] = {**actions, _STOP: lambda _: None, _WAIT: lambda _: None}

    def run(self, action: str, number: int = 0, batch: list[Group] | None = None) -> Any:
        """Runs an action on every rank; only rank 0 calls this.

        Blocks as long as the action does on rank 0.

        Returns:
            What the action returned on rank 0.

        Raises:
            RuntimeError: another rank has ended, or a collective timed out.
        """
        command = Command(action=action, number=number, batch=batch or [])
        if dist.get_world_size() > 1:
            broadcast(wire.encode(command))
        return self._actions[action](command)

    def follow(self) -> None:
        """What every rank but 0 does: runs the actions that rank 0 runs, until that is ``stop``.

        Raises:
            RuntimeError: another rank has ended, or no command came within the default group's timeout.
        """
        while True:
            command = wire.unpack(broadcast(b""), Command)
            if command.action == _STOP:
                return
            self._actions[command.action](command)


def broadcast(data: bytes) -> bytes:
    """Gives every rank the ``data`` of rank 0; all ranks call it together, the others with ``b""``.

    Blocks until rank 0 has called it, at most for the default group's timeout; then it raises RuntimeError.
    """
    size = torch.tensor([len(data)])
    dist.broadcast(size, src=0)
    buffer = torch.empty(int(size), dtype=torch.uint8)
    if data:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(buffer, src=0)
    return buffer.numpy().tobytes()
