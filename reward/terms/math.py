"""math-verify in a process of its own, with limits on time and memory and no files to write: a policy finds any hole.

It reads formulas by a grammar, and evaluates as Python nothing but digits and operators. Its own time limits are
signals, which wait for big-integer arithmetic to end, so a process that is late is killed and started again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common.process import FatalError, die_with_parent

_STEP_S = 2  # math-verify's own limit of each parse and each comparison, by a signal
_DEADLINE_S = 5.0  # of a whole answer; one that takes longer is no match
_START_S = 240.0  # with its imports, on a busy machine
_MEMORY = 1 << 30


class MathVerifier:
    """1 where the formula an answer ends with equals an accepted one, else 0; also where that cannot be told.

    Raises:
        FatalError: math-verify is not installed, or does not start.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise FatalError(
                'the term "math" of reward.terms needs math-verify: pip install "math-verify[antlr4_13_2]", '
                "or take the term out"
            )
        self.killed = 0  # answers that outran a limit
        self._start()

    def __call__(self, answer: str, accepted: list[str]) -> float:
        assert self._process.stdin is not None
        reply = ""
        try:
            self._process.stdin.write(json.dumps([answer, accepted]).encode() + b"\n")
            reply = self._reply(_DEADLINE_S)
        except BrokenPipeError:
            pass
        if not reply:
            self.killed += 1
            self.close()
            self._start()
        return float(reply == "1")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "reward.terms.math"],
            cwd=Path(__file__).parents[2],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent,
        )
        if self._reply(_START_S) != "ready":
            self.close()
            raise FatalError(f"math-verify did not start within {_START_S:.0f} s; is it installed whole?")

    def _reply(self, timeout_s: float) -> str:
        """A line of the process; empty when it died, or at the deadline."""
        assert self._process.stdout is not None
        line, deadline = b"", time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(self._process.stdout.fileno(), 64) if ready else b""
            if not part:
                return ""
            line += part
        return line.decode().strip()


def _serve() -> None:
    from math_verify import parse, verify

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its owner ends it
    for kind, limit in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (limit, limit))
    # The first use fills tables, which on a busy machine takes longer than an answer may.
    verify(parse(r"$\frac{1}{2}$", parsing_timeout=0), parse("0.5", parsing_timeout=0), timeout_seconds=0)
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            answer, accepted = json.loads(line)
            given: Any = parse(answer, parsing_timeout=_STEP_S)
            golds = (parse(text, parsing_timeout=_STEP_S) for text in accepted)
            right = any(verify(gold, given, timeout_seconds=_STEP_S) for gold in golds)
        except Exception:  # whatever a text provokes, it is no match: MemoryError, RecursionError, its TimeoutException
            right = False
        print(int(right), flush=True)


if __name__ == "__main__":
    _serve()
