"""``python -m learner.launch CONFIG.toml [flags]``: torchrun with ``learner.ranks`` processes on this machine.

The same command on ``learner.nodes`` machines makes one learner of them; each waits for the others.
As ``torchrun`` itself, but a failed learner ends with its own error as the last line, not with torchrun's traceback.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from common.config import LearnerConfig
from common.net.rendezvous import host_of
from common.process import main

_GRACE_S = 3600  # for the checkpoint after a SIGTERM; who sent it has a deadline, and kills


def launch(module: str, config: LearnerConfig, arguments: Sequence[str]) -> None:
    """Runs ``python -m module`` as this machine's ranks."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Without it ranks that start again may find in torchrun's store where those before them listened.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    how = [f"--nproc-per-node={config.ranks}", f"--max-restarts={config.restarts}", f"--shutdown-timeout={_GRACE_S}"]
    if config.nodes > 1:
        own, meets = host_of(config.address), host_of(f"tcp://{config.torchrun}")
        first = socket.gethostbyname(own) == socket.gethostbyname(meets)
        how += [f"--nnodes={config.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={config.torchrun}"]
        how += ["--rdzv-id=lrpo", f"--rdzv-conf=is_host={first}", f"--local-addr={own}"]
    with tempfile.TemporaryDirectory() as directory:
        if config.nodes == 1:  # by a file: torchrun's store would listen on every interface, and unpickle what is in it
            how += ["--rdzv-backend=c10d", f"--rdzv-endpoint={directory}/ranks", "--local-addr=127.0.0.1"]
            how += ["--rdzv-conf=store_type=file,keep_alive_interval=3600"]
        try:
            torchrun([*how, "-m", module, *arguments])
        except ChildFailedError as error:
            raise SystemExit(error.get_first_failure()[1].exitcode) from None
        except SignalException:
            raise KeyboardInterrupt from None


if __name__ == "__main__":
    main(lambda config: launch("learner", config.learner, sys.argv[1:]))
