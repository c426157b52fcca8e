"""``python -m router show PATH`` looks at what was learned, ``python -m router simulate`` compares strategies."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from router import show
from router.simulation import compare as simulate


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m router", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shown = commands.add_parser("show", help="tables of what a router has learned")
    shown.add_argument("path", type=Path, help="a run, one of its checkpoints, or a router.jsonl")
    shown.add_argument("--png", type=Path, help="also write heat maps to this file")
    simulated = commands.add_parser("simulate", help="regret of strategies in contextual-bandit worlds")
    simulated.add_argument("--worlds", nargs="+", choices=simulate.WORLDS, default=simulate.WORLDS)
    simulated.add_argument("--strategies", nargs="+", choices=simulate.STRATEGIES, default=[*simulate.STRATEGIES])
    simulated.add_argument("--seeds", type=int, default=20, help="runs of each strategy in each world (default 20)")
    simulated.add_argument("--steps", type=int, default=64, help="policy steps (default 64, as published)")
    simulated.add_argument("--questions", type=int, default=64, help="questions a step (default 64)")
    simulated.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args(arguments)
    try:
        if args.command == "show":
            line = show.read(args.path)
            print(show.text(line))
            if args.png:
                show.picture(line, args.png)
            return
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if min(args.seeds, args.steps, args.questions) < 1:
        parser.error("--seeds, --steps and --questions must be at least 1")
    began = time.monotonic()
    found = simulate.compare(args.worlds, args.strategies, args.seeds, args.steps, args.questions)
    print(simulate.table(found, began))
    if args.json:
        print(json.dumps({"name": "router-simulation", "rows": simulate.rows(found)}))


if __name__ == "__main__":
    main()
