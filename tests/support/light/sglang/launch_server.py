"""SGLang's HTTP API for reinforcement learning, as of 0.5.21, on a small Qwen3 model computed anew for each token.

``python -m sglang.launch_server --model-path M --port P``, with SGLang's other flags ignored. It starts in seconds and
takes real weights, so that what is around an engine can be tested hundreds of times.
``LIGHT_TOKEN_S`` is the time of a token of a batch, ``LRPO_LIGHT_TOKEN_S`` what each answer adds to it.
``LIGHT_TRACE`` names a file whose lines ``{"lengths", "seconds"}``
are replayed request after request, with random tokens in place of the model's; it is read anew each time.
With ``LIGHT_OLD`` it is like an SGLang before 0.5.19.
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
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from aiohttp import web
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import Backend, GroupName, _new_process_group_helper, _world


class Model:
    """A dense Qwen3 with tied embeddings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape = json.loads((path / "config.json").read_text())
        self.weights = load_file(path / "model.safetensors")
        self.version = "0"

    def logits(self, ids: list[list[int]]) -> Tensor:
        """[n, longest, vocabulary]; what is behind the end of a sequence means nothing."""
        shape, w = self.shape, self.weights
        heads, kv, width = shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"]
        theta = shape.get("rope_theta") or shape["rope_parameters"]["rope_theta"]
        longest = max(map(len, ids))
        x = w["model.embed_tokens.weight"][torch.tensor([row + [0] * (longest - len(row)) for row in ids])].float()
        angles = torch.outer(torch.arange(longest), theta ** (-torch.arange(0, width, 2) / width)).repeat(1, 2)
        for n in range(shape["num_hidden_layers"]):
            layer = {k.split(f"layers.{n}.")[1]: v.float() for k, v in w.items() if f"model.layers.{n}." in k}
            h = self._norm(x, layer["input_layernorm.weight"])
            q, k, v = (
                (h @ layer[f"self_attn.{p}_proj.weight"].T).unflatten(-1, (-1, width)).transpose(1, 2) for p in "qkv"
            )
            q = self._rotate(self._norm(q, layer["self_attn.q_norm.weight"]), angles)
            k = self._rotate(self._norm(k, layer["self_attn.k_norm.weight"]), angles)
            k, v = (t.repeat_interleave(heads // kv, 1) for t in (k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + mixed @ layer["self_attn.o_proj.weight"].T
            h = self._norm(x, layer["post_attention_layernorm.weight"])
            gate = F.silu(h @ layer["mlp.gate_proj.weight"].T) * (h @ layer["mlp.up_proj.weight"].T)
            x = x + gate @ layer["mlp.down_proj.weight"].T
        return self._norm(x, w["model.norm.weight"].float()) @ w["model.embed_tokens.weight"].float().T

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.shape["rms_norm_eps"])

    @staticmethod
    def _rotate(x: Tensor, angles: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()


class Engine:
    def __init__(self, model: Model, seed: int) -> None:
        self.model = model
        self.generator = torch.Generator().manual_seed(seed)
        self.token_s = float(os.environ.get("LIGHT_TOKEN_S", "0"))
        self.engine_token_s = float(os.environ.get("LRPO_LIGHT_TOKEN_S", "0"))
        self.trace = Path(os.environ["LIGHT_TRACE"]) if "LIGHT_TRACE" in os.environ else None
        self.requests = itertools.count(seed)
        self.going = asyncio.Event()
        self.going.set()
        self.mode = ""
        self.running = 0
        self.old = "LIGHT_OLD" in os.environ
        self.open = self.old
        self.groups: dict[str, Any] = {}
        self.calls: list[str] = []
        self.tokenizer: Any = None  # for chats alone

    async def generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        prompts: list[list[int]] = body["input_ids"]
        alone = isinstance(prompts[0], int)
        self.running += 1
        try:
            answers = await self._answers([prompts] if alone else prompts, body)  # type: ignore[list-item]
        finally:
            self.running -= 1
        return web.json_response(answers[0] if alone else answers)

    async def chat(self, request: web.Request) -> web.Response:
        from transformers import AutoTokenizer

        body = await request.json()
        self.tokenizer = self.tokenizer or AutoTokenizer.from_pretrained(self.model.path)
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        sampling = {"temperature": body["temperature"], "max_new_tokens": body["max_tokens"]}
        sampling["stop_token_ids"] = [self.tokenizer.eos_token_id]
        prompt = self.tokenizer.encode(text, add_special_tokens=False)
        answer = (await self._answers([prompt], {"sampling_params": sampling}))[0]
        said = self.tokenizer.decode(answer["output_ids"], skip_special_tokens=True)
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": said}}]})

    async def _answers(self, prompts: list[list[int]], body: dict[str, Any]) -> list[dict[str, Any]]:
        sampling = body["sampling_params"]
        temperature, stops = sampling.get("temperature", 1.0), set(sampling.get("stop_token_ids", []))
        stops = stops if self.trace is None else set()
        rows = [list(prompt) for prompt in prompts]
        told: list[list[Any]] = [[] for _ in prompts]
        versions: list[list[str]] = [[] for _ in prompts]
        ended = [""] * len(prompts)
        await self.going.wait()
        scored = []
        if body.get("logprob_start_len") == 0:
            logp = self.model.logits(rows).log_softmax(-1)
            for row, table in zip(rows, logp, strict=True):
                known = table[range(len(row) - 1), row[1:]].tolist()
                scored.append([[value, token, None] for value, token in zip([None, *known], row, strict=True)])
        lengths, token_s = self._pace(len(prompts), sampling["max_new_tokens"])
        due = time.monotonic()
        for position in range(max(lengths)):
            due += token_s + self.engine_token_s * len(rows) * self.running
            await asyncio.sleep(due - time.monotonic())
            if not self.going.is_set():
                due -= time.monotonic()
                await self.going.wait()
                due += time.monotonic()
            live = [n for n in range(len(rows)) if not ended[n] and position < lengths[n]]
            if not live:
                break
            if self.trace is None:
                ends = [len(rows[n]) - 1 for n in live]
                tables = self.model.logits([rows[n] for n in live])[range(len(live)), ends]
            else:
                tables = torch.zeros(len(live), self.model.shape["vocab_size"])
            for n, table in zip(live, tables, strict=True):
                logp = (table / (temperature or 1.0)).log_softmax(-1)
                token = int(
                    torch.multinomial(logp.exp(), 1, generator=self.generator) if temperature else logp.argmax()
                )
                rows[n].append(token)
                told[n].append([float(logp[token]), token, None])
                versions[n].append(self.model.version)
                ended[n] = "stop" if token in stops else ""
        return [self._answer(*parts) for parts in zip(told, versions, ended, scored or [[]] * len(rows), strict=True)]

    def _pace(self, count: int, most: int) -> tuple[list[int], float]:
        """Most tokens of each answer, and seconds a token."""
        if self.trace is None:
            return [most] * count, self.token_s
        lines = self.trace.read_text().splitlines()
        line = json.loads(lines[next(self.requests) % len(lines)])
        lengths = [min(line["lengths"][n % len(line["lengths"])], most) for n in range(count)]
        return lengths, line["seconds"] / max(line["lengths"])

    def _answer(self, told: list[Any], versions: list[str], ended: str, scored: list[Any]) -> dict[str, Any]:
        spans = [{"version": v, "start": n, "end": n + 1} for n, v in enumerate(versions)]
        finish = {"type": ended or "length"}
        meta: dict[str, Any] = {"finish_reason": finish, "weight_version": self.model.version}
        meta |= {} if self.old else {"weight_versions": spans}
        meta |= {"output_token_logprobs": told, "input_token_logprobs": scored}
        return {"output_ids": [token for _, token, _ in told], "meta_info": meta}

    async def pause(self, request: web.Request) -> web.Response:
        self.mode = (await request.json()).get("mode", "abort")
        self.going.clear()
        return web.json_response({"status": "ok"})

    async def resume(self, request: web.Request) -> web.Response:
        self.mode = ""
        self.going.set()
        return web.json_response({"status": "ok"})

    async def flush(self, request: web.Request) -> web.Response:
        if self.running and (self.old or self.mode != "retract"):
            return web.Response(status=400, text="there are running requests")
        return web.Response(text="Cache flushed.")

    async def begin(self, request: web.Request) -> web.Response:
        return self._turn(not self.open, True)

    async def end(self, request: web.Request) -> web.Response:
        return self._turn(self.open, False)

    def _turn(self, right: bool, opened: bool) -> web.Response:
        self.open = opened if right else self.open
        return web.json_response({"success": right, "message": ""}, status=200 if right else 400)

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
        return web.json_response({"success": group is not None, "message": ""}, status=200 if group else 400)

    async def receive(self, request: web.Request) -> web.Response:
        if not self.open:
            return web.json_response({"success": False, "message": "begin first"}, status=400)
        return await self._blocking(self._receive, await request.json())

    def _receive(self, body: dict[str, Any]) -> None:
        assert not body["flush_cache"] and body["load_format"] == "flattened_bucket"
        kinds = [getattr(torch, dtype) for dtype in body["dtypes"]]
        sizes = [torch.Size(shape).numel() * kind.itemsize for shape, kind in zip(body["shapes"], kinds, strict=True)]
        flat = torch.empty(sum(sizes), dtype=torch.uint8)
        options = dist.BroadcastOptions()
        options.rootRank = 0
        self.groups[body["group_name"]].broadcast([flat], options).wait()
        for name, piece, kind, shape in zip(body["names"], flat.split(sizes), kinds, body["shapes"], strict=True):
            if name in self.model.weights:  # as SGLang: an unknown name is ignored, and that is a success
                self.model.weights[name] = piece.view(kind).view(shape)
        self.model.version = body.get("weight_version") or self.model.version

    async def borrow(self, request: web.Request) -> web.Response:
        if not self.open:
            return web.json_response({"success": False, "message": "begin first"}, status=400)
        return await self._blocking(self._borrow, await request.json())

    def _borrow(self, body: dict[str, Any]) -> None:
        for name, tensor in pickle.loads(base64.b64decode(body["serialized_named_tensors"][0])):
            self.model.weights[name] = tensor.clone()
        self.model.version = body.get("weight_version") or self.model.version

    async def read(self, request: web.Request) -> web.Response:
        return await self._blocking(self._read, await request.json())

    def _read(self, body: dict[str, Any]) -> None:
        for file in Path(body["model_path"]).glob("*.safetensors"):
            self.model.weights.update(load_file(file))
        self.model.version = body["weight_version"]

    async def _blocking(self, call: Any, body: dict[str, Any]) -> web.Response:
        try:
            await asyncio.to_thread(call, body)
        except (RuntimeError, KeyError, ValueError) as error:
            return web.json_response({"success": False, "message": str(error)}, status=400)
        return web.json_response({"success": True, "message": ""})

    async def info(self, request: web.Request) -> web.Response:
        return web.json_response({"model_path": str(self.model.path), "weight_version": self.model.version})

    async def loads(self, request: web.Request) -> web.Response:
        rank = {"dp_rank": 0, "token_usage": 0.0, "num_running_reqs": self.running, "num_waiting_reqs": 0}
        return web.json_response({"loads": [rank]})

    async def server(self, request: web.Request) -> web.Response:
        return web.json_response({"tp_size": 1})

    async def ready(self, request: web.Request) -> web.Response:
        return web.Response()


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--random-seed", type=int, default=0)
    arguments, _ = parser.parse_known_args()
    torch.set_num_threads(1)
    app = web.Application(client_max_size=2**30)

    async def start(app: web.Application) -> None:
        engine = Engine(Model(arguments.model_path), arguments.random_seed)
        posts = {
            "/generate": engine.generate, "/v1/chat/completions": engine.chat,
            "/pause_generation": engine.pause, "/continue_generation": engine.resume,
            "/flush_cache": engine.flush, "/begin_weight_update": engine.begin, "/end_weight_update": engine.end,
            "/init_weights_update_group": engine.join, "/destroy_weights_update_group": engine.leave,
            "/update_weights_from_distributed": engine.receive, "/update_weights_from_disk": engine.read,
            "/update_weights_from_tensor": engine.borrow,
        }  # fmt: skip
        for path, handler in posts.items():
            if not (engine.old and path in ("/begin_weight_update", "/end_weight_update")):
                app.router.add_post(path, handler)
        app.router.add_get("/ready", engine.ready)
        app.router.add_get("/health", engine.ready)
        app.router.add_get("/v1/loads", engine.loads)
        app.router.add_get("/model_info", engine.info)
        app.router.add_get("/server_info", engine.server)

    app.on_startup.append(start)
    web.run_app(app, host="127.0.0.1", port=arguments.port, print=None, handle_signals=True)


if __name__ == "__main__":
    main()
