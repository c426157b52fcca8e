"""Runs the demo: builds the offline world and its warm-started policy once, then trains with the real processes.

    scripts/demo.sh [--config FILE.toml] [--run-dir DIR] [--steps N] [--seed N] [--section.key value ...]
    scripts/demo.sh --world reasoning [--arms naive,strict] ...

The processes run with ``configs/demo.toml``, on the CPU: with NCCL, learner and engines cannot share a GPU. The same
command resumes an interrupted run. With ``--world reasoning`` the questions are sums told as stories, and the policy is
trained anew with each reward named by ``--arms`` (docs/reasoning.md).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from common.config import load
from scripts.ops.command_line import command
from scripts.ops.local_run import gains, run_all, run_to_end
from scripts.world.existing import build_or_check
from scripts.world.reasoning.demo import run_arms
from scripts.world.settings import Knowledge

_ROOT = Path(__file__).parents[2]
_CONFIG = _ROOT / "configs" / "demo.toml"


def prepare(world: Path, policy: Path, seed: int, warm_start: Sequence[str], knowledge: Knowledge = "region") -> None:
    """Makes the world, the calibration statistics and the warm-started policy where they are missing. Blocks meanwhile.

    A world that is there has to be the one that this code makes.

    Args:
        warm_start: further flags of ``scripts.world.warm_start``.
        knowledge: of the world, see ``scripts.world.settings``.

    Raises:
        FatalError: the world that is there has other rows.
        SystemExit: one of the programs failed, after it has printed why.
    """
    build_or_check(world, ["-m", "scripts.world.build", "--seed", str(seed), "--knowledge", knowledge])
    if not (world / "facts.csv").exists():
        # Calibrated on the answers to the facts, which resemble the references more than paragraphs of prose do.
        parallel = ["--parallel", str(world / "warm_start.parquet"), "--columns", "fact,fact,language,answer"]
        run_to_end(["-m", "scripts.data.calibrate", *parallel, "--out", str(world / "facts.csv")])
    made = ["--world", str(world), "--out", str(policy), "--seed", str(seed)]
    run_to_end(["-m", "scripts.world.warm_start", *made, *warm_start])


def finish(run_dir: Path, world: Path, times: dict[str, float]) -> None:
    """Adds the times of the whole command to ``summary.json``, and prints the most important figures."""
    path = run_dir / "summary.json"
    summary: dict[str, Any] = {**json.loads(path.read_text(encoding="utf-8")), **times}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
    print(gains(summary))
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
    """The share of draws for regions in languages that know them, and what it would be if drawn uniformly.

    Args:
        routed: number of draws by region and language.
        world: the contents of ``world.json``.
    """
    knows = world["affinity"]["region"]
    totals = {region: sum(counts.values()) for region, counts in routed.items()}
    known = sum(counts.get(one, 0) for region, counts in routed.items() for one in knows.get(region, ()))
    uniform = sum(total * len(knows.get(region, ())) / len(world["languages"]) for region, total in totals.items())
    drawn = max(sum(totals.values()), 1)
    return known / drawn, uniform / drawn


@command(name="demo.sh", passes_flags_on=True)
def main(
    context: typer.Context,
    *,
    config: Annotated[
        list[Path] | None, typer.Option(help="A further configuration file, over configs/demo.toml; may be repeated.")
    ] = None,
    world: Annotated[
        Literal["facts", "reasoning"], typer.Option(help="What is asked: facts, or sums that take a thought.")
    ] = "facts",
    arms: Annotated[
        str, typer.Option(help="Of the reasoning world: the rewards to train with; naive, slc, strict.")
    ] = "naive,strict",
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Directory of logs, metrics and checkpoints; default: runs/demo or runs/reasoning-demo."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: as configured.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world, the warm start and the run.")] = 0,
    actors: Annotated[int, typer.Option(min=1, help="Actor processes.")] = 2,
    cache: Annotated[Path, typer.Option(help="Where world and warm-started policy are kept.")] = _ROOT / ".cache",
    warm_start_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the warm start; fewer are faster and teach less.")
    ] = None,
) -> None:
    files = list(map(str, config or []))
    flags = [*(("--learner.steps", str(steps)) if steps else ()), *context.args]
    if world == "reasoning":
        run_arms(
            arms.split(","),
            files,
            flags,
            run_dir=run_dir or _ROOT / "runs" / "reasoning-demo",
            cache=cache,
            seed=seed,
            actors=actors,
            warm_start_steps=warm_start_steps,
        )
        return
    run_facts(
        files,
        flags,
        run_dir=run_dir or _ROOT / "runs" / "demo",
        cache=cache,
        seed=seed,
        actors=actors,
        warm_start_steps=warm_start_steps,
    )


def run_facts(
    files: Sequence[str],
    flags: Sequence[str],
    *,
    run_dir: Path,
    cache: Path,
    seed: int,
    actors: int,
    warm_start_steps: int | None,
) -> None:
    """The demo of the world of facts. Blocks until the run has ended.

    Args:
        files: configuration files, over ``configs/demo.toml``.
        flags: further settings, as ``common.config.load`` reads them.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    began = time.monotonic()
    files = [str(_CONFIG), *files]
    style = load(files).model.prompt_style
    world = cache.absolute() / f"world-{seed}"
    policy = cache.absolute() / (f"policy-{seed}" if style == "tag" else f"policy-{style}-{seed}")
    settings = [
        *files,
        *("--run.dir", str(run_dir.absolute())),
        *("--run.seed", str(seed)),
        *("--data.train", str(world / "train.parquet")),
        *("--data.heldout", str(world / "heldout.parquet")),
        *("--model.path", str(policy)),
        *("--reward.calibration", str(world / "facts.csv")),
        *flags,
    ]
    directory = load(settings).run.dir  # read now, so that a wrong flag is an error before the preparation
    warm_start = ["--style", style, *(("--steps", str(warm_start_steps)) if warm_start_steps else ())]
    try:
        prepare(world, policy, seed, warm_start)
        prepared = time.monotonic()
        run_all(settings, directory, actors)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command resumes {run_dir}", file=sys.stderr)
        raise
    times = {"preparation_seconds": prepared - began, "command_seconds": time.monotonic() - began}
    finish(directory, world, times)


if __name__ == "__main__":
    main()
