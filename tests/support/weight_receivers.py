"""Actors whose engines take weights through process groups, and keep nothing of them but their digests.

In the test process: ``Receiver(address, name)``. As a process for several of them on one host, until it is killed:
``python -m tests.support.weight_receivers ADDRESS DIRECTORY NAME...`` writes the digests to ``DIRECTORY/NAME.json``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from common import wire
from learner.weights.buckets import bytes_of, tensors_in
from learner.weights.process_group import ProcessGroup, connect_to_store, form_group, start_broadcast
from tests.learner.work.test_server import Client
from tests.support.rank import TIMEOUT_S


def digest(weights: Mapping[str, Tensor]) -> str:
    """Of the names and the bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


class Receiver:
    """One actor, on a thread of its own.

    Attributes:
        digests: by policy version.
        groups: how many groups it was told to join.
    """

    def __init__(self, address: str, name: str, directory: Path | None = None) -> None:
        self.name, self.digests, self.groups = name, dict[int, str](), 0
        self._client, self._directory = Client(address, name), directory
        self._is_over = threading.Event()
        self._group: ProcessGroup = None
        threading.Thread(target=self._play, name=f"receiver {name}", daemon=True).start()

    def close(self) -> None:
        self._is_over.set()

    def _play(self) -> None:
        client = self._client
        client.lives = wire.Lives("", "")
        client.say_hello(slots=1)
        while not self._is_over.is_set():
            if not client.socket.poll(50):
                continue
            match message := wire.decode(client.socket.recv()):
                case wire.Welcome():
                    client.lives = message.lives
                case wire.Join():
                    self.groups += 1
                    store = connect_to_store(message.host, message.port, TIMEOUT_S)
                    self._group = form_group(message.backend, store, message.group, message.world, TIMEOUT_S, rank=1)
                    client.send(wire.Joined(group=message.group))
                case wire.Pause():
                    client.send(wire.Synced(version=message.version, stage="ready", pause_s=0.0))
                case wire.Receive():
                    try:
                        self._receive(message)
                    except RuntimeError:  # gloo's, when who sends has died: the engine is lost with it
                        break
                    client.send(wire.Synced(version=message.version, stage="done", pause_s=0.0))
        client.socket.close(linger=0)

    def _receive(self, order: wire.Receive) -> None:
        weights = dict[str, Tensor]()
        for bucket in order.buckets:
            buffer = torch.empty(bytes_of(bucket), dtype=torch.uint8)
            start_broadcast(self._group, buffer, TIMEOUT_S).wait()
            weights |= zip(bucket.names, tensors_in(buffer, bucket), strict=True)
        self.digests[order.version] = digest(weights)
        if self._directory is not None:
            (self._directory / f"{self.name}.json").write_text(json.dumps(self.digests))


if __name__ == "__main__":
    torch.set_num_threads(1)
    receivers = [Receiver(sys.argv[1], name, Path(sys.argv[2])) for name in sys.argv[3:]]
    time.sleep(TIMEOUT_S)
