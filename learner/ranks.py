"""Rank 0 decides, all ranks do: named actions that every process of the learner runs together.

Commands, and the batches they need, go over the default process group (gloo). This is what happens when one fails:

* **A rank raises**, or is killed: ``learner.rank_watch`` tells the others, and within seconds all of them end with that
  error, whatever they wait for. torchrun sees the first process that ended with an error and starts all of them again
  from the newest checkpoint, ``learner.restarts`` times; then the run ends with that error.
* **Rank 0 raises** while the others are known to wait for a command: :meth:`Ranks.stop` lets them end normally first.
  Otherwise they may be in another collective, where nothing that rank 0 sends would reach them, and it sends nothing.
* **A collective takes too long** (a rank hangs): after the timeout of the default group, ``collective_timeout_s``, it
  raises on the ranks that wait. So rank 0 must run some action within that time: in a long wait for actors
  :meth:`Ranks.keep_waiting` runs one now and then that does nothing but begin the time anew.
* **torchrun dies**: Linux kills every rank with it (``common.parent.die_with_parent``).

No rank goes on alone, and no step is half taken: a checkpoint is either whole, from all ranks, or not used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from common import wire
from common.config import Config
from learner.groups import Group

log = logging.getLogger("learner")

_STOP, _WAIT = "stop", "wait"
_STOP_S = 2.5  # for each part of a stop that comes with an error or an interrupt
_Item = TypeVar("_Item")


class Command(wire.WireStruct):
    """What all ranks are to do.

    Args:
        action: its name.
        batch: the groups of a training step, else none.
        number: the step, for actions that need it.
        data: what else the action needs, encoded.
    """

    action: str
    batch: list[Group]
    number: int = 0
    data: bytes = b""


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
        self._busy = 0  # number of actions and walks in which the other ranks may still be
        self._acted = time.monotonic()  # when the newest action ended

    def run(self, action: str, number: int = 0, batch: list[Group] | None = None, data: bytes = b"") -> Any:
        """Runs an action on every rank; only rank 0 calls this.

        Blocks as long as the action does on rank 0.

        Returns:
            What the action returned on rank 0.

        Raises:
            RuntimeError: another rank has ended, or a collective timed out.
        """
        return self._run(Command(action=action, number=number, batch=batch or [], data=data), None)

    def keep_waiting(self, every_s: float) -> None:
        """Begins the others' time to wait for a command anew, if no action has run for ``every_s`` seconds.

        Only rank 0 calls this, as often as it likes, while the others listen. Raises as :meth:`run` does.
        """
        if time.monotonic() - self._acted > every_s:
            self.run(_WAIT)

    def walk(self, items: Iterator[_Item]) -> Iterator[_Item]:
        """Hands out ``items``, in whose making all ranks take part: the others listen again only after the last."""
        self._busy += 1

        def walked() -> Iterator[_Item]:
            yield from items
            self._busy -= 1

        return walked()

    def stop(self) -> None:
        """On the way out with an error or an interrupt: lets the other ranks return from :meth:`follow`.

        Only rank 0 calls this. It does nothing unless all are known to listen. Blocks for at most five seconds.
        Where it does not reach them, ``learner.rank_watch`` ends them.
        """
        if self._busy:
            return
        try:
            self._run(Command(action=_STOP, batch=[]), _STOP_S)
        except RuntimeError as error:  # the base of torch's distributed errors
            log.debug("the other ranks could not be stopped: %s", error)

    def _run(self, command: Command, timeout_s: float | None) -> Any:
        self._busy += 1  # stays so if the action fails here, because it may go on elsewhere
        if dist.get_world_size() > 1:
            broadcast(wire.encode(command), timeout_s)
        result = self._actions[command.action](command)
        self._busy -= 1
        self._acted = time.monotonic()
        return result

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


def collective_timeout_s(config: Config) -> float:
    """How long a rank waits for the others in a collective of the default group, in seconds."""
    return config.learner.group_timeout_s + config.actor.start_timeout_s


def broadcast(data: bytes, timeout_s: float | None = None) -> bytes:
    """Gives every rank the ``data`` of rank 0; all ranks call it together, and what the others give does not count.

    Blocks until rank 0 has called it, at most for the default group's timeout, or for ``timeout_s`` for each of the two
    parts of the message; then it raises RuntimeError.
    """
    leads = dist.get_rank() == 0
    size = torch.tensor([len(data)])
    _broadcast_tensor(size, timeout_s)
    buffer = torch.empty(int(size), dtype=torch.uint8)
    if leads and data:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    _broadcast_tensor(buffer, timeout_s)
    return buffer.numpy().tobytes()


def _broadcast_tensor(tensor: torch.Tensor, timeout_s: float | None) -> None:
    work = dist.broadcast(tensor, src=0, async_op=True)
    if timeout_s is None:
        work.wait()
    else:
        work.wait(timedelta(seconds=timeout_s))
