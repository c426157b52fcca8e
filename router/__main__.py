"""``python -m router show PATH`` shows what was learned, ``python -m router simulate`` compares strategies.

The arguments are parsed with argparse, because ``--worlds`` and ``--strategies`` take several values, which typer does
not offer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from router import show
from router.simulation import compare
from router.simulation.strategies import STRATEGIES
from router.simulation.worlds import WORLDS


def main(arguments: list[str] | None = None) -> None:
    """Runs the command. Exits with 1, and a message, where a file cannot be read or written, or nothing is compared."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.command == "show":
        _show(args)
        return
    if min(args.seeds, args.steps, args.questions, args.processes) < 1:
        parser.error("--seeds, --steps, --questions and --processes must be at least 1")
    _simulate(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m router", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("show", help="tables of what a router has learned")
    shown.add_argument("path", type=Path, help="a run, one of its checkpoints, or a router.jsonl")
    shown.add_argument("--png", type=Path, help="also write heat maps to this file")
    simulated = commands.add_parser("simulate", help="regret of strategies in contextual-bandit worlds")
    simulated.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS)
    simulated.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=[*STRATEGIES])
    simulated.add_argument("--seeds", type=int, default=20, help="runs of each strategy in each world (default 20)")
    simulated.add_argument("--steps", type=int, default=64, help="policy steps (default 64, as published)")
    simulated.add_argument("--questions", type=int, default=64, help="questions in each step (default 64)")
    simulated.add_argument("--processes", type=int, default=1, help="runs at the same time (default 1)")
    simulated.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


def _show(args: argparse.Namespace) -> None:
    try:
        line = show.read(args.path)
        print(show.text(line))
        if args.png:
            show.picture(line, args.png)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _simulate(args: argparse.Namespace) -> None:
    began = time.monotonic()
    try:
        found = compare.compare(args.worlds, args.strategies, args.seeds, args.steps, args.questions, args.processes)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(compare.table(found, began))
    if args.json:
        print(json.dumps({"name": "router-simulation", "rows": compare.rows(found)}))


if __name__ == "__main__":
    main()
