"""SGLang's HTTP API for reinforcement learning, as of 0.5.21, on a small Qwen3 model computed anew for each token.

``python -m sglang.launch_server --model-path M --port P``, with most of SGLang's other flags ignored. It starts in
seconds and takes real weights, so that what is around an engine can be tested hundreds of times; that it does what the
product needs as SGLang does it is shown by ``tests/actor/test_engine_contract.py``.

``LIGHT_TOKEN_S`` is the time of a token of all answers that run, ``LRPO_LIGHT_TOKEN_S`` what each answer adds to it.
``LIGHT_START_S`` is by how much longer it takes to start.
``LIGHT_STOP_AT`` is a route and a number, as in "/pause_generation 1": at that request of the route the process group
stops (SIGSTOP), as a machine that is suspended does.
``LIGHT_TRACE`` names a file whose lines ``{"lengths", "seconds"}`` are replayed request after request, with random
tokens in place of the model's and without limits of memory; it is read anew each time.
With ``LIGHT_OLD`` it is like an SGLang before 0.5.19.

One difference stays: after a pause ``in_place`` an answer goes on exactly as the new weights would have it, because
there are no cached keys and values of the old ones.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import ctypes
import itertools
import json
import os
import pickle
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from aiohttp import web
from safetensors.torch import load_file
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import Backend, GroupName, _new_process_group_helper, _world

from sglang.memory import Answer, Memory
from sglang.model import Model, WrongShape

_TURN_S = 0.01
_requests: Counter[str] = Counter()  # so far, by route


class Generator:
    """Makes a token of every answer that runs, again and again.

    Args:
        by_seeds: as SGLang's deterministic inference: tokens are drawn by the seed of the request and their place, and
            what else runs makes no difference.
    """

    def __init__(self, model: Model, memory: Memory, seed: int, by_seeds: bool) -> None:
        self.model, self.memory, self._by_seeds = model, memory, by_seeds
        self._random = torch.Generator().manual_seed(seed)
        self._token_s = float(os.environ.get("LIGHT_TOKEN_S", "0"))
        self._answer_s = float(os.environ.get("LRPO_LIGHT_TOKEN_S", "0"))
        self._sampling: dict[int, dict[str, Any]] = {}
        self._ended: dict[int, asyncio.Event] = {}
        self._wake = asyncio.Event()
        self.going = asyncio.Event()
        self.going.set()

    async def answer(self, answer: Answer, sampling: dict[str, Any]) -> None:
        """Returns when the answer has ended; cancelled, it takes the answer out."""
        ended = asyncio.Event()
        self._sampling[id(answer)], self._ended[id(answer)] = sampling, ended
        self.memory.add(answer)
        self._wake.set()
        try:
            await ended.wait()
        finally:
            self.memory.remove(answer)
            del self._sampling[id(answer)], self._ended[id(answer)]

    def end(self, answer: Answer, **why: object) -> None:
        answer.finish = why
        self.memory.remove(answer)
        self._ended[id(answer)].set()

    async def run(self) -> None:
        due = time.monotonic()
        while True:
            if not self.going.is_set() or not (self.memory.running or self.memory.waiting):
                self._wake.clear()
                await (self._wake if self.going.is_set() else self.going).wait()
                due = time.monotonic()
                continue
            self.memory.admit()
            due = max(due + self._token_s + self._answer_s * len(self.memory.running), time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            if self.going.is_set():
                self.memory.make_room()
                self._step(list(self.memory.running))

    def _step(self, answers: list[Answer]) -> None:
        if not answers:
            return
        if self._by_seeds:
            for answer in answers:
                self._random.manual_seed(self._sampling[id(answer)].get("sampling_seed", 42) * 1_000 + len(answer.ids))
                self._step_with(answer.adapter, [answer])
            return
        for adapter in {answer.adapter for answer in answers}:
            self._step_with(adapter, [answer for answer in answers if answer.adapter == adapter])

    def _step_with(self, adapter: str, answers: list[Answer]) -> None:
        rows = [[*answer.prompt, *answer.ids] for answer in answers]
        tables = self.model.logits(rows, adapter)[range(len(rows)), [len(row) - 1 for row in rows]]
        for answer, table in zip(answers, tables, strict=True):
            sampling = self._sampling[id(answer)]
            temperature = sampling.get("temperature", 1.0)
            logp = (table / (temperature or 1.0)).log_softmax(-1)
            token = int(torch.multinomial(logp.exp(), 1, generator=self._random) if temperature else logp.argmax())
            answer.ids.append(token)
            answer.logprobs.append(float(logp[token]))
            answer.versions.append(self.model.version)
            if answer.asked:
                answer.chosen.append([[float(logp[one]), one, None] for one in answer.asked])
            ends = {*sampling.get("stop_token_ids", []), *self.model.ends}
            if token in ends and not sampling.get("ignore_eos"):
                self.end(answer, type="stop", matched=token)
            elif len(answer.ids) >= answer.limit:
                self.end(answer, type="length", length=answer.limit)


class Engine:
    """The routes."""

    def __init__(self, model: Model, memory: Memory, seed: int, *, with_adapters: bool, by_seeds: bool) -> None:
        self.model, self.memory, self.by_seeds = model, memory, by_seeds
        self.generator = Generator(model, memory, seed, by_seeds)
        self.trace = Path(os.environ["LIGHT_TRACE"]) if "LIGHT_TRACE" in os.environ else None
        self.requests = itertools.count(seed)
        self.mode = ""
        self.old = "LIGHT_OLD" in os.environ
        self.open = self.old  # for weights
        self.groups: dict[str, Any] = {}
        self.by_request: dict[str, list[Answer]] = {}
        self.with_adapters = with_adapters
        self.adapter_lock = asyncio.Lock()
        self.tokenizer: Any = None  # for chats alone

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        prompts: list[list[int]] = body["input_ids"]
        alone = bool(prompts) and isinstance(prompts[0], int)
        rows: list[list[int]] = [prompts] if alone else prompts  # type: ignore[list-item]
        given = body["sampling_params"]
        body["sampling_params"] = given if isinstance(given, list) else [given] * len(rows)
        for row, sampling in zip(rows, body["sampling_params"], strict=True):
            if complaint := self._complaint(row, sampling):
                return _refused(complaint)
        if (name := body.get("lora_path") or "") and name not in self.model.adapters:
            return _refused(f"Got LoRA adapter that has never been loaded: {name}")
        answers = await self._answers(rows, body)
        return web.json_response(answers[0] if alone else answers)

    def _longest(self) -> int:
        """Tokens of a prompt and its answer: as many as fit into the context and the memory, but one."""
        return int(min(self.model.context, self.memory.tokens)) - 1

    def _complaint(self, prompt: list[int], sampling: dict[str, Any]) -> str:
        context, most, longest = self.model.context, sampling.get("max_new_tokens", 128), self._longest() - 5
        if len(prompt) >= context:
            return f"The input ({len(prompt)} tokens) is longer than the model's context length ({context} tokens)."
        if len(prompt) + most > context:
            return f"Requested token count exceeds the model's maximum context length of {context} tokens."
        if len(prompt) >= longest:
            return f"Input length ({len(prompt)} tokens) exceeds the maximum allowed length ({longest} tokens)."
        return ""

    async def chat(self, request: web.Request) -> web.Response:
        from transformers import AutoTokenizer

        body = await request.json()
        self.tokenizer = self.tokenizer or AutoTokenizer.from_pretrained(self.model.path)
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        sampling = {"temperature": body["temperature"], "max_new_tokens": body["max_tokens"]}
        prompt = self.tokenizer.encode(text, add_special_tokens=False)
        answer = (await self._answers([prompt], {"sampling_params": [sampling]}))[0]
        said = self.tokenizer.decode(answer["output_ids"], skip_special_tokens=True)
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": said}}]})

    async def _answers(self, prompts: list[list[int]], body: dict[str, Any]) -> list[dict[str, Any]]:
        own: list[dict[str, Any]] = body["sampling_params"]  # of each prompt
        adapter, asked = body.get("lora_path") or "", body.get("token_ids_logprob") or []
        answers = [
            Answer(prompt, min(sampling.get("max_new_tokens", 128), self._longest() - len(prompt) - 1), adapter, asked)
            for prompt, sampling in zip(prompts, own, strict=True)
        ]
        name = body.get("rid") or str(id(answers))
        self.by_request[name] = answers
        try:
            await self.generator.going.wait()
            scored = self._scores(prompts, adapter) if body.get("logprob_start_len") == 0 else [[] for _ in prompts]
            if self.trace is not None:
                await self._replay(answers)
            else:
                async with asyncio.TaskGroup() as tasks:
                    for answer, sampling in zip(answers, own, strict=True):
                        tasks.create_task(self.generator.answer(answer, sampling))
        finally:
            del self.by_request[name]
        return [self._reply(*parts) for parts in zip(answers, scored, strict=True)]

    def _scores(self, prompts: list[list[int]], adapter: str) -> list[list[Any]]:
        """Log-probabilities of the prompts' own tokens, of which the first has none."""
        logp = self.model.logits(prompts, adapter).log_softmax(-1)
        found = []
        for prompt, table in zip(prompts, logp, strict=True):
            known = table[range(len(prompt) - 1), prompt[1:]].tolist()
            found.append([[value, token, None] for value, token in zip([None, *known], prompt, strict=True)])
        return found

    async def _replay(self, answers: list[Answer]) -> None:
        """Random tokens at the pace of the next line of the trace; what a pause takes does not count."""
        assert self.trace is not None
        lines = self.trace.read_text().splitlines()
        line = json.loads(lines[next(self.requests) % len(lines)])
        lengths = [min(line["lengths"][n % len(line["lengths"])], a.limit) for n, a in enumerate(answers)]
        token_s, due = line["seconds"] / max(line["lengths"]), time.monotonic()
        size = self.model.shape["vocab_size"]
        for position in range(max(lengths)):
            due += token_s
            await asyncio.sleep(due - time.monotonic())
            if not self.generator.going.is_set():
                due -= time.monotonic()
                await self.generator.going.wait()
                due += time.monotonic()
            for answer, length in zip(answers, lengths, strict=True):
                if position < length:
                    answer.ids.append(int(torch.randint(0, size, ())))
                    answer.logprobs.append(-float(torch.tensor(size).log()))
                    answer.versions.append(self.model.version)
        for answer in answers:
            answer.finish = {"type": "length", "length": len(answer.ids)}

    def _reply(self, answer: Answer, scored: list[Any]) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "finish_reason": answer.finish,
            "prompt_tokens": len(answer.prompt),
            "completion_tokens": len(answer.ids),
            "weight_version": self.model.version,
            "num_retractions": answer.retractions,
            "output_token_logprobs": [[*pair, None] for pair in zip(answer.logprobs, answer.ids, strict=True)],
            "input_token_logprobs": scored,
            "output_token_ids_logprobs": answer.chosen,
        }
        if not self.old:
            meta["weight_versions"] = _spans(answer.versions)
        return {"output_ids": answer.ids, "meta_info": meta}

    async def abort(self, request: web.Request) -> web.Response:
        body = await request.json()
        for name, answers in self.by_request.items():
            if body.get("abort_all") or (body.get("rid") and name.startswith(body["rid"])):
                self._abort(answers)
        return web.Response()

    def _abort(self, answers: list[Answer]) -> None:
        for answer in answers:
            if not answer.finish:
                self.generator.end(answer, type="abort", message="Abort requested")

    async def pause(self, request: web.Request) -> web.Response:
        self.mode = (await request.json()).get("mode", "abort")
        self.generator.going.clear()
        if self.mode == "retract":
            self.memory.retract_all()
        elif self.mode == "abort":
            for answers in self.by_request.values():
                self._abort(answers)
        return web.json_response({"message": "Generation paused successfully.", "status": "ok"})

    async def resume(self, request: web.Request) -> web.Response:
        self.mode = ""
        self.generator.going.set()
        return web.json_response({"message": "Generation continued successfully.", "status": "ok"})

    async def flush(self, request: web.Request) -> web.Response:
        idle = not self.memory.running and not (self.memory.waiting and (self.old or self.mode != "retract"))
        return web.Response(text="Cache flushed.") if idle else web.Response(status=400, text="requests are running")

    async def begin(self, request: web.Request) -> web.Response:
        await self._quiet()
        return self._turn(not self.open, True)

    async def end(self, request: web.Request) -> web.Response:
        return self._turn(self.open, False)

    def _turn(self, right: bool, opened: bool) -> web.Response:
        self.open = opened if right else self.open
        return _done("" if right else "a weight update is open" if opened else "no weight update is open")

    async def _quiet(self) -> None:
        """New weights wait for the answers that run, unless they are paused."""
        while self.memory.running and self.generator.going.is_set():
            await asyncio.sleep(_TURN_S)

    async def load_adapter(self, request: web.Request) -> web.Response:
        if not self.with_adapters:
            return _adapter_done("LoRA is not enabled. Please set `--enable-lora` to enable LoRA.")
        body = await request.json()
        async with self.adapter_lock:
            if body["lora_name"] in self.model.adapters:
                return _adapter_done(f"LoRA with name {body['lora_name']} already exists.")
            try:
                await asyncio.to_thread(self.model.load_adapter, body["lora_name"], Path(body["lora_path"]))
            except OSError as error:
                return _adapter_done(str(error))
        return _adapter_done("")

    async def unload_adapter(self, request: web.Request) -> web.Response:
        """Waits for the answers that use it, and no other adapter is loaded meanwhile."""
        name = (await request.json())["lora_name"]
        async with self.adapter_lock:
            if name not in self.model.adapters:
                return _adapter_done(f"LoRA with name {name} does not exist.")
            while any(answer.adapter == name for answers in self.by_request.values() for answer in answers):
                await asyncio.sleep(_TURN_S)
            del self.model.adapters[name]
        return _adapter_done("")

    async def join(self, request: web.Request) -> web.Response:
        return await self._blocking(self._join, await request.json())

    def _join(self, body: dict[str, Any]) -> None:
        store = TCPStore(body["master_address"], body["master_port"], wait_for_workers=False)
        name, world = body["group_name"], body["world_size"]
        group, _ = _new_process_group_helper(
            world, body["rank_offset"], [], Backend(body["backend"]), PrefixStore(name, store),
            group_name=GroupName(name), backend_options=None, timeout=timedelta(minutes=30),
        )  # fmt: skip
        _world.pg_group_ranks[group] = {rank: rank for rank in range(world)}
        self.groups[name] = group

    async def leave(self, request: web.Request) -> web.Response:
        group = self.groups.pop((await request.json())["group_name"], None)
        if group is not None:
            dist.destroy_process_group(group)
        return _done("" if group is not None else "there is no such group")

    async def receive(self, request: web.Request) -> web.Response:
        return await self._update(self._receive, await request.json())

    def _receive(self, body: dict[str, Any]) -> None:
        assert not body["flush_cache"] and body["load_format"] == "flattened_bucket"
        kinds = [getattr(torch, dtype) for dtype in body["dtypes"]]
        sizes = [torch.Size(shape).numel() * kind.itemsize for shape, kind in zip(body["shapes"], kinds, strict=True)]
        flat = torch.empty(sum(sizes), dtype=torch.uint8)
        options = dist.BroadcastOptions()
        options.rootRank = 0
        self.groups[body["group_name"]].broadcast([flat], options).wait()
        for name, piece, kind, shape in zip(body["names"], flat.split(sizes), kinds, body["shapes"], strict=True):
            self.model.replace(name, piece.view(kind).view(shape))

    async def borrow(self, request: web.Request) -> web.Response:
        return await self._update(self._borrow, await request.json())

    def _borrow(self, body: dict[str, Any]) -> None:
        for name, tensor in pickle.loads(base64.b64decode(body["serialized_named_tensors"][0])):
            self.model.replace(name, tensor)

    async def _update(self, take: Callable[[dict[str, Any]], None], body: dict[str, Any]) -> web.Response:
        """A tensor of another shape ends the server, as it ends SGLang's."""
        if not self.open:
            return _done("begin first")
        try:
            return await self._blocking(take, body)
        except WrongShape:
            traceback.print_exc()
            os._exit(1)

    async def read(self, request: web.Request) -> web.Response:
        await self._quiet()
        return await self._blocking(self._read, await request.json())

    def _read(self, body: dict[str, Any]) -> None:
        path = Path(body["model_path"])
        files = list(path.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"no weights in {path}")
        for file in files:
            for name, value in load_file(file).items():
                self.model.replace(name, value)
        self.model.path = path

    async def _blocking(self, call: Callable[[dict[str, Any]], None], body: dict[str, Any]) -> web.Response:
        try:
            await asyncio.to_thread(call, body)
        except (RuntimeError, KeyError, AttributeError, OSError) as error:
            return _done(str(error) or repr(error))
        self.model.version = body.get("weight_version") or self.model.version
        return _done("")

    async def info(self, request: web.Request) -> web.Response:
        return web.json_response({"model_path": str(self.model.path), "weight_version": self.model.version})

    async def loads(self, request: web.Request) -> web.Response:
        rank = {
            "dp_rank": 0, "token_usage": self.memory.used() / self.memory.tokens,
            "num_running_reqs": len(self.memory.running), "num_waiting_reqs": len(self.memory.waiting),
        }  # fmt: skip
        return web.json_response({"loads": [rank]})

    async def server(self, request: web.Request) -> web.Response:
        return web.json_response({"tp_size": 1, "enable_deterministic_inference": self.by_seeds})

    async def ready(self, request: web.Request) -> web.Response:
        """A paused server is not ready, as since SGLang 0.5.20."""
        return web.Response(status=200 if self.generator.going.is_set() else 503)

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()


@web.middleware
async def _stop_at(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """See ``LIGHT_STOP_AT``."""
    route, _, number = os.environ.get("LIGHT_STOP_AT", "").partition(" ")
    if request.path == route:
        _requests[route] += 1
        if _requests[route] == int(number):
            os.killpg(0, signal.SIGSTOP)
    answer: web.StreamResponse = await handler(request)
    return answer


def _spans(versions: list[str]) -> list[dict[str, Any]]:
    """The stretches of tokens that the same weights made."""
    found, start = [], 0
    for version, tokens in itertools.groupby(versions):
        end = start + len(list(tokens))
        found.append({"version": version, "start": start, "end": end})
        start = end
    return found


def _done(complaint: str) -> web.Response:
    return web.json_response({"success": not complaint, "message": complaint}, status=400 if complaint else 200)


def _adapter_done(complaint: str) -> web.Response:
    return web.json_response(
        {"success": not complaint, "error_message": complaint, "loaded_adapters": {}}, status=400 if complaint else 200
    )


def _refused(complaint: str) -> web.Response:
    return web.json_response({"error": {"message": complaint}}, status=400)


def _end_with_its_error(generator: asyncio.Task[None]) -> None:
    """An engine that makes no tokens any more must not look alive."""
    if not generator.cancelled():
        traceback.print_exception(generator.exception())
        os._exit(1)


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--random-seed", type=int, default=0)
    parser.add_argument("--max-total-tokens", type=int, default=32768)
    parser.add_argument("--max-running-requests", type=int, default=64)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--enable-deterministic-inference", action="store_true")
    arguments, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    time.sleep(float(os.environ.get("LIGHT_START_S", "0")))
    app = web.Application(client_max_size=2**30, middlewares=[_stop_at])
    tasks = []

    async def start(app: web.Application) -> None:
        memory = Memory(arguments.max_total_tokens, arguments.max_running_requests)
        engine = Engine(
            Model(arguments.model_path), memory, arguments.random_seed, with_adapters=arguments.enable_lora,
            by_seeds=arguments.enable_deterministic_inference,
        )  # fmt: skip
        posts = {
            "/generate": engine.generate, "/v1/chat/completions": engine.chat, "/abort_request": engine.abort,
            "/pause_generation": engine.pause, "/continue_generation": engine.resume,
            "/flush_cache": engine.flush, "/begin_weight_update": engine.begin, "/end_weight_update": engine.end,
            "/init_weights_update_group": engine.join, "/destroy_weights_update_group": engine.leave,
            "/update_weights_from_distributed": engine.receive, "/update_weights_from_disk": engine.read,
            "/update_weights_from_tensor": engine.borrow,
            "/load_lora_adapter": engine.load_adapter, "/unload_lora_adapter": engine.unload_adapter,
        }  # fmt: skip
        for path, handler in posts.items():
            if not (engine.old and path in ("/begin_weight_update", "/end_weight_update")):
                app.router.add_post(path, handler)
        app.router.add_get("/ready", engine.ready)
        app.router.add_get("/health", engine.health)
        app.router.add_get("/v1/loads", engine.loads)
        app.router.add_get("/model_info", engine.info)
        app.router.add_get("/server_info", engine.server)
        tasks.append(asyncio.create_task(engine.generator.run()))
        tasks[0].add_done_callback(_end_with_its_error)

    app.on_startup.append(start)
    # A client that hangs up takes its answers back.
    web.run_app(
        app, host="127.0.0.1", port=arguments.port, print=None, handle_signals=True, handler_cancellation=True
    )  # fmt: skip


if __name__ == "__main__":
    main()
