"""``python -m scripts.gpu_check.peer read | receive BACKEND PORT BYTES``: the other process of a check."""

from __future__ import annotations

import base64
import hashlib
import pickle
import sys
import time

import torch


def read() -> None:
    """Opens the memory that each line of standard input describes, and prints a digest of it and its own GPU memory."""
    for line in sys.stdin:
        [(_, weight)] = pickle.loads(base64.b64decode(line))  # written by the process that started this one
        digest = hashlib.sha256(weight.view(torch.uint8).cpu().numpy().tobytes()).hexdigest()
        del weight
        print(digest, torch.cuda.memory_allocated() if torch.cuda.is_available() else 0, flush=True)


def receive(backend: str, port: int, size: int) -> None:
    """Receives one broadcast, prints a digest of it, and waits to be killed in the next one."""
    from learner.weights.process_group import broadcast_first, connect_to_store, form_group, start_broadcast

    device = torch.device("cuda", 1) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    group = form_group(backend, connect_to_store("127.0.0.1", port, 60), "living", 2, 60, rank=1)
    broadcast_first(group, backend, torch.zeros(1, dtype=torch.uint8, device=device), 60, lambda: None)
    weights = torch.empty(size, dtype=torch.uint8, device=device)
    work = start_broadcast(group, weights, 60)
    while not work.is_completed():
        time.sleep(0.001)
    if backend == "nccl":
        torch.cuda.synchronize()
    print(hashlib.sha256(weights.cpu().numpy().tobytes()).hexdigest(), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    if sys.argv[1] == "read":
        read()
    else:
        receive(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
