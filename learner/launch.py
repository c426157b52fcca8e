"""``python -m learner.launch CONFIG.toml [flags]``: torchrun with ``learner.ranks`` processes on this machine.

The same command on each of ``learner.nodes`` machines makes one learner of them; they wait for each other.
It is torchrun itself, but a learner that failed ends with its own error as the last line, not torchrun's traceback.
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
from common.parent import launcher_of_ranks
from common.process import main
from common.progress import LOGGER

# Time for the checkpoint after a SIGTERM. It is long: whoever sent the signal has a deadline of their own, and kills.
_SHUTDOWN_S = 3600


def launch(module: str, config: LearnerConfig, arguments: Sequence[str]) -> None:
    """Runs ``python -m module arguments`` as this machine's ranks; blocks until all have ended.

    Raises:
        SystemExit: a rank failed; with the exit code of the first that did.
        KeyboardInterrupt: SIGTERM or SIGINT ended the ranks.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Otherwise ranks that are started again may find in torchrun's store the address of those before them.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    flags = [
        f"--nproc-per-node={config.ranks}", f"--max-restarts={config.restarts}", f"--shutdown-timeout={_SHUTDOWN_S}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        flags += _on_many_machines(config) if config.nodes > 1 else _on_this_machine(directory)
        logging.getLogger(f"{LOGGER}.learner").info("starting %d rank%s", config.ranks, "s" if config.ranks > 1 else "")
        try:
            with launcher_of_ranks():
                torchrun([*flags, "-m", module, *arguments])
        except ChildFailedError as error:
            raise SystemExit(error.get_first_failure()[1].exitcode) from None
        except SignalException:
            raise KeyboardInterrupt from None


def _on_many_machines(config: LearnerConfig) -> list[str]:
    """They meet at ``learner.torchrun``, and the machine with that address hosts torchrun's store."""
    own, meeting = host_of(config.address), host_of(f"tcp://{config.torchrun}")
    is_host = socket.gethostbyname(own) == socket.gethostbyname(meeting)
    return [
        f"--nnodes={config.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={config.torchrun}", "--rdzv-id=lrpo",
        f"--rdzv-conf=is_host={is_host}", f"--local-addr={own}",
    ]  # fmt: skip


def _on_this_machine(directory: str) -> list[str]:
    """They meet through a file: torchrun's store would listen on every interface, and unpickle what is in it."""
    return [
        "--rdzv-backend=c10d", f"--rdzv-endpoint={directory}/ranks", "--local-addr=127.0.0.1",
        "--rdzv-conf=store_type=file,keep_alive_interval=3600",
    ]  # fmt: skip


if __name__ == "__main__":
    main(lambda config: launch("learner", config.learner, sys.argv[1:]))
