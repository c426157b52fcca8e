"""``python -m learner.launch CONFIG.toml [flags]``: torchrun with ``learner.ranks`` processes on this machine.

As ``torchrun`` itself, but a failed learner ends with its own error as the last line, not with torchrun's traceback.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from common.process import main


def launch(module: str, ranks: int, arguments: Sequence[str]) -> None:
    """Runs ``python -m module`` as this many ranks."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun(["--standalone", f"--nproc-per-node={ranks}", "-m", module, *arguments])
    except ChildFailedError as error:
        raise SystemExit(error.get_first_failure()[1].exitcode) from None
    except SignalException:
        raise KeyboardInterrupt from None


if __name__ == "__main__":
    main(lambda config: launch("learner", config.learner.ranks, sys.argv[1:]))
