"""Process groups with engines. This is the only file of the learner that needs torch's private API for them.

A group has a rank of the learner as its rank 0 and the ranks of one engine. It stands beside the default group of the
learner's own ranks, and forms through a TCP store on which the learner's rank 0 listens.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import BroadcastOptions, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import Backend, GroupName, _new_process_group_helper, _world

from common.process import FatalError

log = logging.getLogger("learner.publisher")

ProcessGroup: TypeAlias = Any  # torch's own class, which has no type for what is used here

_POLL_S = 0.1
_NCCL_POLL_S = 0.001  # between two looks at whether a broadcast of NCCL is complete
_RAISE_S = 10.0  # of a wait for a broadcast that is complete, which only fetches its error


class GroupStore:
    """The store through which groups form. Listens on one interface alone, where torch would take all of them.

    To be made after the default group and all other groups of the learner: torch leaves errors of groups that are made
    later to their callers.

    Attributes:
        host, port: where it listens.

    Args:
        host: address or name of the interface.
        port: 0 for any free one.
        timeout_s: deadline of a call on the store.

    Raises:
        FatalError: it cannot listen there.
    """

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        listener = socket.socket()
        # Without this option a learner that restarts could not listen until the system has forgotten old connections.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()
        except OSError as error:
            raise FatalError(f"cannot listen on sync.host:port {host}:{port}: {error}") from None
        leave_errors_to_callers()
        self.host, self.port = host, int(listener.getsockname()[1])
        self._store: TCPStore | None = TCPStore(
            host,
            self.port,
            is_master=True,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )

    def close(self) -> None:
        """Stops listening. Whoever waits for a group to form gets a RuntimeError at once."""
        self._store = None


def leave_errors_to_callers() -> None:
    """Groups that are made from now on, which are those with engines, leave an error of NCCL to their caller.

    Torch would end the learner for it; its own group, which exists already, keeps that. Read when a group is made.
    """
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"


def connect_to_store(host: str, port: int, timeout_s: float) -> TCPStore:
    """A client of the ``GroupStore`` at this address; blocks until connected, for at most ``timeout_s``."""
    return TCPStore(host, port, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)


def form_group(
    backend: str, store: TCPStore, name: str, world: int, timeout_s: float, rank: int = 0
) -> ProcessGroup:  # fmt: skip
    """Forms a process group beside the default one; blocks until all ranks are there.

    ``torch.distributed.new_group`` takes only ranks of the default group, and under torchrun ``rendezvous`` never
    listens by itself. Engines build their end with the same private helper.

    Args:
        backend: "gloo" or "nccl".
        store: a client that no other thread uses.
        name: unique among all groups that this learner and the engine know.
        world: number of ranks.
        timeout_s: deadline of gloo for forming the group and for each collective. NCCL gets a day instead: when its
            own deadline passes, its watchdog ends the whole process, so the caller must call ``abort_group`` first.
        rank: of this process.

    Raises:
        RuntimeError: any of torch's distributed errors, a timeout among them.
    """
    timeout = timedelta(seconds=timeout_s) if backend == "gloo" else timedelta(days=1)
    group, _ = _new_process_group_helper(
        world, rank, [], Backend(backend), PrefixStore(name, store), group_name=GroupName(name), timeout=timeout,
        backend_options=None,
    )  # fmt: skip
    _world.pg_group_ranks[group] = {each: each for each in range(world)}  # destroy_process_group looks it up here
    return group


def sending_stream(device: torch.device) -> torch.cuda.Stream | None:
    """The CUDA stream for all threads that broadcast from ``device``; None if that is no GPU.

    NCCL lets a broadcast begin after everything that is queued on the current stream of the thread that starts it, and
    all threads share the default stream unless they choose another one. There a broadcast would wait for the gathering
    of later buckets, which may wait for the engine of another node. On this stream nothing is ever queued that takes
    time: whoever has gathered a bucket waits until its copies are done, see ``wait_for_copies``. It has high priority
    because NCCL takes the streams of its groups from torch's pool of normal priority, which gives out the same 32 again
    and again, so that one of that pool might be the stream on which a stopped engine is waited for.
    """
    return torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None


def on_stream(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    """A block in which ``stream`` is the current one of this thread; without a stream nothing changes."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def start_broadcast(group: ProcessGroup, buffer: Tensor, timeout_s: float) -> Any:
    """Begins to send ``buffer`` from rank 0 to the others, or to receive it. Does not block.

    It does block in the first broadcast of an NCCL group, which connects the ranks; see ``broadcast_first``.

    Returns:
        torch's ``Work``, for ``wait_briefly`` and, once it is complete, ``raise_error``.
    """
    options = BroadcastOptions()
    options.rootRank, options.timeout = 0, timedelta(seconds=timeout_s)
    return group.broadcast([buffer], options)


def wait_briefly(work: Any, backend: str, timeout_s: float) -> bool:
    """Whether a broadcast is complete, with or without success. Blocks until it is, for ``timeout_s`` at most.

    Gloo wakes the caller. With NCCL a wait whose deadline passes would break the broadcast off, so this looks at it
    once and after a moment again.

    Args:
        work: from ``start_broadcast``.
        backend: "gloo" or "nccl".
        timeout_s: in seconds.
    """
    if work.is_completed():
        return True
    if backend == "gloo":
        with suppress(RuntimeError):  # it is not complete yet, or it has failed, which ``raise_error`` tells
            work.wait(timedelta(seconds=timeout_s))
    else:
        time.sleep(min(timeout_s, _NCCL_POLL_S))
    return bool(work.is_completed())


def raise_error(work: Any) -> None:
    """Raises RuntimeError if a broadcast that is complete has failed.

    With a deadline torch looks for NCCL's error too, and without one for gloo's alone.
    """
    work.wait(timedelta(seconds=_RAISE_S))


def broadcast_first(
    group: ProcessGroup, backend: str, buffer: Tensor, timeout_s: float, check: Callable[[], None]
) -> None:  # fmt: skip
    """The first broadcast of a group, within which NCCL connects its ranks; blocks until it is complete.

    Connecting happens inside the call that starts the broadcast, and waits for a dead peer without end. So the call
    runs on a thread of its own, which is left behind when the deadline passes; ``discard_group`` must follow then. That
    thread uses the caller's current CUDA stream. The broadcast is waited for only when it is complete, because a wait
    would put one that never ends before everything else on that stream.

    Args:
        backend: "gloo" or "nccl".
        buffer: [n] uint8, sent from rank 0.
        check: is called every 0.1 s; raises to give up.

    Raises:
        TimeoutError: it was not complete within ``timeout_s``.
        RuntimeError: it failed.
    """
    is_started, works, errors = threading.Event(), list[Any](), list[RuntimeError]()
    stream = torch.cuda.current_stream(buffer.device) if buffer.is_cuda else None

    def run() -> None:
        try:
            with on_stream(stream):
                works.append(start_broadcast(group, buffer, timeout_s))
        except RuntimeError as error:  # the base of torch's distributed errors
            errors.append(error)
        finally:
            is_started.set()

    threading.Thread(target=run, name=f"first broadcast of {group.group_name}", daemon=True).start()
    deadline = time.monotonic() + timeout_s

    def give_up_late() -> None:
        check()
        if time.monotonic() > deadline:
            raise TimeoutError

    while not is_started.wait(_POLL_S):
        give_up_late()
    if errors:
        raise errors[0]
    while not wait_briefly(works[0], backend, _POLL_S):
        give_up_late()
    raise_error(works[0])


def abort_group(group: ProcessGroup, backend: str) -> None:
    """Breaks off what the group is doing. Gloo has no call for it and ends by the deadline of its collective."""
    if backend == "nccl":
        group.abort()


def destroy_group(group: ProcessGroup) -> None:
    """Frees the group. The other ranks are not asked. Blocks while a broadcast of it goes on."""
    dist.destroy_process_group(group)


def discard_group(group: ProcessGroup, backend: str) -> None:
    """Breaks off and frees the group of an engine that is gone or was given up. Does not block, whatever it is doing.

    A group that is freed in the middle of a broadcast waits for the peer, or with gloo for the broadcast's deadline.
    So this is left to a thread for which nobody waits.
    """

    def discard() -> None:
        try:
            abort_group(group, backend)
            destroy_group(group)
        except Exception as error:  # whatever torch raises about a group that is broken anyway: nobody needs it
            log.info("a weight group could not be freed: %s", error)

    threading.Thread(target=discard, name=f"discarding {group.group_name}", daemon=True).start()
