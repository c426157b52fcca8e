"""An SGLang server of the actor's own, as a child process on loopback.

Without CUDA, SGLang's plain torch path runs, with the two packages of ``actor/engine/stand_ins`` on the server's path.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections import deque
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from actor.engine.errors import EngineError, EngineLost
from actor.engine.readiness import is_ready
from common.config import Config
from common.gpus import has_cuda, visible_gpus
from common.nccl import set_nccl_defaults
from common.net.ports import reserve_port
from common.process import FatalError
from common.progress import Activity

_READY_POLL_S = 0.25
_STOP_S = 2  # after each of the two signals
_MOST_ADAPTERS = 8  # in one batch, the frozen weights among them; SGLang's own default
_LINE = 120  # characters of its newest line that are shown while it starts
_STAND_INS = Path(__file__).parent / "stand_ins"
_CPU_FLAGS: dict[str, Any] = {
    "device": "cpu",
    "attention-backend": "torch_native",
    "sampling-backend": "pytorch",
    "grammar-backend": "none",
    "max-total-tokens": 32768,
    "max-running-requests": 64,
    "mem-fraction-static": 0.3,
    "sleep-on-idle": True,  # otherwise an idle scheduler spins, on a core that other processes need
}


class EngineProcess:
    """An SGLang server as a child process. The constructor starts it; ``stop`` ends it with all its processes.

    Args:
        config: the whole configuration, of which ``model``, ``actor`` and ``run.seed`` are read.
        name: of the actor. It is part of the sampling seed, so that the engines of one run sample differently.
        log_path: the file to which the server's output is appended. Its last lines are part of every error.

    Raises:
        FatalError: ``actor.engine_port`` is taken, or a GPU that this process was given cannot be used.
    """

    def __init__(self, config: Config, name: str, log_path: Path) -> None:
        on_gpu = has_cuda()
        # Held until ``stop``: the server listens only once it has imported everything, which takes a while.
        self._reserved_port = _reserve(config.actor.engine_port)
        port = self._reserved_port.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = log_path
        flags: dict[str, Any] = {
            "model-path": config.model.path,
            "host": "127.0.0.1",
            "port": port,
            "dtype": config.model.dtype,
            "weight-version": "0",
            "random-seed": (config.run.seed + zlib.crc32(name.encode())) % 2**31,
            "skip-tokenizer-init": True,
            **(_gpu_flags(config) if on_gpu else _CPU_FLAGS),
            **(adapter_flags(config) if config.lora.sends_adapters else {}),
            **{name.replace("_", "-"): value for name, value in config.actor.engine_args.items()},
        }
        command = [sys.executable, "-m", "actor.engine.guard", sys.executable, "-m", "sglang.launch_server"]
        for name, value in flags.items():
            if value is not False:
                values = value if isinstance(value, list) else [] if value is True else [value]
                command += [f"--{name}", *map(str, values)]
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=_environment(on_gpu, with_adapters=config.lora.sends_adapters),
                stdin=subprocess.PIPE,  # the guard kills the server when this end is closed, by whatever ends the actor
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupt in the terminal reaches the actor alone, which stops the server
            )

    def check(self) -> None:
        """Returns at once if the server is running.

        Raises:
            EngineLost: the server has ended.
        """
        code = self._process.poll()
        if code is not None:
            raise EngineLost(f"the engine ended with code {code}; the end of {self.log_path}:\n{self.last_lines()}")

    def last_lines(self, count: int = 15) -> str:
        """The last ``count`` lines of the server's output, indented."""
        with self.log_path.open(errors="replace") as lines:
            return "".join(f"  | {line.rstrip()}\n" for line in deque(lines, maxlen=count))

    def _newest_line(self) -> str:
        lines = self.last_lines(5).splitlines()
        told = [line.removeprefix("  | ").strip() for line in lines if line.removeprefix("  | ").strip()]
        return f"{self.log_path.name}: {told[-1][:_LINE] if told else 'nothing yet'}"

    async def wait_until_ready(self, http: aiohttp.ClientSession, timeout_s: float) -> None:
        """Waits until the server is ready to generate, at most ``timeout_s`` seconds.

        Raises:
            EngineError: the server has ended, or was not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        with Activity("actor", "starting the engine", detail=self._newest_line):
            while time.monotonic() < deadline:
                self.check()
                if await is_ready(self.url, http):
                    return
                await asyncio.sleep(_READY_POLL_S)
            raise EngineError(f"the engine was not ready after {timeout_s:.0f} s; its last lines:\n{self.last_lines()}")

    def kill(self) -> None:
        """Kills the server and its processes at once, as a crash would; ``stop`` is still needed.

        Raises:
            EngineLost: it has ended already.
        """
        self.check()
        os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ends the server and its processes. Blocks for at most 4 seconds; one that is stopped is killed at once."""
        self._reserved_port.close()
        for kind in (signal.SIGKILL,) if self._is_stopped() else (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, kind)
                self._process.wait(timeout=_STOP_S)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _is_stopped(self) -> bool:
        """Whether the guard or the server is stopped (SIGSTOP), so that it cannot end when it is asked to."""
        try:
            guard = psutil.Process(self._process.pid)
            return any(one.status() == psutil.STATUS_STOPPED for one in (guard, *guard.children()))
        except psutil.NoSuchProcess:
            return False


def _gpu_flags(config: Config) -> dict[str, Any]:
    """CUDA graphs for as many answers as the actor has in flight at once, beyond which SGLang decodes far slower."""
    return {"cuda-graph-max-bs-decode": config.actor.groups_in_flight * config.router.rollouts}


def adapter_flags(config: Config) -> dict[str, Any]:
    """The flags with which a server loads LoRA adapters of this configuration.

    In one batch there may be answers of every version that can be alive, S + 2 of them, and the frozen weights take a
    place of their own. Answers of more versions wait for each other.
    """
    flags = {
        "enable-lora": True,
        "max-lora-rank": config.lora.rank,
        "lora-target-modules": sorted(config.lora.targets),
        "max-loras-per-batch": min(config.learner.staleness + 3, _MOST_ADAPTERS),
    }
    return flags if visible_gpus() else {**flags, "lora-backend": "torch_native"}


def _environment(on_gpu: bool, *, with_adapters: bool) -> dict[str, str]:
    environment = dict(os.environ)
    set_nccl_defaults(environment)
    # While it starts, SGLang asks its own HTTP address, and would do so through a proxy that does not lead back here.
    spared = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if spared != "*":
        environment["no_proxy"] = environment["NO_PROXY"] = ",".join(filter(None, [spared, "127.0.0.1", "localhost"]))
    if not on_gpu:
        # The stand-ins replace packages that exist for CUDA alone. The server gets one thread, because more would
        # compete with the other processes on a machine without GPUs.
        path = [str(_STAND_INS), *filter(None, [environment.get("PYTHONPATH")])]
        environment.update(
            SGLANG_USE_CPU_ENGINE="1", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(path)
        )
        if with_adapters:
            environment["LRPO_PAGEABLE_MEMORY"] = "1"  # for actor/engine/stand_ins/sgl_kernel
    return environment


def _reserve(port: int) -> socket.socket:
    try:
        return reserve_port(port)
    except OSError:
        raise FatalError(
            f"actor.engine_port = {port} is taken on this machine; choose another, or 0 for a free one"
        ) from None
