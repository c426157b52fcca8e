"""``python -m tests.support.rank FILE``: a learner rank that runs a function of the tests, for ``run_ranks``.

FILE holds the pickled function and its arguments. The environment tells the rank, as torchrun would.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from common.process import interrupt_when_asked
from learner.train.distributed import set_up_distributed

TIMEOUT_S = 400  # of a body, and of each collective in it: a busy machine is ten times slower than an idle one


def main() -> None:
    interrupt_when_asked()  # as the learner's own ranks
    body, arguments = pickle.loads(Path(sys.argv[1]).read_bytes())
    torch.set_num_threads(1)
    set_up_distributed(TIMEOUT_S)
    body(*arguments)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
