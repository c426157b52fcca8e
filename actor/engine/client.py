"""An SGLang server, owned as a child process on loopback or attached to, and its HTTP API for reinforcement learning.

Made for SGLang 0.5.17 to 0.5.23, told apart by what they answer; without CUDA its plain torch path runs, with the two
packages of ``actor/engine/stand_ins`` on the server's path.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
from huggingface_hub import snapshot_download
from msgspec.structs import asdict
from numpy.typing import NDArray
from safetensors import safe_open

from common import wire

if TYPE_CHECKING:
    from actor.engine.server import EngineProcess

log = logging.getLogger("actor.engine")

_TURN_S = 0.05
_NOT_SENT = ("lm_head.weight", "rotary_emb.inv_freq")


class EngineError(RuntimeError):
    """The engine ended, or refused or failed a call; the message holds its last lines, or route, status and answer."""


@dataclass(frozen=True)
class Generation:
    """A finished answer: ids, log-probabilities at the sampling temperature and policy versions, each [tokens]."""

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    versions: NDArray[np.int32]
    truncated: bool
    retracted: bool  # by the engine, for memory


class Engine:
    """HTTP client of one SGLang server.

    Args:
        url: ``http://127.0.0.1:PORT``.
        session: made on the loop that uses it.
        request_timeout_s: of a generation call, pauses included.
        mode: what an update makes of answers in flight, as ``sync.pause``; ``recover`` sees what the engine can do.
        process: the server, if it is ours.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        request_timeout_s: float,
        mode: str,
        process: EngineProcess | None = None,
    ) -> None:
        self.url, self.mode, self.process = url, mode, process
        self._session = session
        self._request_timeout_s = request_timeout_s
        self.version = 0  # of the weights it holds
        self._open = asyncio.Event()  # answers may begin
        self._open.set()
        self._running = self._pauses = 0
        self.ranks = 1  # of its tensor-parallel group

    async def call(self, route: str, body: dict[str, Any] | None, timeout_s: float, *, missing_ok: bool = False) -> Any:
        """Posts ``body``, or gets if there is none.

        Raises:
            EngineError: no answer within ``timeout_s``, a status other than 200, or ``success: false``.
        """
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            method = "GET" if body is None else "POST"
            async with self._session.request(method, self.url + route, json=body, timeout=timeout) as response:
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
        await self._open.wait()
        version = self.version
        body = {
            "input_ids": prompts,
            "sampling_params": sampling,
            "return_logprob": True,
            "extra_key": str(version),
        }
        self._running += 1
        pauses = self._pauses
        try:
            answers = await self.call("/generate", body, self._request_timeout_s)
        finally:
            self._running -= 1
        return [_generation(answer, version, self._pauses - pauses) for answer in answers]

    async def load(self) -> dict[str, float]:
        """Use of its KV memory in [0, 1], requests that run and that wait; empty if it does not tell."""
        try:
            async with self._session.get(self.url + "/v1/loads", timeout=aiohttp.ClientTimeout(total=5)) as response:
                ranks = (await response.json())["loads"] if response.status == 200 else []
                usage = max((float(rank["token_usage"]) for rank in ranks), default=0.0)
                counts = {
                    name: float(sum(rank[f"num_{name}_reqs"] for rank in ranks)) for name in ("running", "waiting")
                }
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            return {}
        return {"usage": usage, **counts} if ranks and math.isfinite(usage) else {}

    async def probe(self, probe: wire.Probe, timeout_s: float) -> float:
        """Mean absolute difference, nats, between its log-probabilities of the probe and the learner's."""
        body = {
            "input_ids": probe.ids.tolist(),
            "sampling_params": {"temperature": 0.0, "max_new_tokens": 1},
            "return_logprob": True,
            "logprob_start_len": 0,
            "extra_key": f"probe {self.version}",
        }
        answer = await self.call("/generate", body, timeout_s)
        told = [entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]]
        if len(told) != len(probe.logprobs):
            raise EngineError(f"/generate: {len(told)} log-probabilities of a probe of {len(probe.ids)} tokens")
        return float(np.abs(np.array(told, np.float64) - probe.logprobs).mean())

    async def join(self, join: wire.Join) -> None:
        body = {
            "master_address": join.host, "master_port": join.port, "rank_offset": 1, "world_size": join.world,
            "group_name": join.group, "backend": join.backend,
        }  # fmt: skip
        await self.call("/init_weights_update_group", body, join.timeout_s)

    async def leave(self, group: str, timeout_s: float) -> None:
        await self.call("/destroy_weights_update_group", {"group_name": group}, timeout_s, missing_ok=True)

    async def pause(self, timeout_s: float, drain_s: float) -> None:
        """Stops generating; ``retract`` puts running requests back, ``drain`` gives them ``drain_s`` to end first."""
        self._pauses += 1
        if self.mode == "drain":
            self._open.clear()
            deadline = time.monotonic() + drain_s
            while self._running and time.monotonic() < deadline:
                await asyncio.sleep(_TURN_S)
            if not self._running:  # an answer arrives a moment before its request is gone
                await self.call(f"/flush_cache?timeout={timeout_s / 2:.1f}", {}, timeout_s)
        await self.call("/pause_generation", {"mode": "in_place" if self.mode == "in_place" else "retract"}, timeout_s)
        await self._flush(timeout_s)

    async def receive(self, order: wire.Receive) -> None:
        """Takes the weights. The caches are flushed by an explicit call: a failing implicit one kills some versions."""
        version = str(order.version)
        if order.path:
            body: dict[str, Any] = {"model_path": order.path, "flush_cache": False, "weight_version": version}
            await self.call("/update_weights_from_disk", body, order.timeout_s)
        else:
            begun = await self.call("/begin_weight_update", {}, order.timeout_s, missing_ok=True)
            for number, bucket in enumerate(order.buckets):
                if order.loans:
                    route, body = "/update_weights_from_tensor", _borrowed(bucket, order.loans[number])
                else:
                    route, body = "/update_weights_from_distributed", {**asdict(bucket), "group_name": order.group}
                    body["load_format"] = "flattened_bucket"
                body["flush_cache"] = False
                if number == len(order.buckets) - 1:
                    body["weight_version"] = version
                await self.call(route, body, order.timeout_s)
            if begun is not None:
                await self.call("/end_weight_update", {}, order.timeout_s)
        await self._flush(order.timeout_s)
        self.version = order.version

    async def resume(self, timeout_s: float) -> None:
        self._open.set()
        await self.call("/continue_generation", {}, timeout_s)

    async def recover(self, timeout_s: float) -> None:
        """Undoes what an actor that died in an update left behind, an open update and a pause; sees what it can do."""
        old = False
        with suppress(EngineError):  # there may be no update to end
            old = await self.call("/end_weight_update", {}, timeout_s, missing_ok=True) is None
        if old and self.mode == "retract":
            log.warning(
                "the engine at %s is an SGLang before 0.5.21, which keeps the caches of retracted answers: weight "
                "updates wait until answers in flight have ended, as with sync.pause = drain",
                self.url,
            )
            self.mode = "drain"
        self.ranks = int((await self.call("/server_info", None, timeout_s))["tp_size"])
        await self.resume(timeout_s)

    async def shapes(self, timeout_s: float) -> dict[str, list[int]]:
        """Of the tensors in the checkpoint the engine began with; empty if that cannot be read from here."""
        path = Path((await self.call("/model_info", None, timeout_s))["model_path"])
        found = {}
        with suppress(OSError):
            if not path.is_dir():
                path = Path(snapshot_download(str(path), local_files_only=True))
        for file in path.glob("*.safetensors"):
            with safe_open(file, framework="np") as tensors:
                found.update({name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()})  # noqa: SIM118
        return found

    async def _flush(self, timeout_s: float) -> None:
        """Without ``?timeout=``: with it, it would wait for the retracted requests to end."""
        if self.mode != "in_place":  # there running requests keep their caches; the prefix cache is keyed by version
            await self.call("/flush_cache", {}, timeout_s)


def differences(buckets: list[wire.Bucket], known: dict[str, list[int]]) -> str:
    """How the learner's tensors differ from those of the engine's checkpoint; empty when they do not.

    An engine ignores unknown names and calls that a success. A tied head may be in the checkpoint and is not sent.
    """
    sent = {name: shape for bucket in buckets for name, shape in zip(bucket.names, bucket.shapes, strict=True)}
    told = [f"{name} is unknown to the engine" for name in sent if name not in known]
    told += [f"{name} is not sent" for name in known if name not in sent and not name.endswith(_NOT_SENT)]
    told += [f"{n} is {s}, the engine's {known[n]}" for n, s in sent.items() if n in known and known[n] != s]
    return "; ".join(told[:3]) + (f"; and {len(told) - 3} more" if len(told) > 3 else "")


def _borrowed(bucket: wire.Bucket, loans: list[wire.Loan]) -> dict[str, Any]:
    from actor.engine.shared_memory import pickled  # torch takes seconds to import, and nothing else here needs it

    return {"serialized_named_tensors": [pickled(bucket, loan) for loan in loans]}


def _generation(answer: dict[str, Any], version_at_submit: int, pauses: int) -> Generation:
    meta = answer["meta_info"]
    finish = meta["finish_reason"]
    if finish["type"] not in ("stop", "length"):
        raise EngineError(f"/generate: ended with {finish}")
    ids = np.array(answer["output_ids"], np.int32)
    versions = np.full(len(ids), version_at_submit, np.int32)  # the oldest possible: before 0.5.19 there are no spans
    for span in meta.get("weight_versions") or []:
        versions[span["start"] : span["end"]] = int(span["version"])
    logprobs = np.array([entry[0] for entry in meta["output_token_logprobs"]], np.float32)
    retracted = meta.get("num_retractions", 0) > pauses  # each pause may put an answer back once
    return Generation(ids, logprobs, versions, finish["type"] == "length", retracted)
