"""Checks on a GPU what no other machine can: kernels, the trainer's speed and memory, checkpoints, weight transfer.

    scripts/gpu_check.sh [--out DIR]

Needs no network, one GPU, and at most eight minutes; with more GPUs, and with SGLang, it checks more. It takes whatever
versions of torch and transformers are installed; what a check lacks is named, and the check left out. Each check runs
in a process of its own, with a deadline. The figures go to DIR/gpu_check.json and, as a table, to DIR/gpu_check.md. The
exit code is 0 if every figure that was found is right. Without a GPU the checks can only be tried out, with tiny sizes:
--tiny.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.gpu_check.figures import Figure, Sizes, Skipped

# Nothing but the standard library is imported here, so that a missing package is a line of the report.
CHECKS = {  # in order of importance, should time run out
    "versions": "versions:check_versions",
    "attention": "numerics:check_attention",
    "head": "numerics:check_head",
    "trainer": "training:check_trainer",
    "checkpoint": "training:check_checkpoint",
    "shared memory": "transports:check_shared_memory",
    "group without its peer": "transports:check_absent_peer",
    "encoder": "numerics:check_encoder",
    "group with a peer": "transports:check_living_peer",
    "engine with two ranks": "engines:check_tensor_parallel",
}
_TOTAL_S = 470.0  # of all checks
_LONGEST_S = 240.0  # of one


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Args:
        state: ``ok``, ``wrong`` if a figure is not right, ``failed`` with an error, ``skipped``.
        told: the error, or why it was skipped.
    """

    check: str
    state: str
    told: str
    seconds: float
    figures: list[Figure]


def run_check(name: str, sizes: Sizes) -> Outcome:
    """Makes one check in this process."""
    begin = time.monotonic()

    def outcome(state: str, told: str = "", figures: Sequence[Figure] = ()) -> Outcome:
        return Outcome(name, state, told, time.monotonic() - begin, list(figures))

    module, _, function = CHECKS[name].partition(":")
    try:
        figures = getattr(importlib.import_module(f"scripts.gpu_check.{module}"), function)(sizes)
    except ModuleNotFoundError as error:
        return outcome("skipped", f"the package {error.name} is not installed")
    except Skipped as why:
        return outcome("skipped", str(why))
    except Exception as error:  # whatever it is: the other checks are made all the same, and the report has it
        place = traceback.extract_tb(error.__traceback__)[-1]
        return outcome("failed", f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})")
    return outcome("wrong" if any(one.ok is False for one in figures) else "ok", "", figures)


def run_apart(name: str, scratch: Path, tiny: bool, timeout_s: float) -> Outcome:
    """Makes one check in a process of its own, which is killed after ``timeout_s``."""
    command = [sys.executable, "-m", "scripts.gpu_check", "--one", name, "--scratch", str(scratch)]
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [*command, *(["--tiny"] if tiny else [])], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(name, "failed", f"it did not end within {timeout_s:.0f} s", timeout_s, [])
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        told = f"its process ended with code {done.returncode}: {last}"
        return Outcome(name, "failed", told, time.monotonic() - begin, [])
    return Outcome(**{**found, "figures": [Figure(**one) for one in found["figures"]]})


def table(outcomes: Sequence[Outcome]) -> str:
    """The report as a Markdown table."""
    lines = ["| check | figure | value | |", "|---|---|---|---|"]
    for outcome in outcomes:
        told = f"{outcome.state}{': ' if outcome.told else ''}{outcome.told}".replace("|", "/").replace("\n", " ")
        lines.append(f"| **{outcome.check}** | {outcome.seconds:.1f} s | | {told} |")
        for one in outcome.figures:
            value = f"{one.value:.4g}" if isinstance(one.value, float) else str(one.value)
            verdict = "" if one.ok is None else "ok" if one.ok else f"WRONG, should be {one.goal}"
            lines.append(f"| | {one.name} | {value} {one.unit} | {verdict} |".replace("  |", " |"))
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Raises:
        SystemExit: with code 1 if a figure is wrong or a check failed.
    """
    parser = argparse.ArgumentParser("gpu_check.sh", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(), help="where the report is written")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, which a CPU can do in seconds")
    parser.add_argument("--in-one-process", action="store_true", help="faster, but a check that hangs is not ended")
    parser.add_argument("--one", choices=CHECKS, help="make one check, and print what came of it as JSON")
    parser.add_argument("--scratch", type=Path, help="directory for models; by default a new one, which is removed")
    given = parser.parse_args(arguments)
    if given.one:
        sizes = Sizes.small(given.scratch) if given.tiny else Sizes(tiny=False, scratch=given.scratch)
        print(json.dumps(asdict(run_check(given.one, sizes))))
        return
    outcomes, deadline = list[Outcome](), time.monotonic() + _TOTAL_S
    with tempfile.TemporaryDirectory() as directory:
        scratch = given.scratch or Path(directory)
        for name in CHECKS:
            left = min(_LONGEST_S, deadline - time.monotonic())
            if left < 5:
                outcomes.append(Outcome(name, "failed", "there was no time left", 0.0, []))
                continue
            print(f"checking: {name}", file=sys.stderr, flush=True)
            if given.in_one_process:
                sizes = Sizes.small(scratch) if given.tiny else Sizes(tiny=False, scratch=scratch)
                outcomes.append(run_check(name, sizes))
            else:
                outcomes.append(run_apart(name, scratch, given.tiny, left))
    given.out.mkdir(parents=True, exist_ok=True)
    report = {"tiny": given.tiny, "checks": [asdict(one) for one in outcomes]}
    (given.out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (given.out / "gpu_check.md").write_text(table(outcomes), encoding="utf-8")
    print(table(outcomes))
    if any(one.state in ("wrong", "failed") for one in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
