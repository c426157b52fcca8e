"""The demo of the reasoning world: one warm-started policy, trained with one reward after the other.

``scripts/demo.sh --world reasoning`` runs it. Each run has the real processes and the settings of
``configs/reasoning-demo.toml``; the runs differ in the reward alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from common.config import ConfigError, load
from scripts.ops.finished_run import check_settings, read_summary
from scripts.ops.local_run import run_all, run_to_end
from scripts.world.existing import build_or_check
from scripts.world.reasoning.measure import Figures, figures, measure

_ROOT = Path(__file__).parents[3]
CONFIGS = (_ROOT / "configs" / "demo.toml", _ROOT / "configs" / "reasoning-demo.toml")
REWARDS = {
    # Right answers alone, whatever they were thought in.
    "naive": ("--reward.gated", "false"),
    # Right answers, and a tenth for the language (SLC-RL).
    "slc": (
        *("--reward.gated", "false"),
        *("--reward.terms.default.exact", "0.9", "--reward.terms.default.thought_language", "0.1"),
    ),
    # Right answers that were thought in the language of the question.
    "strict": ("--reward.gated", "true"),
}
_SAMPLES = 4  # answers to each held-out question in a measurement


def run_arms(
    arms: Sequence[str],
    files: Sequence[str],
    flags: Sequence[str],
    *,
    run_dir: Path,
    cache: Path,
    seed: int,
    actors: int,
    warm_start_steps: int | None,
) -> None:
    """Prepares world and policy, trains an arm after the other, and prints the table. Blocks until all is done.

    An arm that has finished in ``run_dir`` is not trained again, and with other settings it is an error; one that was
    interrupted is resumed.

    Args:
        arms: keys of ``REWARDS``.
        files: configuration files, over those of the demo.
        flags: further settings of all arms, as ``common.config.load`` reads them.

    Raises:
        ConfigError: an arm or a setting is unknown.
        FatalError: an arm has finished with other settings.
    """
    if unknown := [name for name in arms if name not in REWARDS]:
        raise ConfigError(f"--arms: there is no {unknown[0]!r}; there are {', '.join(REWARDS)}")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    began = time.monotonic()
    world, policy = cache.absolute() / f"reasoning-world-{seed}", cache.absolute() / f"reasoning-policy-{seed}"
    shared = [
        *map(str, CONFIGS),
        *files,
        *("--run.seed", str(seed)),
        *("--data.train", str(world / "train.parquet")),
        *("--data.heldout", str(world / "heldout.parquet")),
        *("--model.path", str(policy)),
        *flags,
    ]
    settings = {
        name: [*shared, *REWARDS[name], "--run.dir", str(run_dir.absolute() / name)] for name in dict.fromkeys(arms)
    }
    for name, given in settings.items():  # now, so that what is wrong is an error before the preparation
        config = load(given)
        if read_summary(directory := run_dir.absolute() / name) is not None:
            check_settings(directory, config)
    prepare(world, policy, seed, warm_start_steps)
    measured = {"before": _measure(policy, world, seed)}
    print(f"before: {describe(measured['before'])}", flush=True)
    for name, given in settings.items():
        directory = run_dir.absolute() / name
        if read_summary(directory) is not None:
            print(f"{name}: {directory} has finished before; remove it to train again", flush=True)
        else:
            run_all(given, directory, actors)
        measured[name] = _measure(directory / "model", world, seed)
        print(f"{name}: {describe(measured[name])}", flush=True)
    figures_file = run_dir / "figures.json"
    figures_file.write_text(json.dumps({name: asdict(found) for name, found in measured.items()}, indent=1) + "\n")
    print(table(measured))
    print(f"{time.monotonic() - began:.0f} s in all; all figures: {figures_file}")


def prepare(world: Path, policy: Path, seed: int, warm_start_steps: int | None) -> None:
    """Makes the world and the warm-started policy where they are missing. Blocks meanwhile.

    A world that is there has to be the one that this code makes.

    Raises:
        FatalError: the world that is there has other rows.
        SystemExit: one of the programs failed, after it has printed why.
    """
    build_or_check(world, ["-m", "scripts.world.reasoning.build", "--seed", str(seed)])
    made = ["--world", str(world), "--out", str(policy), "--seed", str(seed)]
    steps = ["--steps", str(warm_start_steps)] if warm_start_steps else []
    run_to_end(["-m", "scripts.world.reasoning.warm_start", *made, *steps])


def describe(found: Figures) -> str:
    """The figures on a line."""
    return (
        f"LC {found.consistency:.3f}, Acc {found.accuracy:.3f}, LC&Acc {found.both:.3f}; {found.english:.0%} of the "
        f"thoughts are English; right are {found.own_accuracy:.0%} of the consistent and {found.english_accuracy:.0%} "
        "of the English ones"
    )


def table(measured: Mapping[str, Figures]) -> str:
    """A row for the policy before training and for each reward, over questions in other languages than English."""
    lines = [f"{'':<8} {'LC':>6} {'Acc':>6} {'LC&Acc':>7} {'English':>8}   of held-out questions not in English"]
    for name, found in measured.items():
        lines.append(
            f"{name:<8} {found.consistency:>6.3f} {found.accuracy:>6.3f} {found.both:>7.3f} {found.english:>8.3f}"
        )
    return "\n".join(lines)


def _measure(model: Path, world: Path, seed: int) -> Figures:
    judged = measure(model, world, _SAMPLES, seed)
    return figures([one for one in judged if one.language != "en"])
