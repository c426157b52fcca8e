"""The demo: builds the offline world and its warm-started policy once, then trains with the real processes.

Called by ``scripts/demo.sh``; starts each process with its launch script and ``configs/demo.toml``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from common.config import ConfigError, load
from scripts.ops.supervise import ChildFailed, run_all, run_to_end

_ROOT = Path(__file__).parents[2]
_CONFIG = _ROOT / "configs" / "demo.toml"
_CACHE = _ROOT / ".cache"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="demo.sh", usage="%(prog)s [options] [--section.key value] ...", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, action="append", default=[], help="further ones, over configs/demo.toml")
    parser.add_argument("--run-dir", type=Path, default=_ROOT / "runs" / "demo", help="logs, metrics, checkpoints")
    parser.add_argument("--steps", type=int, help="training steps (default 150)")
    parser.add_argument("--seed", type=int, default=0, help="of the world, the warm start and the run")
    parser.add_argument("--actors", type=int, default=2, help="default 2")
    parser.add_argument("--cache", type=Path, default=_CACHE, help="where world and warm-started policy are kept")
    parser.add_argument("--warm-start-steps", type=int, help="of the warm start; fewer are faster and know less")
    arguments, flags = parser.parse_known_args()
    for kind in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(kind, signal.default_int_handler)
    try:
        train(arguments, flags)
    except (ConfigError, ChildFailed) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command resumes {arguments.run_dir}", file=sys.stderr)
        raise SystemExit(130) from None


def train(arguments: argparse.Namespace, flags: list[str]) -> None:
    began = time.monotonic()
    run_dir: Path = arguments.run_dir.absolute()
    cache: Path = arguments.cache.absolute()
    files = [str(_CONFIG), *map(str, arguments.config)]
    style = load(files).model.prompt_style
    kind = "policy" if style == "tag" else f"policy-{style}"
    world, policy = cache / f"world-{arguments.seed}", cache / f"{kind}-{arguments.seed}"
    settings = [
        *files,
        *("--run.dir", str(run_dir)),
        *("--run.seed", str(arguments.seed)),
        *("--data.train", str(world / "train.parquet")),
        *("--data.heldout", str(world / "heldout.parquet")),
        *("--model.path", str(policy)),
        *("--reward.calibration", str(world / "facts.csv")),
        *(("--learner.steps", str(arguments.steps)) if arguments.steps else ()),
        *flags,
    ]
    run_dir = load(settings).run.dir  # a wrong flag is an error now, not after the preparation
    warm_start = ["--style", style, *(("--steps", str(steps)) if (steps := arguments.warm_start_steps) else ())]
    prepare(world, policy, arguments.seed, warm_start)
    prepared = time.monotonic()
    run_all(settings, run_dir, arguments.actors)
    finish(run_dir, world, {"preparation_seconds": prepared - began, "command_seconds": time.monotonic() - began})


def prepare(world: Path, policy: Path, seed: int, warm_start: list[str]) -> None:
    """World, calibration statistics and warm-started policy; each is made once and reused."""
    if not (world / "world.json").exists():
        run_to_end(["-m", "scripts.world.build", "--out", str(world), "--seed", str(seed)])
    if not (world / "facts.csv").exists():
        # The facts' answers in all languages: like the references, which paragraphs of prose are not.
        parallel = ["--parallel", str(world / "warm_start.parquet"), "--columns", "fact,fact,language,answer"]
        run_to_end(["-m", "scripts.data.calibrate", *parallel, "--out", str(world / "facts.csv")])
    made = ["--world", str(world), "--out", str(policy), "--seed", str(seed)]
    run_to_end(["-m", "scripts.world.warm_start", *made, *warm_start])


def finish(run_dir: Path, world: Path, times: dict[str, float]) -> None:
    """Adds the times of the whole command to ``summary.json`` and prints what matters of it."""
    path = run_dir / "summary.json"
    summary: dict[str, Any] = {**json.loads(path.read_text(encoding="utf-8")), **times}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
    for part in ("reward", "heldout", "compliance"):
        before, after = summary[f"{part}_before"], summary[f"{part}_after"]
        if before is not None:
            print(f"{part:<11} {before:.3f} -> {after:.3f}")
    share, uniform = affinity_share(summary["routed_by_region"], json.loads((world / "world.json").read_text("utf-8")))
    print(
        f"routing     region and language share {summary['region_language_bits']:.3f} bits "
        f"({summary['region_language_bits_shuffled']:.3f} by chance); {share:.0%} of the draws for regions are "
        f"in languages that know them ({uniform:.0%} when uniform)"
    )
    print(
        f"{summary['steps']} steps, {summary['groups_trained']} groups trained, "
        f"{summary['questions_lost']} lost, {summary['questions_duplicated']} twice; staleness at most "
        f"{summary['staleness_max']} (bound {summary['staleness_bound']}); "
        f"{summary['tokens_per_second']:.0f} tokens/s, bottleneck: {summary['bottleneck']}; "
        f"{summary['command_seconds']:.0f} s in all"
    )
    print(f"exported model: {run_dir / 'model'}; all figures: {path}")


def affinity_share(routed: dict[str, dict[str, int]], world: dict[str, Any]) -> tuple[float, float]:
    """Share of the draws in languages that the world was built to know the region in, and when drawn uniformly."""
    knows = world["affinity"]["region"]
    totals = {region: sum(counts.values()) for region, counts in routed.items()}
    known = sum(counts.get(one, 0) for region, counts in routed.items() for one in knows.get(region, ()))
    uniform = sum(total * len(knows.get(region, ())) / len(world["languages"]) for region, total in totals.items())
    drawn = max(sum(totals.values()), 1)
    return known / drawn, uniform / drawn


if __name__ == "__main__":
    main()
