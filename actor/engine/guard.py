"""``python -m actor.engine.guard COMMAND ...`` runs a command, and kills its process group when the actor is gone.

Linux can kill a child with its parent, but not the children of that child. The processes of an SGLang server ask for it
themselves, but only when they have imported everything, so a server that is killed before leaves them behind. The guard
leads the process group of the server. It sees that the actor is gone by the end of its standard input. If the group was
stopped (SIGSTOP), Linux lets the guard go on at that moment, and it kills the others, which stay stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from functools import partial

from common.parent import die_with_parent, go_on_without_parent


def main() -> None:
    """Ends with the code of the command, as a shell gives it. Only the command heeds signals to the process group."""
    go_on_without_parent()
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda *_: None)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=partial(die_with_parent, os.getpid()))
    threading.Thread(target=_kill_all_without_actor, daemon=True).start()
    code = process.wait()
    sys.exit(code if code >= 0 else 128 - code)


def _kill_all_without_actor() -> None:
    while os.read(0, 1):
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
