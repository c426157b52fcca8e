"""An SGLang server of the actor's own, on loopback: started, watched, and ended; or one found where it runs already.

Without CUDA its plain torch path runs, with the two packages of ``actor/engine/stand_ins`` on the server's path.
"""

from __future__ import annotations

import asyncio
import logging
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

from actor.engine.client import Engine, EngineError
from actor.engine.fleet import Routed, workers
from common.config import Config
from common.gpus import has_cuda
from common.net.ports import reserve_port
from common.process import FatalError, die_with_parent

log = logging.getLogger("actor.engine")

_STAND_INS = Path(__file__).parent / "stand_ins"
_CPU_FLAGS: dict[str, Any] = {
    "device": "cpu",
    "attention-backend": "torch_native",
    "sampling-backend": "pytorch",
    "grammar-backend": "none",
    "max-total-tokens": 32768,
    "max-running-requests": 64,
    "mem-fraction-static": 0.3,
    "sleep-on-idle": True,  # an idle scheduler would spin, on a core that others need
}


class EngineProcess:
    """An SGLang server as a child: started, watched, and ended with all its processes.

    Args:
        config: the whole configuration; ``model`` and ``actor`` are read.
        name: of the actor; engines of one run sample from different streams.
        log_path: where its output goes; the last lines are part of any error.
    """

    def __init__(self, config: Config, name: str, log_path: Path) -> None:
        self._reserved = _reserve(config.actor.engine_port)  # the server listens when it has imported everything
        port = self._reserved.getsockname()[1]
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
            **({} if has_cuda() else _CPU_FLAGS),
            **{name.replace("_", "-"): value for name, value in config.actor.engine_args.items()},
        }
        command = [sys.executable, "-m", "sglang.launch_server"]
        for name, value in flags.items():
            if value is not False:
                command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupt in the terminal is for the actor, which then ends the server
                preexec_fn=die_with_parent,
            )

    def check(self) -> None:
        """
        Raises:
            EngineError: the server has ended; with its last lines.
        """
        code = self._process.poll()
        if code is not None:
            raise EngineError(f"the engine ended with code {code}; the end of {self.log_path}:\n{self.last_lines()}")

    def last_lines(self, count: int = 15) -> str:
        with self.log_path.open(errors="replace") as lines:
            return "".join(f"  | {line.rstrip()}\n" for line in deque(lines, maxlen=count))

    async def ready(self, session: aiohttp.ClientSession, timeout_s: float) -> None:
        """Waits until the server answers.

        Raises:
            EngineError: it ended, or did not answer within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.check()
            if await _answers(self.url, session):
                return
            await asyncio.sleep(0.25)
        raise EngineError(f"the engine was not ready after {timeout_s:.0f} s; its last lines:\n{self.last_lines()}")

    def stop(self) -> None:
        self._reserved.close()
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, kind)
                self._process.wait(timeout=2)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


def client() -> aiohttp.ClientSession:
    """Drops an idle connection before the server does, after 5 s: a request sent into one that closes fails."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2))


async def start(config: Config, name: str, session: aiohttp.ClientSession) -> Engine:
    """The engine of actor ``name``, ready to generate: a child process, or the one at ``actor.engine_url``.

    Raises:
        EngineError: it does not start, or nobody answers at ``actor.engine_url``.
    """
    url, process = config.actor.engine_url.rstrip("/"), None
    try:
        if not url:
            process = EngineProcess(config, name, config.run.dir / "logs" / f"engine-{name}.log")
            await process.ready(session, config.actor.start_timeout_s)
        settings = config.actor.request_timeout_s, config.sync.pause
        if process is None and (behind := await workers(url, session)):
            engine: Engine = Routed(behind, url, session, *settings)
        elif process is None and not await _answers(url, session):
            raise EngineError(f"no SGLang server answers at actor.engine_url = {url}")
        else:
            engine = Engine(process.url if process else url, session, *settings, process)
        await engine.recover(config.sync.timeout_s)
    except BaseException:
        if process is not None:
            process.stop()
        raise
    log.info("engine of actor %s is ready at %s", name, engine.url)
    return engine


async def _answers(url: str, session: aiohttp.ClientSession) -> bool:
    """Whether a server is ready to generate; before 0.5.20 there is no /ready, and /model_info answers only then."""
    timeout = aiohttp.ClientTimeout(total=5)
    try:
        async with session.get(url + "/ready", timeout=timeout) as response:
            if response.status != 404:
                return response.status == 200
        async with session.get(url + "/model_info", timeout=timeout) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    if not has_cuda():
        # The stand-ins shadow packages that exist for CUDA alone; one thread, as two fight over a busy machine.
        path = [str(_STAND_INS), *filter(None, [environment.get("PYTHONPATH")])]
        environment.update(
            SGLANG_USE_CPU_ENGINE="1", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(path)
        )
    return environment


def _reserve(port: int) -> socket.socket:
    try:
        return reserve_port(port)
    except OSError:
        raise FatalError(
            f"actor.engine_port = {port} is taken on this machine; choose another, or 0 for a free one"
        ) from None
