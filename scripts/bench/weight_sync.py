"""How fast weights reach the engines, beside a bare broadcast of the same bytes to as many receivers.

    python -m scripts.bench.weight_sync [--json] [--engines 2] [--width 512] [--rounds 12]

Real actors, with the light engine of ``tests/support/light``, take a Qwen3 model with random weights in float32 over
gloo, then from the learner's memory and from files; gathering, here a copy, is in the time. The baseline sends one
buffer of as many bytes through a group with each receiver, all at once, and nothing else; as in SGLang, what arrives
goes into fresh memory. The fastest of the rounds counts, as what else the machine does only slows them.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.distributed import BroadcastOptions, TCPStore  # type: ignore[attr-defined]
from transformers import Qwen3Config, Qwen3ForCausalLM

from common import wire
from common.config import SyncConfig
from common.process import die_with_parent
from learner.weights.buckets import plan
from learner.weights.publisher import Publisher, form_group
from learner.work.server import WorkServer
from scripts.bench.table import Json, Row, run
from scripts.ops.command_line import command
from scripts.world.tokenizer import build_tokenizer

_ROOT = Path(__file__).parents[2]
_GOAL, _BUCKET_MB = 0.8, 32


def make_model(path: Path, width: int) -> Qwen3ForCausalLM:
    tokenizer = build_tokenizer(["What is it?"], ["en"], 300)
    tokenizer.save_pretrained(path)
    config = Qwen3Config(
        vocab_size=16_384, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=8, head_dim=64,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, tie_word_embeddings=True,
        initializer_range=0.1,  # far enough from uniform that other weights are other log-probabilities
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(path)
    return model


def through_actors(
    model: Qwen3ForCausalLM, path: Path, engines: int, rounds: int, transport: str
) -> tuple[float, float]:
    """Seconds of the fastest round and its longest pause."""
    address = f"ipc://{path}/queue"
    server = WorkServer(address, lease_timeout_s=60)
    buckets = plan({name: list(value.shape) for name, value in model.named_parameters()}, "float32", _BUCKET_MB)
    publisher = Publisher(server, SyncConfig(timeout_s=60), buckets, torch.device("cpu"), lambda: None)
    environment = {**os.environ, "PYTHONPATH": str(_ROOT / "tests" / "support" / "light"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "actor", "--model.path", str(path), "--model.dtype", "float32"]
    command += ["--run.dir", str(path), "--learner.address", address, "--reward.addresses", f'["ipc://{path}/reward"]']
    command += ["--run.languages", '["en"]', "--sync.transport", transport]
    actors = [
        subprocess.Popen([*command, "--actor.name", f"a{n}"], env=environment, cwd=_ROOT, preexec_fn=die_with_parent)
        for n in range(engines)
    ]
    while len(server.members()) < engines:
        time.sleep(0.1)
    ids = torch.arange(3, 30)
    found = []
    for version in range(rounds + 1):
        with torch.no_grad():
            logp = model(ids[None]).logits[0].log_softmax(-1)[range(len(ids) - 1), ids[1:]].numpy()
        probe = wire.Probe(ids=ids.numpy().astype(np.int32), logprobs=logp, tolerance=1e-3)
        weights = ((name, value.detach()) for name, value in model.named_parameters())
        done = publisher.publish(version, weights, probe)
        assert len(done.members) == engines, "an engine was lost"
        found.append((done.seconds, done.pause_s))
        time.sleep(1)  # the probe
    server.close()
    for actor in actors:
        assert actor.wait(30) == 0
    return min(found[1:])  # in the first the groups form


def _receiver(port: int, name: str, size: int, rounds: int) -> None:
    torch.set_num_threads(1)
    group = form_group("gloo", TCPStore("127.0.0.1", port, wait_for_workers=False), name, 2, 60, rank=1)
    for _ in range(rounds):
        _broadcast(group, torch.empty(size, dtype=torch.uint8))


def _broadcast(group: Any, buffer: torch.Tensor) -> None:
    options = BroadcastOptions()
    options.rootRank = 0
    group.broadcast([buffer], options).wait()


def bare(size: int, engines: int, rounds: int) -> list[float]:
    """Seconds of each round."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    names = [f"bare-{n}" for n in range(engines)]
    children = [context.Process(target=_receiver, args=(store.port, name, size, rounds + 1)) for name in names]
    for child in children:
        child.start()
    clients = [TCPStore("127.0.0.1", store.port, wait_for_workers=False) for _ in names]
    groups = [form_group("gloo", client, name, 2, 60) for client, name in zip(clients, names, strict=True)]
    buffer, found = torch.ones(size, dtype=torch.uint8), []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        threads = [threading.Thread(target=_broadcast, args=(group, buffer)) for group in groups]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found.append(time.perf_counter() - begin)
    for child in children:
        child.join()
    return found[1:]


def measure(scratch: Path, engines: int, width: int, rounds: int) -> list[Row]:
    torch.set_num_threads(1)
    model = make_model(scratch, width)
    size = sum(value.nbytes for value in model.parameters())
    baseline = min(bare(size, engines, rounds))
    megabytes, rows = size * engines / 1e6, [Row("bytes to each engine", size / 1e6, "MB")]
    for transport, goal in (("group", _GOAL), ("shared", None), ("disk", None)):
        seconds, pause = through_actors(model, scratch, engines, rounds, transport)
        ratio, against = baseline / seconds, f"bare broadcast {megabytes / baseline:.0f}"
        told, ok = (f">= {goal}", ratio >= goal) if goal else (None, None)
        rows.append(Row(f"{transport}: to all engines", megabytes / seconds, "MB/s", against, ratio, told, ok))
        rows.append(Row(f"{transport}: pause that generation sees", pause, "s"))
    return rows


@command()
def main(
    *,
    engines: Annotated[int, typer.Option(help="Engines that receive the weights.")] = 2,
    width: Annotated[int, typer.Option(help="Hidden width of the model; 512 has 36M parameters.")] = 512,
    rounds: Annotated[int, typer.Option(help="Rounds of each transport; the fastest counts.")] = 12,
    as_json: Json = False,
) -> None:
    run(measure, as_json, engines=engines, width=width, rounds=rounds)


if __name__ == "__main__":
    main()
