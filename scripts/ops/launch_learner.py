"""Starts the learner's ranks on this machine, and beside them names the rows whose answers can earn nothing.

    scripts/launch_learner.sh CONFIG.toml ... [--section.key value]

The ranks are those of ``learner.launch``, which takes this process over. Reading the accepted answers of large data
takes minutes, so another process does it meanwhile, and ends with this one (``scripts.data.unscorable``). Ranks that
torchrun starts again have them read no more.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from common.parent import die_with_parent


def main(arguments: Sequence[str]) -> None:
    """Becomes ``learner.launch``, and does not return.

    Args:
        arguments: configuration files and flags, as ``common.config.load`` reads them.
    """
    if not {"-h", "--help"} & {*arguments}:
        subprocess.Popen(
            [sys.executable, "-m", "scripts.data.unscorable", *arguments],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the learner, whose end ends it
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
    os.execv(sys.executable, [sys.executable, "-m", "learner.launch", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
