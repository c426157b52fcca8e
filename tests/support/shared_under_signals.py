"""``python -m tests.support.shared_under_signals``: makes shared memory while a signal comes every 50 microseconds.

Torch starts its manager of shared memory once in the life of a process, so this has to be a process of its own.
"""

from __future__ import annotations

import signal

import torch

from learner.weights.shared_memory import SharedBuffer


def main() -> None:
    signals = 0

    def count(*_: object) -> None:
        nonlocal signals
        signals += 1

    signal.signal(signal.SIGALRM, count)
    signal.setitimer(signal.ITIMER_REAL, 5e-5, 5e-5)
    handle = SharedBuffer(4096, torch.device("cpu")).create_handle()
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"{len(handle.fields)} fields, {signals} signals")


if __name__ == "__main__":
    main()
