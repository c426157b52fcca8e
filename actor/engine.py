"""An SGLang server, owned as a child process on loopback or attached to, and its HTTP API for reinforcement learning.

Made for SGLang 0.5.21 to 0.5.23. Only real SGLang is spoken to; without CUDA its plain torch
path runs, with the two packages of ``actor/stand_ins`` on the server's path.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

from common import wire
from common.config import Config
from common.process import FatalError, die_with_parent, has_cuda

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


class EngineError(RuntimeError):
    """The engine refused or failed a call; the message holds the route, the status and its answer."""


@dataclass(frozen=True)
class Generation:
    """A finished answer: ids, log-probabilities at the sampling temperature and policy versions, each [tokens]."""

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    versions: NDArray[np.int32]
    truncated: bool


class Engine:
    """HTTP client of one SGLang server.

    Args:
        url: ``http://127.0.0.1:PORT``.
        session: made on the loop that uses it.
        request_timeout_s: of a generation call, pauses included.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession, request_timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._request_timeout_s = request_timeout_s
        self.version = 0  # of the weights it holds

    async def post(self, route: str, body: dict[str, Any], timeout_s: float, *, missing_ok: bool = False) -> Any:
        """
        Raises:
            EngineError: no answer within ``timeout_s``, a status other than 200, or ``success: false``.
        """
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            async with self._session.post(self.url + route, json=body, timeout=timeout) as response:
                if response.status == 404 and missing_ok:
                    return None
                text = await response.text()
                if response.status != 200:
                    raise EngineError(f"{route}: status {response.status}: {text[:500]}")
                answer = await response.json() if response.content_type == "application/json" else text
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineError(f"{route}: {type(error).__name__} {error} after at most {timeout_s:.0f} s") from None
        if isinstance(answer, dict) and answer.get("success") is False:
            raise EngineError(f"{route}: {answer.get('message', '')[:500]}")
        return answer

    async def generate(self, prompts: list[list[int]], sampling: dict[str, Any]) -> list[Generation]:
        """One answer to each prompt. The prefix cache is keyed by policy version: it never outlives its weights."""
        body = {
            "input_ids": prompts,
            "sampling_params": sampling,
            "return_logprob": True,
            "extra_key": str(self.version),
        }
        version = self.version
        answers = await self.post("/generate", body, self._request_timeout_s)
        return [_generation(answer, version) for answer in answers]

    async def join(self, join: wire.Join) -> None:
        body = {
            "master_address": join.host,
            "master_port": join.port,
            "rank_offset": join.rank,
            "world_size": join.world,
            "group_name": join.group,
            "backend": join.backend,
        }
        await self.post("/init_weights_update_group", body, join.timeout_s)

    async def leave(self, group: str, timeout_s: float) -> None:
        await self.post("/destroy_weights_update_group", {"group_name": group}, timeout_s, missing_ok=True)

    async def pause(self, timeout_s: float) -> None:
        """Running requests go back to the queue; their caches are computed again under the new weights."""
        await self.post("/pause_generation", {"mode": "retract"}, timeout_s)
        await self._flush(timeout_s)

    async def receive(self, order: wire.Receive) -> None:
        """Takes the buckets. The caches are flushed by an explicit call: a failing implicit one kills some versions."""
        begun = await self.post("/begin_weight_update", {}, order.timeout_s, missing_ok=True)
        for number, bucket in enumerate(order.buckets, start=1):
            body: dict[str, Any] = {
                **bucket.model_dump(),
                "group_name": order.group,
                "load_format": "flattened_bucket",
                "flush_cache": False,
            }
            if number == len(order.buckets):
                body["weight_version"] = str(order.version)
            await self.post("/update_weights_from_distributed", body, order.timeout_s)
        if begun is not None:
            await self.post("/end_weight_update", {}, order.timeout_s)
        await self._flush(order.timeout_s)
        self.version = order.version

    async def resume(self, timeout_s: float) -> None:
        await self.post("/continue_generation", {}, timeout_s)

    async def _flush(self, timeout_s: float) -> None:
        await self.post("/flush_cache", {}, timeout_s)  # with ?timeout= it would wait for the retracted requests to end


def _generation(answer: dict[str, Any], version_at_submit: int) -> Generation:
    meta = answer["meta_info"]
    finish = meta["finish_reason"]
    if finish["type"] not in ("stop", "length"):
        raise EngineError(f"/generate: ended with {finish}")
    ids = np.array(answer["output_ids"], np.int32)
    versions = np.full(
        len(ids), version_at_submit, np.int32
    )  # engines before 0.5.19 give no spans: the oldest possible
    for span in meta.get("weight_versions") or []:
        versions[span["start"] : span["end"]] = int(span["version"])
    logprobs = np.array([entry[0] for entry in meta["output_token_logprobs"]], np.float32)
    return Generation(ids, logprobs, versions, truncated=finish["type"] == "length")


class EngineProcess:
    """An SGLang server as a child: started, watched, and ended with all its processes.

    Args:
        config: the whole configuration; ``model`` and ``actor`` are read.
        name: of the actor; engines of one run sample from different streams.
        log_path: where its output goes; the last lines are part of any error.
    """

    def __init__(self, config: Config, name: str, log_path: Path) -> None:
        port = config.actor.engine_port or _free_port()
        if not _port_is_free(port):
            raise FatalError(
                f"actor.engine_port = {port} is taken on this machine; choose another, or 0 for a free one"
            )
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
        with log_path.open("wb") as output:
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
            FatalError: the server has ended; with its last lines.
        """
        code = self._process.poll()
        if code is not None:
            raise FatalError(f"the engine ended with code {code}; the end of {self.log_path}:\n{self.last_lines()}")

    def last_lines(self, count: int = 15) -> str:
        with self.log_path.open(errors="replace") as lines:
            return "".join(f"  | {line.rstrip()}\n" for line in deque(lines, maxlen=count))

    async def ready(self, session: aiohttp.ClientSession, timeout_s: float) -> None:
        """Waits until the server answers.

        Raises:
            FatalError: it ended, or did not answer within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.check()
            if await answers(self.url, session):
                return
            await asyncio.sleep(0.25)
        raise FatalError(f"the engine was not ready after {timeout_s:.0f} s; its last lines:\n{self.last_lines()}")

    def stop(self) -> None:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, kind)
                self._process.wait(timeout=2)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


async def answers(url: str, session: aiohttp.ClientSession) -> bool:
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
