"""How fast weights reach the engines, compared with a bare broadcast of the same bytes to as many receivers.

    python -m scripts.bench.weight_sync [--json] [--engines 2] [--width 512] [--rounds 12] [--rank 16]

The learner's end publishes a Qwen3 model with random weights in float32 to real actors with the light engine of
``tests/support/light``: through gloo process groups, then through shared memory, then through files. The time includes
gathering, which is a copy here. Then the model gets LoRA adapters, and both ways to publish them follow: all weights
with the adapters added to them, through process groups, and the adapters alone, in messages.

The baseline sends one buffer with as many bytes through a process group with each receiver, all at the same time, and
nothing else. Receivers use fresh memory in each round, as SGLang does. Rounds of ours and of the baseline take turns,
so that both meet the same machine, and the medians count.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from transformers import Qwen3Config, Qwen3ForCausalLM

from common import wire
from common.config import LoraConfig, SyncConfig
from common.parent import die_with_parent
from learner.train.lora import Adapters, is_adapter, merge
from learner.weights.adapter_publisher import AdapterPublisher
from learner.weights.buckets import cut_into_buckets
from learner.weights.process_group import GroupStore, ProcessGroup, connect_to_store, form_group, start_broadcast
from learner.weights.publisher import Published, Publisher
from learner.work.server import WorkServer
from scripts.bench.support.light_engine import light_engine
from scripts.bench.table import Json, Row, run
from scripts.ops.command_line import command
from scripts.world.tokenizer import build_tokenizer

_ROOT = Path(__file__).parents[2]
_GOAL = 0.8  # share of the bare broadcast's speed that process groups must reach
_BUCKET_MB = 32
_TIMEOUT_S = 300  # of what forms and of each broadcast; the processes of both sides start meanwhile
_PROBE_S = 1  # between rounds, so that the probe of one does not take time from the next


def make_model(path: Path, width: int) -> Qwen3ForCausalLM:
    """A Qwen3 model of 8 layers with random weights and a small tokenizer, saved to ``path``.

    Args:
        width: size of the hidden state, a multiple of 64.
    """
    tokenizer = build_tokenizer(["What is it?"], ["en"], 300)
    tokenizer.save_pretrained(path)
    config = Qwen3Config(
        vocab_size=16_384, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=8, head_dim=64,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, tie_word_embeddings=True,
        initializer_range=0.1,  # so far from uniform that other weights have other log-probabilities
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(path)
    return model


class Actors:
    """Actors with the light engine, and the learner's end of the weight sync to them.

    Args:
        model: what is published.
        path: its directory, for sockets and logs as well.
        engines: number of actors.
        transport: a value of ``sync.transport``, or "adapter" for the adapters alone.
        adapters: of the model, if it has any; otherwise they are added to the weights.
    """

    def __init__(
        self, model: Qwen3ForCausalLM, path: Path, engines: int, transport: str, adapters: Adapters | None = None
    ) -> None:
        environment = {**os.environ, "PYTHONPATH": str(light_engine()), "OMP_NUM_THREADS": "1"}
        self._engines, self._adapters = engines, adapters
        address = f"ipc://{path}/queue"
        self._server = WorkServer(address, lease_timeout_s=60)
        self._publish = _publisher(self._server, model, transport, adapters)
        command = [sys.executable, "-m", "actor", "--model.path", str(path), "--model.dtype", "float32"]
        command += ["--run.dir", str(path), "--learner.address", address, "--run.languages", '["en"]']
        command += ["--reward.addresses", f'["ipc://{path}/reward"]']
        if adapters is not None and transport == "adapter":
            command += ["--lora.rank", str(adapters.config.rank)]
        else:
            command += ["--sync.transport", transport]
        self._processes = [
            subprocess.Popen(
                [*command, "--actor.name", f"a{n}"], env=environment, cwd=_ROOT, preexec_fn=die_with_parent
            )
            for n in range(engines)
        ]
        while len(self._server.members()) < engines:
            time.sleep(0.1)
        ids = torch.arange(3, 30)
        with torch.no_grad():
            logp = model(ids[None]).logits[0].log_softmax(-1)[range(len(ids) - 1), ids[1:]].numpy()
        self._probe = wire.Probe(ids=ids.numpy().astype(np.int32), logprobs=logp, tolerance=1e-3)
        self._version = 0
        self.round()  # in which the process groups form

    def round(self) -> tuple[float, float]:
        """Seconds of a round, and for how many seconds an engine did not generate in it at most."""
        if self._adapters is not None:  # what is published again under the same version and content is not loaded again
            next(iter(self._adapters.layers.values())).lora_A.data[0, 0] += 1e-6
        published = self._publish(self._version, self._probe)
        assert len(published.members) == self._engines, "an engine was lost"
        self._version += 1
        time.sleep(_PROBE_S)
        return published.seconds, published.pause_s

    def close(self) -> None:
        self._server.close()
        for process in self._processes:
            assert process.wait(30) == 0


def _publisher(
    server: WorkServer, model: Qwen3ForCausalLM, transport: str, adapters: Adapters | None
) -> Callable[[int, wire.Probe], Published]:
    """A function that publishes the model as it is under a version."""
    sync = SyncConfig(timeout_s=_TIMEOUT_S)
    if adapters is not None and transport == "adapter":
        settings = adapters.peft_config("model")
        alone = AdapterPublisher(server, sync, settings, adapters.parameters, "float32", lambda: None)
        return lambda version, probe: alone.publish(version, lambda _: adapters.gather(), probe)
    names = [name for name, _ in model.named_parameters() if not is_adapter(name)]
    layout = {name: list(model.get_parameter(name).shape) for name in names}
    buckets = cut_into_buckets(layout, "float32", _BUCKET_MB)
    publisher = Publisher(server, sync, buckets, torch.device("cpu"), lambda: None)
    layers = {} if adapters is None else adapters.layers

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name in names:
            value, layer = model.get_parameter(name).detach(), layers.get(name.removesuffix(".weight"))
            if layer is not None:
                value = merge(value, layer.lora_A.detach(), layer.lora_B.detach(), layer.scale)
            yield name, value

    return lambda version, probe: publisher.publish(version, lambda _: weights(), probe)


def _receive(port: int, name: str, size: int, rounds: int) -> None:
    """A receiver of the baseline, in a process of its own."""
    torch.set_num_threads(1)
    group = form_group("gloo", connect_to_store("127.0.0.1", port, _TIMEOUT_S), name, 2, _TIMEOUT_S, rank=1)
    for _ in range(rounds):
        _broadcast(group, torch.empty(size, dtype=torch.uint8))


def _broadcast(group: ProcessGroup, buffer: torch.Tensor) -> None:
    start_broadcast(group, buffer, _TIMEOUT_S).wait()


class BareBroadcast:
    """The baseline: ``size`` bytes to each of so many receivers."""

    def __init__(self, size: int, engines: int, rounds: int) -> None:
        store = GroupStore("127.0.0.1", 0, _TIMEOUT_S)
        context = multiprocessing.get_context("spawn")
        names = [f"bare-{n}" for n in range(engines)]
        self._receivers = [
            context.Process(target=_receive, args=(store.port, name, size, rounds + 1), daemon=True) for name in names
        ]
        for receiver in self._receivers:
            receiver.start()
        self._groups = [
            form_group("gloo", connect_to_store(store.host, store.port, _TIMEOUT_S), name, 2, _TIMEOUT_S)
            for name in names
        ]
        self._store, self._buffer = store, torch.ones(size, dtype=torch.uint8)
        self.round()

    def round(self) -> float:
        """Seconds of a round."""
        begin = time.perf_counter()
        threads = [threading.Thread(target=_broadcast, args=(group, self._buffer)) for group in self._groups]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begin

    def close(self) -> None:
        for receiver in self._receivers:
            receiver.join()


def in_turn(actors: Actors, bare: BareBroadcast | None, rounds: int) -> tuple[float, float, float]:
    """The medians of so many rounds: seconds, seconds of the longest pause, and seconds of the baseline, if any."""
    found = [(*actors.round(), bare.round() if bare is not None else 0.0) for _ in range(rounds)]
    actors.close()
    seconds, pause_s, bare_s = np.median(found, axis=0).tolist()
    return seconds, pause_s, bare_s


def measure(scratch: Path, engines: int, width: int, rounds: int, rank: int) -> list[Row]:
    torch.set_num_threads(1)
    model = make_model(scratch, width)
    size = sum(value.nbytes for value in model.parameters())
    megabytes, rows = size * engines / 1e6, [Row("bytes to each engine", size / 1e6, "MB")]
    transports = {"group": _GOAL, "shared": None, "disk": None}
    bare = BareBroadcast(size, engines, rounds * len(transports))
    for transport, goal in transports.items():
        seconds, pause_s, bare_s = in_turn(Actors(model, scratch, engines, transport), bare, rounds)
        ratio, baseline = bare_s / seconds, f"bare broadcast {megabytes / bare_s:.0f}"
        goal_text, ok = (f">= {goal}", ratio >= goal) if goal else (None, None)
        rows.append(Row(f"{transport}: to all engines", megabytes / seconds, "MB/s", baseline, ratio, goal_text, ok))
        rows.append(Row(f"{transport}: pause that generation sees", pause_s, "s"))
    bare.close()
    adapters = Adapters(model, LoraConfig(rank=rank), 0)
    for layer in adapters.layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.01)
    merged_s, pause_s, _ = in_turn(Actors(model, scratch, engines, "group", adapters), None, rounds)
    rows.append(Row("lora.sync = merged: to all engines", merged_s, "s"))
    rows.append(Row("lora.sync = merged: pause that generation sees", pause_s, "s"))
    alone_s, pause_s, _ = in_turn(Actors(model, scratch, engines, "adapter", adapters), None, rounds)
    sent, merged = 4 * adapters.parameters, f"merged {merged_s:.2f}"
    what = f"lora.sync = adapter: bytes to each engine, rank {rank}"
    rows.append(Row(what, sent / 1e6, "MB", f"merged {size / 1e6:.0f}", sent / size))
    rows.append(Row("lora.sync = adapter: to all engines", alone_s, "s", merged, alone_s / merged_s))
    rows.append(Row("lora.sync = adapter: pause that generation sees", pause_s, "s"))
    return rows


@command()
def main(
    *,
    engines: Annotated[int, typer.Option(min=1, help="Engines that receive the weights.")] = 2,
    width: Annotated[int, typer.Option(min=64, help="Hidden width of the model; 512 has 36M parameters.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each transport, of which the median counts.")] = 12,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 16,
    as_json: Json = False,
) -> None:
    run(measure, as_json, engines=engines, width=width, rounds=rounds, rank=rank)


if __name__ == "__main__":
    main()
