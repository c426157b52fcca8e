"""How weights leave the learner's GPU: shared memory, and process groups whose peer is dead, lives, or dies."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import torch

from scripts.gpu_check.figures import Figure, Sizes, Skipped
from scripts.gpu_check.numerics import device_of_checks

_HOST = "127.0.0.1"


def check_shared_memory(sizes: Sizes) -> list[Figure]:
    """``sync.transport = "shared"``: another process reads the learner's memory, the same bytes each time."""
    from actor.engine.shared_memory import pickle_shared_tensors
    from common import wire
    from learner.weights.shared_memory import SharedBuffer

    device, numbers = device_of_checks(), 1000 if sizes.tiny else 2**24
    bucket = wire.Bucket(names=["weight"], dtypes=["bfloat16"], shapes=[[numbers]])
    shared = SharedBuffer(2 * numbers, device)
    buffer = shared.tensor
    reader = subprocess.Popen(
        [sys.executable, "-m", "scripts.gpu_check.peer", "read"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert reader.stdin is not None and reader.stdout is not None
    equal, memory, seconds = 0, list[int](), 0.0
    try:
        for number in range(sizes.updates):
            generator = torch.Generator(device).manual_seed(number)
            buffer.copy_(torch.randint(0, 128, buffer.shape, generator=generator, device=device, dtype=torch.uint8))
            if device.type == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            print(pickle_shared_tensors(bucket, shared.create_handle()), file=reader.stdin, flush=True)
            digest, used = reader.stdout.readline().split()
            seconds += time.perf_counter() - begin
            equal += digest == hashlib.sha256(buffer.cpu().numpy().tobytes()).hexdigest()
            memory.append(int(used))
        reader.stdin.close()
        code = reader.wait(60)
    finally:
        reader.kill()
        reader.wait()
    grown = memory[-1] - memory[len(memory) // 2]
    return [
        Figure("updates with equal bytes", equal, "", equal == sizes.updates, str(sizes.updates)),
        Figure("GPU memory that the reader has gained", grown / 1e6, "MB", grown <= 2**20, "<= 1"),
        Figure("exit code of the reader", code, "", code == 0, "0"),
        Figure("an update, with a digest of its bytes", seconds / sizes.updates * 1e3, "ms"),
    ]


def check_absent_peer(sizes: Sizes) -> list[Figure]:
    """A group whose peer never comes is given up within its deadline, and the process goes on."""
    from learner.weights.process_group import (
        GroupStore,
        abort_group,
        broadcast_first,
        connect_to_store,
        destroy_group,
        form_group,
    )

    device = device_of_checks()
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, begin, outcome = GroupStore(_HOST, 0, sizes.deadline_s), time.monotonic(), "the broadcast succeeded"
    try:
        client = connect_to_store(store.host, store.port, sizes.deadline_s)
        group = form_group(backend, client, "absent", 2, sizes.deadline_s)
    except RuntimeError:
        outcome = "it did not form"  # gloo connects when the group forms, NCCL at the first broadcast
    else:
        try:
            zeros = torch.zeros(1, dtype=torch.uint8, device=device)
            broadcast_first(group, backend, zeros, sizes.deadline_s, lambda: None)
        except (TimeoutError, RuntimeError) as error:
            outcome = f"{type(error).__name__} in the first broadcast"
        freed = threading.Event()

        def free() -> None:
            with suppress(RuntimeError):
                abort_group(group, backend)
                destroy_group(group)
            freed.set()

        threading.Thread(target=free, daemon=True).start()
        if not freed.wait(sizes.deadline_s):
            outcome += ", and the group could not be freed"
    seconds = time.monotonic() - begin
    ok = seconds < 3 * sizes.deadline_s + 10 and "could not" not in outcome and "succeeded" not in outcome
    result = float(torch.ones(3, device=device).sum())
    return [
        Figure("what became of the group", outcome, "", ok, "given up and freed"),
        Figure("after", seconds, "s", ok, f"< {3 * sizes.deadline_s + 10:g}"),
        Figure("sum that the GPU computes afterwards", result, "", result == 3.0, "3"),
    ]


def check_living_peer(sizes: Sizes) -> list[Figure]:
    """Broadcasts to a second process, on a second GPU where there are GPUs; then that process is killed in one."""
    from learner.weights.process_group import (
        GroupStore,
        abort_group,
        broadcast_first,
        connect_to_store,
        form_group,
        start_broadcast,
    )

    device = device_of_checks()
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        raise Skipped("it needs two GPUs")
    backend, numbers = ("nccl", 2**28) if device.type == "cuda" else ("gloo", 2**16)
    patience_s = 60.0
    store = GroupStore(_HOST, 0, patience_s)
    peer = subprocess.Popen(
        [sys.executable, "-m", "scripts.gpu_check.peer", "receive", backend, str(store.port), str(numbers)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert peer.stdout is not None
    try:
        client = connect_to_store(store.host, store.port, patience_s)
        group: Any = form_group(backend, client, "living", 2, patience_s)
        zeros = torch.zeros(1, dtype=torch.uint8, device=device)
        broadcast_first(group, backend, zeros, patience_s, lambda: None)
        generator = torch.Generator(device).manual_seed(0)
        weights = torch.randint(0, 128, (numbers,), generator=generator, device=device, dtype=torch.uint8)
        begin = time.perf_counter()
        _wait(start_broadcast(group, weights, patience_s), patience_s)
        rate = numbers / (time.perf_counter() - begin) / 1e9
        equal = peer.stdout.readline().strip() == hashlib.sha256(weights.cpu().numpy().tobytes()).hexdigest()
        peer.kill()
        peer.wait()
        begin = time.perf_counter()
        try:
            _wait(start_broadcast(group, weights, sizes.deadline_s), sizes.deadline_s)
        except (RuntimeError, TimeoutError):
            abort_group(group, backend)
        seconds = time.perf_counter() - begin
    finally:
        peer.kill()
        peer.wait()
    return [
        Figure("bytes that arrive", "equal" if equal else "differ", "", equal, "equal"),
        Figure("broadcast", rate, "GB/s"),
        Figure("giving up a peer that was killed", seconds, "s", seconds < sizes.deadline_s + 30, "in time"),
    ]


def _wait(work: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not work.is_completed():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.001)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
