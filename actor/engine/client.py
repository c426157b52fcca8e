"""The HTTP client of one SGLang server: generation, weight updates, and the server's own gauges.

Written for SGLang 0.5.17 to 0.5.23. Its versions are told apart by what they answer (``Engine.recover``).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import aiohttp
import numpy as np
from msgspec.structs import asdict

from actor.engine.adapters import LoadedAdapter
from actor.engine.checkpoint_shapes import read_checkpoint_shapes
from actor.engine.errors import EngineError, EngineLost, EngineReplaced, RequestRefused
from actor.engine.generation import NEUTRAL_SAMPLING, Generation, read_generation, sampling_params
from actor.engine.labels import ForeignWeights, WeightLabels
from actor.engine.nccl import describe_nccl_difference
from common import wire
from common.process import FatalError
from common.threads import call_in_thread

log = logging.getLogger("actor.engine")

_DRAIN_POLL_S = 0.05
_GAUGES_TIMEOUT_S = 5
_READY_TIMEOUT_S = 5
_CHECKPOINT_SHARE = 0.5  # of the deadline for reading a checkpoint's shapes: the learner waits meanwhile
_UNREACHABLE_RANKS = {"pp_size": "pipeline", "dp_size": "data"}  # of /server_info
_REFUSED = (400, 413, 422)  # HTTP status of a request that cannot be served, this time or any other


class Engine:
    """The HTTP client of one SGLang server.

    Args:
        url: of the server, as in ``http://127.0.0.1:PORT``.
        http: the HTTP session, made on the event loop that uses this client.
        request_timeout_s: deadline of a generation call in seconds, pauses for weight updates included.
        labels: of the weights that this actor gives to the engine; by default new ones.
        pause_mode: what a weight update does to answers in flight: "retract", "in_place" or "drain", see
            ``sync.pause``. ``recover`` replaces "retract" by "drain" where the server cannot retract safely.
    """

    def __init__(
        self,
        url: str,
        http: aiohttp.ClientSession,
        request_timeout_s: float,
        pause_mode: str,
        labels: WeightLabels | None = None,
    ) -> None:
        self.url = url
        self.labels = labels or WeightLabels()
        self.pause_mode = pause_mode
        self.version = 0  # policy version of the weights that the server holds
        self.adapter: LoadedAdapter | None = None  # that new requests use; then versions are those of adapters
        self.ranks = 1  # size of its tensor-parallel group
        self.samples_by_seed = False  # it draws the tokens of an answer by the seed that comes with the request
        self._http = http
        self._request_timeout_s = request_timeout_s
        self._accepts_requests = asyncio.Event()  # cleared while a drain waits for the answers in flight
        self._accepts_requests.set()
        self._running = 0  # generation calls under way
        self._pauses = 0  # so far

    async def call(self, route: str, body: dict[str, Any] | None, timeout_s: float, *, missing_ok: bool = False) -> Any:
        """Posts ``body`` to a route of the server, or gets the route if ``body`` is None.

        Waits for the answer, at most ``timeout_s`` seconds.

        Returns:
            The decoded JSON answer, or its text if it is not JSON. None if the server does not have the route and
            ``missing_ok`` is set.

        Raises:
            EngineLost: nothing listens at the address any more.
            RequestRefused: ``/generate`` says that the request cannot be served.
            EngineError: there was no answer in time, the status is not 200, or the answer says ``success: false``.
        """
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            method = "GET" if body is None else "POST"
            async with self._http.request(method, self.url + route, json=body, timeout=timeout) as response:
                if response.status == 404 and missing_ok:
                    return None
                text = await response.text()
                if response.status != 200:
                    refused = route == "/generate" and response.status in _REFUSED
                    kind = RequestRefused if refused else EngineError
                    raise kind(f"{route}: status {response.status}: {text[:500]}")
                answer = await response.json() if response.content_type == "application/json" else text
        except (aiohttp.ClientError, TimeoutError) as error:
            told = f"{route}: {type(error).__name__} {error} after at most {timeout_s:.0f} s"
            if isinstance(error, aiohttp.ClientConnectionError) and await self._is_gone():
                raise EngineLost(f"{told}; nothing listens at {self.url} any more") from None
            raise EngineError(told) from None
        if isinstance(answer, dict) and answer.get("success") is False:
            raise EngineError(f"{route}: {answer.get('message', '')[:500]}")
        return answer

    async def wait_until_accepting(self) -> None:
        """Returns when ``generate`` would send its request at once, and not wait for a drain to end."""
        await self._accepts_requests.wait()

    async def generate(
        self, prompts: list[list[int]], sampling: dict[str, Any], draws: object = ""
    ) -> list[Generation]:
        """Generates one answer to each prompt.

        Waits while the engine drains for a weight update, then for the answers, at most ``request_timeout_s`` seconds.
        The key of the prefix cache contains the policy version, so that a cache never outlives its weights. With an
        adapter all tokens are of its version, whatever the server says.

        Args:
            prompts: token ids of each prompt.
            sampling: ``sampling_params`` of SGLang. What is not among them is sent as if it did not exist: the whole
                distribution is sampled from, whatever the server prefers.
            draws: tells these draws from others where the server samples by seeds (``samples_by_seed``): the seed of
                answer k is made of it and of k, so the same draws with the same weights give the same answers.

        Raises:
            EngineReplaced: an answer was made with weights that this actor has not given to the engine, or with older
                ones than it had when it was asked.
            RequestRefused, EngineLost: see ``call``.
            EngineError: the call failed, or an answer was aborted.
        """
        await self.wait_until_accepting()
        adapter = self.adapter
        version, oldest = self.version if adapter is None else adapter.version, self.labels.arrived
        body = {
            "input_ids": prompts,
            "sampling_params": sampling_params(sampling, len(prompts), draws if self.samples_by_seed else None),
            "return_logprob": True,
            "extra_key": self.labels.newest or str(version),
            **_naming(adapter),
        }
        self._running += 1
        pauses = self._pauses
        try:
            answers = await self._ask(body, self._request_timeout_s, adapter)
        finally:
            self._running -= 1
        read = partial(
            read_generation,
            labels=self.labels if adapter is None else None,
            version=version,
            oldest=oldest,
            pauses=self._pauses - pauses,
        )
        try:
            return [read(answer) for answer in answers]
        except ForeignWeights as problem:
            raise EngineReplaced(f"the engine at {self.url} {problem}") from None

    async def check_identity(self, timeout_s: float) -> None:
        """Checks that the server still has weights that this actor gave it. Waits at most ``timeout_s`` seconds.

        Returns at once if it does not say which weights it has, or does not answer in time.

        Raises:
            EngineReplaced: it has other ones. An engine that its own supervisor has started again has.
            EngineLost: nothing listens at the address any more.
        """
        oldest = self.labels.arrived
        try:
            info = await self.call("/model_info", None, timeout_s)
            if "weight_version" in info:
                self.labels.version_of(str(info["weight_version"]), oldest)
        except ForeignWeights as problem:
            raise EngineReplaced(f"the engine at {self.url} {problem}") from None
        except EngineLost:
            raise
        except EngineError as error:
            log.debug("the engine at %s does not say which weights it has: %s", self.url, error)

    async def check_members(self) -> None:
        """Checks that no other engine can have made the answers that have come so far; with one engine, none can.

        An actor calls this after each answer and before it submits the answer. An engine that has come to a router
        meanwhile may have made it with weights of its own.

        Raises:
            EngineReplaced: another engine can have made them.
        """

    async def read_gauges(self) -> dict[str, float]:
        """Reads how busy the server is. Waits at most 5 seconds.

        Returns:
            ``usage`` of the KV cache in [0, 1], and the numbers of requests ``running`` and ``waiting``. Empty if the
            server does not say, or one of them is not finite. None is below 0: an engine whose cache is counted anew
            may say so for a moment, and the learner takes no such figure.
        """
        timeout = aiohttp.ClientTimeout(total=_GAUGES_TIMEOUT_S)
        try:
            async with self._http.get(self.url + "/v1/loads", timeout=timeout) as response:
                ranks = (await response.json())["loads"] if response.status == 200 else []
                usages = [float(rank["token_usage"]) for rank in ranks]
                counts = {
                    name: float(sum(rank[f"num_{name}_reqs"] for rank in ranks)) for name in ("running", "waiting")
                }
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            return {}
        finite = all(map(math.isfinite, [*usages, *counts.values()]))
        if not (usages and finite):
            return {}
        return {name: max(0.0, value) for name, value in {"usage": max(usages), **counts}.items()}

    async def measure_probe_error(
        self, probe: wire.Probe, timeout_s: float, adapter: LoadedAdapter | None = None
    ) -> float:
        """Compares the server's log-probabilities of the probe with the learner's. Waits at most ``timeout_s`` seconds.

        Args:
            adapter: with which the server computes; None for its own weights alone.

        Returns:
            The mean absolute difference in nats per token.

        Raises:
            EngineReplaced: the engine says that it has other weights than the newest that it was given.
            EngineError: the call failed, or its answer has not one log-probability for each token but the first.
        """
        body = {
            "input_ids": probe.ids.tolist(),
            "sampling_params": NEUTRAL_SAMPLING | {"temperature": 0.0, "max_new_tokens": 1},
            "return_logprob": True,
            "logprob_start_len": 0,
            "extra_key": f"probe {self.labels.newest}",
            **_naming(adapter),
        }
        oldest = self.labels.arrived
        answer = await self._ask(body, timeout_s, adapter)
        try:
            self.labels.version_of(str(answer["meta_info"].get("weight_version", self.labels.newest)), oldest)
        except ForeignWeights as problem:
            raise EngineReplaced(f"the engine at {self.url} {problem}") from None
        logprobs = [entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]]
        if len(logprobs) != len(probe.logprobs):
            raise EngineError(f"/generate: {len(logprobs)} log-probabilities of a probe of {len(probe.ids)} tokens")
        return float(np.abs(np.array(logprobs, np.float64) - probe.logprobs).mean())

    async def load_adapter(self, adapter: LoadedAdapter, timeout_s: float) -> None:
        """Loads an adapter from its directory, while the server generates. Waits at most ``timeout_s`` seconds.

        Raises:
            EngineError: the call failed.
            FatalError: the server was not started for adapters.
        """
        try:
            body = {"lora_name": adapter.name, "lora_path": str(adapter.directory)}
            await self.call("/load_lora_adapter", body, timeout_s)
        except EngineError as error:
            if "LoRA is not enabled" in str(error):
                raise FatalError(
                    f"the engine at {self.url} was not started for adapters: start it with --enable-lora, "
                    "--max-lora-rank and --lora-target-modules, or set lora.sync = 'merged'"
                ) from None
            raise

    async def unload_adapter(self, adapter: LoadedAdapter, timeout_s: float) -> None:
        """Unloads an adapter that no request uses. Waits at most ``timeout_s`` seconds.

        The server waits for requests that use it, and loads no other one meanwhile, for ever if need be.

        Raises:
            EngineError: the call failed.
        """
        await self.call("/unload_lora_adapter", {"lora_name": adapter.name}, timeout_s)

    async def join_group(self, join: wire.Join) -> None:
        """Enters the learner's weight group. Waits at most ``join.timeout_s`` seconds for each of two calls.

        Raises:
            EngineError: the group did not form.
            FatalError: the engine has other settings of NCCL than the learner, with which the first broadcast hangs.
        """
        if join.backend == "nccl":
            await self.check_nccl(join.nccl, join.timeout_s)
        body = {
            "master_address": join.host, "master_port": join.port, "rank_offset": 1, "world_size": join.world,
            "group_name": join.group, "backend": join.backend,
        }  # fmt: skip
        await self.call("/init_weights_update_group", body, join.timeout_s)

    async def check_nccl(self, learner: dict[str, str], timeout_s: float) -> None:
        """Compares the engine's settings of NCCL with the learner's, as far as they can be seen from here.

        Raises:
            EngineError: the server did not answer within ``timeout_s`` seconds.
            FatalError: they differ.
        """
        info = await self.call("/server_info", None, timeout_s)
        if difference := describe_nccl_difference(self.url, info, learner):
            raise FatalError(
                f"the engine at {self.url} cannot get weights by NCCL: {difference}; start every process of the run "
                "with the same settings, or set --sync.transport shared or disk"
            )

    async def leave_group(self, group: str, timeout_s: float) -> None:
        """Leaves a weight group; does nothing where the server has no such route. Waits at most ``timeout_s`` seconds.

        Raises:
            EngineError: the call failed.
        """
        await self.call("/destroy_weights_update_group", {"group_name": group}, timeout_s, missing_ok=True)

    async def pause(self, timeout_s: float, drain_s: float) -> float:
        """Stops generation, so that the weights can be replaced.

        ``retract`` puts running requests back into the server's queue, ``in_place`` freezes them, and ``drain`` first
        gives them ``drain_s`` seconds to end. Each of the up to three calls waits at most ``timeout_s`` seconds.

        Returns:
            Since when nothing is generated, in seconds of the monotonic clock.

        Raises:
            EngineError: a call failed.
        """
        self._pauses += 1
        if self.pause_mode == "drain":
            self._accepts_requests.clear()
            deadline = time.monotonic() + drain_s
            while self._running and time.monotonic() < deadline:
                await asyncio.sleep(_DRAIN_POLL_S)
        stopped = time.monotonic()
        if self.pause_mode == "drain" and not self._running:
            # The server frees a request a moment after it has sent the answer.
            await self.call(f"/flush_cache?timeout={timeout_s / 2:.1f}", {}, timeout_s)
        mode = "in_place" if self.pause_mode == "in_place" else "retract"
        await self.call("/pause_generation", {"mode": mode}, timeout_s)
        await self._flush_cache(timeout_s)
        return stopped

    async def receive_weights(self, order: wire.Receive) -> None:
        """Has the paused server take new weights from a file, from shared memory or from the weight group.

        Each call waits at most ``order.timeout_s`` seconds. The cache is flushed by a call of its own, because an
        implicit flush that fails ends the server in some versions of SGLang.

        Raises:
            EngineError: a call failed. The weights of the server are then unknown.
        """
        version = self.labels.make(order.version)
        if order.path:
            body: dict[str, Any] = {"model_path": order.path, "flush_cache": False, "weight_version": version}
            await self.call("/update_weights_from_disk", body, order.timeout_s)
        else:
            begun = await self.call("/begin_weight_update", {}, order.timeout_s, missing_ok=True)
            for number, bucket in enumerate(order.buckets):
                if order.handles:
                    route, body = "/update_weights_from_tensor", _shared_memory_body(bucket, order.handles[number])
                else:
                    route, body = "/update_weights_from_distributed", {**asdict(bucket), "group_name": order.group}
                    body["load_format"] = "flattened_bucket"
                body["flush_cache"] = False
                if number == len(order.buckets) - 1:
                    body["weight_version"] = version
                await self.call(route, body, order.timeout_s)
            if begun is not None:
                await self.call("/end_weight_update", {}, order.timeout_s)
        await self._flush_cache(order.timeout_s)
        self.version = order.version
        self.labels.complete()

    async def resume(self, timeout_s: float) -> None:
        """Continues generation after a pause. Waits at most ``timeout_s`` seconds.

        Raises:
            EngineError: the call failed.
        """
        self._accepts_requests.set()
        await self.call("/continue_generation", {}, timeout_s)

    async def let_go(self, end_s: float, resume_s: float) -> None:
        """Has a server generate on whose weight update was cut off, as it may be the last call that it gets from here.

        Waits at most ``end_s`` seconds for the update to be ended, which may fail, and ``resume_s`` for the rest.

        Raises:
            EngineError: it could not be told to go on.
        """
        with suppress(EngineError):  # the server refuses where there is no update to end
            await self.call("/end_weight_update", {}, end_s, missing_ok=True)
        await self.resume(resume_s)

    async def recover(self, timeout_s: float) -> None:
        """Ends what an actor that died in a weight update left behind: an open update and a pause.

        Also learns the size of the tensor-parallel group, whether the server samples by seeds, and whether it can
        retract answers safely. Each of the three calls waits at most ``timeout_s`` seconds.

        Raises:
            EngineError: a call failed.
            FatalError: the engine is parallel in a way in which weight updates cannot reach all of its ranks.
        """
        is_old = False
        with suppress(EngineError):  # the server refuses where there is no update to end
            is_old = await self.call("/end_weight_update", {}, timeout_s, missing_ok=True) is None
        if is_old and self.pause_mode == "retract":
            log.warning(
                "the engine at %s is an SGLang before 0.5.21, which keeps the caches of retracted answers: weight "
                "updates wait until answers in flight have ended, as with sync.pause = drain",
                self.url,
            )
            self.pause_mode = "drain"
        info = await self.call("/server_info", None, timeout_s)
        for name, kind in _UNREACHABLE_RANKS.items():
            if int(info.get(name) or 1) > 1:
                raise FatalError(
                    f"the engine at {self.url} is {kind}-parallel ({name} = {info[name]}), and weight updates reach "
                    "tensor-parallel ranks alone: start it with --tp instead, or one engine for each actor"
                )
        self.ranks = int(info["tp_size"])
        self.samples_by_seed = bool(info.get("enable_deterministic_inference"))
        await self.resume(timeout_s)

    async def read_checkpoint_shapes(self, timeout_s: float) -> dict[str, list[int]]:
        """Name -> shape of the tensors in the checkpoint that the server started from; empty if it cannot be read.

        Waits for the server at most ``timeout_s`` seconds, and for the files at most half as long: they may lie on a
        network file system that is slow or hangs.

        Raises:
            EngineError: the server does not say which checkpoint it is.
        """
        path = str((await self.call("/model_info", None, timeout_s))["model_path"])
        patience_s = _CHECKPOINT_SHARE * timeout_s
        try:
            return await call_in_thread(partial(read_checkpoint_shapes, path), patience_s)
        except TimeoutError:
            log.warning("the files of the checkpoint %s could not be read within %.0f s", path, patience_s)
            return {}

    async def _ask(self, body: dict[str, Any], timeout_s: float, adapter: LoadedAdapter | None) -> Any:
        """Calls ``/generate``, whose answers ``adapter`` makes.

        Raises:
            EngineReplaced: the engine does not have the adapter that this actor gave it.
            RequestRefused, EngineLost, EngineError: see ``call``.
        """
        with nullcontext() if adapter is None else adapter.used():
            try:
                return await self.call("/generate", body, timeout_s)
            except RequestRefused as error:
                if adapter is not None and adapter.name in str(error):
                    raise EngineReplaced(f"the engine at {self.url} has lost its adapter: {error}") from None
                raise

    async def _is_gone(self) -> bool:
        """Whether nothing listens at the address. A server that is too busy to answer is there."""
        timeout = aiohttp.ClientTimeout(total=_READY_TIMEOUT_S)
        try:
            async with self._http.get(self.url + "/model_info", timeout=timeout):
                return False
        except aiohttp.ClientConnectorError:
            return True
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _flush_cache(self, timeout_s: float) -> None:
        """Empties the caches, unless requests are frozen in place: those keep theirs.

        The call has no ``?timeout=``, with which the server would wait for the retracted requests to end.
        """
        if self.pause_mode != "in_place":
            await self.call("/flush_cache", {}, timeout_s)


def _shared_memory_body(bucket: wire.Bucket, handles: list[wire.SharedMemoryHandle]) -> dict[str, Any]:
    # Imported here because torch takes seconds to import, and nothing else in this file needs it.
    from actor.engine.shared_memory import pickle_shared_tensors

    return {"serialized_named_tensors": [pickle_shared_tensors(bucket, handle) for handle in handles]}


def _naming(adapter: LoadedAdapter | None) -> dict[str, str]:
    """How a request asks for an adapter."""
    return {} if adapter is None else {"lora_path": adapter.name}
