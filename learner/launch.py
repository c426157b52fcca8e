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
import time
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError
from torch.distributed.run import main as torchrun

from common.config import Config, LearnerConfig
from common.gpus import usable_gpus
from common.net.rendezvous import host_of
from common.parent import launcher_of_ranks
from common.process import FatalError, main
from common.progress import BRIEF_S, LOGGER, Activity
from learner.run_lock import await_former

# Time for the checkpoint after a SIGTERM. It is long: whoever sent the signal has a deadline of their own, and kills.
_SHUTDOWN_S = 3600
# Kubernetes gives a pod its name once it has an address, and the pod that hosts the meeting may get it last.
_LOOK_UP_S, _LOOK_UP_POLL_S = 120.0, 2.0


def launch(module: str, config: LearnerConfig, arguments: Sequence[str]) -> None:
    """Runs ``python -m module arguments`` as this machine's ranks; blocks until all have ended.

    Raises:
        FatalError: a GPU that this process was given cannot be used, or the nodes cannot meet at ``learner.torchrun``.
        SystemExit: a rank failed; with the exit code of the first that did.
        KeyboardInterrupt: SIGTERM or SIGINT ended the ranks.
    """
    usable_gpus()  # said here it is said once, and not by every rank
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
        except RendezvousConnectionError as error:  # torchrun's message says no more than that there is a cause
            raise FatalError(
                f"learner.torchrun = {config.torchrun}: the learner nodes cannot meet there: "
                f"{str(error.__cause__ or error).splitlines()[0].rstrip(' .')}; name a learner node that runs, and a "
                "port of it that is free and open to the others"
            ) from None


def _on_many_machines(config: LearnerConfig) -> list[str]:
    """They meet at ``learner.torchrun``, and the machine with that address hosts torchrun's store."""
    own = host_of(config.address)
    is_host = _look_up(own, f"learner.address = {config.address}") == _look_up(
        host_of(f"tcp://{config.torchrun}"), f"learner.torchrun = {config.torchrun}"
    )
    return [
        f"--nnodes={config.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={config.torchrun}", "--rdzv-id=lrpo",
        f"--rdzv-conf=is_host={is_host}", f"--local-addr={own}",
    ]  # fmt: skip


def _look_up(host: str, setting: str) -> str:
    """The IPv4 address of a host, which may get its name while this waits.

    Raises:
        FatalError: it has none after ``_LOOK_UP_S``; names the setting.
    """
    deadline = time.monotonic() + _LOOK_UP_S
    with Activity("learner", f"looking up the host of {setting}", silent_s=BRIEF_S):
        while True:
            try:
                return socket.gethostbyname(host)
            except (OSError, UnicodeError) as error:  # the second one for what can be no name
                if time.monotonic() > deadline:
                    raise FatalError(
                        f"{setting}: this machine finds no address for the host {host!r} ({error}); "
                        "name one that every learner node can look up, or give its IPv4 address"
                    ) from None
            time.sleep(_LOOK_UP_POLL_S)


def _on_this_machine(directory: str) -> list[str]:
    """They meet through a file: torchrun's store would listen on every interface, and unpickle what is in it."""
    return [
        "--rdzv-backend=c10d", f"--rdzv-endpoint={directory}/ranks", "--local-addr=127.0.0.1",
        "--rdzv-conf=store_type=file,keep_alive_interval=3600",
    ]  # fmt: skip


def run(config: Config) -> None:
    """Starts the ranks of a learner on this machine; blocks until all have ended. Raises what ``launch`` raises."""
    await_former(config.run.dir)  # before the ranks, which would wait for each other and for torchrun's store
    launch("learner", config.learner, sys.argv[1:])


if __name__ == "__main__":
    main(run)
