"""A process that has imported what the tests' processes need, and forks one of them when it is asked.

``python -m tests.support.fork_server DIRECTORY`` listens on ``DIRECTORY/socket``; the tests' end of it is
``tests.support.processes``. It ends, and with it all that it has forked, when the last of its clients has gone.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.rendezvous import dynamic_rendezvous

from tests.support.forking import ROOT, ForkingPopen, die_with, run_in_this_process

_REQUEST_BYTES = 1 << 17  # at most: the arguments and the environment of a process
PRELOADED = (
    "actor.__main__", "learner.__main__", "learner.launch", "learner.replay", "reward.__main__", "reward.scorer",
    "scripts.bench.chaos.__main__", "scripts.data.calibrate", "scripts.data.sft", "scripts.ops.status",
    "scripts.pool.launch", "scripts.study.compare", "scripts.world.build", "scripts.world.demo",
    "scripts.world.warm_start", "tests.support.measured_run", "tests.support.rank", "tests.support.train_once",
    "aiohttp.web", "pytest", "safetensors.torch", "torch._dynamo", "torch.distributed.checkpoint",
    "torch.distributed.run", "torch.multiprocessing.reductions", "torch.utils.tensorboard",
    "transformers.models.qwen3.modeling_qwen3", "trl.trainer.sft_trainer",
)  # fmt: skip
_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Client:
    """A connection: of a worker that only wants the server to live, or of one process and of who waits for it."""

    connection: socket.socket
    pid: int = 0


@dataclass
class Server:
    listener: socket.socket
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    clients: dict[int, Client] = field(default_factory=dict)  # by file descriptor

    def serve(self) -> None:
        """Until the last client has gone."""
        wake, woken = os.pipe()
        for end in (wake, woken):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector.register(wake, selectors.EVENT_READ)
        self.selector.register(self.listener, selectors.EVENT_READ)
        began = False
        while self.clients or not began:
            for key, _ in self.selector.select():
                if key.fd == wake:
                    with suppress(BlockingIOError):
                        os.read(wake, 4096)
                    self._reap()
                elif key.fd == self.listener.fileno():
                    connection, _ = self.listener.accept()
                    self.clients[connection.fileno()] = Client(connection)
                    self.selector.register(connection, selectors.EVENT_READ)
                    began = True
                elif key.fd in self.clients:
                    self._serve(self.clients[key.fd])

    def _serve(self, client: Client) -> None:
        try:
            data, streams, _, _ = socket.recv_fds(client.connection, _REQUEST_BYTES, 3)
        except OSError:
            data, streams = b"", []
        if data:
            client.pid = self._fork(json.loads(data), streams)
            for stream in streams:
                os.close(stream)
            client.connection.send(json.dumps({"pid": client.pid}).encode())
            return
        if client.pid:  # nobody waits for it any more
            with suppress(ProcessLookupError):
                os.kill(client.pid, signal.SIGKILL)
        self._forget(client)

    def _fork(self, request: dict[str, Any], streams: list[int]) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            run_in_this_process(
                request["module"],
                request["arguments"],
                environment=request["environment"],
                directory=Path(request["directory"]),
                streams=streams,
                new_session=request["new_session"],
                prepare=lambda: die_with(parent),
            )
        return pid

    def _reap(self) -> None:
        """Tells those who wait how their process ended; orphans of killed processes are ours to bury, too."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for client in [client for client in self.clients.values() if client.pid == pid]:
                client.pid = 0
                answer = {"status": status, "cpu_s": usage.ru_utime + usage.ru_stime}
                with suppress(OSError):
                    client.connection.send(json.dumps(answer).encode())

    def _forget(self, client: Client) -> None:
        self.selector.unregister(client.connection)
        del self.clients[client.connection.fileno()]
        client.connection.close()


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    subprocess.Popen = ForkingPopen  # type: ignore[misc]  # in all that is forked from here
    for module in PRELOADED:
        importlib.import_module(module)
    # It reads the source of every module, to name a function in messages that nobody sees: seconds of torchrun's start.
    dynamic_rendezvous.get_method_name = lambda depth=2: ""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    gc.collect()
    gc.freeze()
    os.chdir(ROOT)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(directory / "socket"))
        listener.listen(64)
        Server(listener).serve()
    shutil.rmtree(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
