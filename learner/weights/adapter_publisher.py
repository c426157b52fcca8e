"""Publishes LoRA adapters: the engines hold the frozen weights, and load A and B of each new version beside the others.

An adapter is a file of PEFT's format, small enough to travel in a message to each actor; with ``sync.transport`` =
"disk" it lies in ``sync.directory`` while the round lasts. No engine pauses for it. Answers that are under way end with
the adapter they began with, and what begins after the actor's reply uses the new one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import queue
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from common import wire
from common.adapter_files import WEIGHTS_FILE
from common.config import SyncConfig
from common.process import FatalError
from common.run_files import owned_directory
from learner.weights.bucket_queue import POLL_S
from learner.weights.deadlines import SHARE_OF_COLLECTIVE
from learner.weights.publisher import Published, StartGather
from learner.weights.round import fitting_actors, split_by_need
from learner.work.actors import MAX_REPLIES, ActorState
from learner.work.server import WorkServer

log = logging.getLogger("learner.publisher")

TRANSPORT = "adapter"  # what the hello of an actor that loads adapters says
_ROOM_BYTES = 1 << 20  # in a message, for all but the adapter
_REPLY_POLL_S = 0.01


class AdapterPublisher:
    """Rank 0's end of the weight sync where adapters alone travel; it takes the place of ``Publisher``.

    Args:
        server: sends messages to the actors and knows who is present.
        config: the section ``sync``, with a ``directory`` of the run's own, as of ``sync_of_run``.
        peft_config: the contents of PEFT's ``adapter_config.json``.
        parameters: number of parameters of the adapters.
        dtype: of the engines, as torch calls it; the adapters are rounded to it.
        check: is called at least every 0.1 s while ``publish`` waits; raises to end the wait.
        collective_s: how long the learner's other ranks wait for rank 0 in a collective; every round is shorter.

    Raises:
        FatalError: the adapters are too large for a message, and ``sync.transport`` is not "disk".
    """

    def __init__(
        self,
        server: WorkServer,
        config: SyncConfig,
        peft_config: Mapping[str, Any],
        parameters: int,
        dtype: str,
        check: Callable[[], None],
        collective_s: float = math.inf,
    ) -> None:
        self._longest_s = SHARE_OF_COLLECTIVE * collective_s
        self._server, self._config, self._check = server, config, check
        self._published: int | None = None  # the version of the last round
        self._peft_config = json.dumps(peft_config)
        self._dtype: torch.dtype = getattr(torch, dtype)
        size, most = parameters * self._dtype.itemsize, wire.MAX_MESSAGE_BYTES - _ROOM_BYTES
        if config.transport != "disk" and size > most:
            raise FatalError(
                f"the adapters of lora.rank and lora.targets take {size / 2**20:.0f} MiB, and a message at most "
                f"{most / 2**20:.0f}: set sync.transport = 'disk' and a sync.directory that learner and actors see, or "
                "lower lora.rank"
            )

    def publish(self, version: int, start_gather: StartGather, probe: wire.Probe) -> Published:
        """Sends the adapters as ``version`` to all actors that are present now, as ``Publisher.publish``.

        Blocks until every actor has loaded them, left, or was given up: after ``sync.timeout_s`` plus the time that the
        bytes of all engines take at ``sync.slowest_mb_per_s``.

        Args:
            version: number of the policy version.
            start_gather: is called once, without a plan for the other ranks, because rank 0 alone sends adapters. It
                returns A and B of every layer under PEFT's names.
            probe: with which the engines prove that they compute as the learner does. This is not waited for.

        Returns:
            Who has the adapters, maybe nobody.

        Raises:
            FatalError: the file cannot be written to ``sync.directory``, or the server has failed.
            Exception: whatever ``check`` raises.
        """
        begin = time.monotonic()
        self._server.begin_version(version)
        data = save(
            {name: value.to("cpu", self._dtype).contiguous() for name, value in start_gather(b"")}, {"format": "pt"}
        )
        present = fitting_actors(self._server, [TRANSPORT])
        actors, up_to_date = split_by_need(present, is_new=version != self._published)
        transfer_s = len(actors) * len(data) / (self._config.slowest_mb_per_s * 1e6)
        deadline_s = min(self._config.timeout_s + transfer_s, self._longest_s)
        with ExitStack() as files:
            order = wire.LoadAdapter(
                version=version, config=self._peft_config, data=data, path="", probe=probe, timeout_s=deadline_s,
                sha256=hashlib.sha256(data).hexdigest(),
            )  # fmt: skip
            if self._config.transport == "disk":
                order = order.model_copy({"data": b"", "path": str(self._write(files, data))})
            for actor in actors.values():
                self._server.send(actor, order.model_copy({}))  # each is marked with the lives of its actor
            members = self._collect(version, actors, deadline_s)
        self._published = version
        members |= {name: actor for name, actor in up_to_date.items() if self._server.is_present(name, actor)}
        return Published(members, time.monotonic() - begin, 0.0)

    def _write(self, files: ExitStack, data: bytes) -> Path:
        """Writes the file into a directory that exists as long as ``files``, and returns its path."""
        try:
            path = files.enter_context(owned_directory(self._config.directory)) / WEIGHTS_FILE
            path.write_bytes(data)
        except OSError as error:
            raise FatalError(f"cannot write weights to sync.directory = {self._config.directory}: {error}") from None
        return path

    def _collect(self, version: int, actors: dict[str, ActorState], deadline_s: float) -> dict[str, ActorState]:
        """The actors whose engines have loaded the version; gives up those that have not in time."""
        members: dict[str, ActorState] = {}
        pending, begin, checked = dict(actors), time.monotonic(), 0.0
        while pending:
            for name, actor in list(pending.items()):
                if _has_loaded(actor, version):
                    members[name] = pending.pop(name)
            now = time.monotonic()
            if now > checked + POLL_S:
                checked = now
                self._check()
                pending = {name: actor for name, actor in pending.items() if self._server.is_present(name, actor)}
            if now > begin + deadline_s:
                for name, actor in pending.items():
                    self._server.eject(
                        name, actor, f"its engine did not load the adapter of version {version} in {deadline_s:.0f} s"
                    )
                break
            if pending:
                time.sleep(_REPLY_POLL_S)
        return members


def _has_loaded(actor: ActorState, version: int) -> bool:
    """Whether the actor has said so. What it said of earlier versions is ignored; does not block."""
    for _ in range(MAX_REPLIES):  # an actor may send more while these are read
        try:
            reply = actor.replies.get_nowait()
        except queue.Empty:
            break
        if isinstance(reply, wire.Synced) and (reply.stage, reply.version) == ("done", version):
            return True
    return False
