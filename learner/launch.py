"""``python -m learner.launch CONFIG.toml [flags]``: torchrun with ``learner.ranks`` processes on this machine.

As ``torchrun`` itself, but a failed learner ends with its own error as the last line, not with torchrun's traceback.
"""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from common.config import Config
from common.process import main


def launch(config: Config) -> None:
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun(["--standalone", f"--nproc-per-node={config.learner.ranks}", "-m", "learner", *sys.argv[1:]])
    except ChildFailedError as error:
        raise SystemExit(error.get_first_failure()[1].exitcode) from None
    except SignalException:
        raise KeyboardInterrupt from None


if __name__ == "__main__":
    main(launch)
