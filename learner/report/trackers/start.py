"""Makes the trackers that ``run.trackers`` names."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable
from pathlib import Path

from common.config import Config
from common.process import FatalError
from learner.report.trackers.optional import OptionalTracker
from learner.report.trackers.tensorboard_tracker import TensorBoardTracker
from learner.report.trackers.tracker import EveryTracker, Tracker
from learner.report.trackers.trackio_tracker import TrackioTracker
from learner.report.trackers.wandb_tracker import WandbTracker

_OPTIONAL: dict[str, Callable[[Config, str], Tracker]] = {"wandb": WandbTracker, "trackio": TrackioTracker}
_ADVICE = {
    "wandb": "run `wandb login`, or set WANDB_MODE=offline",
    "trackio": "check its TRACKIO_ settings",
}
_ID_FILE = "tracker-id.txt"


def check_trackers(config: Config) -> None:
    """Checks that the packages of all trackers are there, which is worth knowing before a model is loaded.

    Raises:
        FatalError: one is missing.
    """
    for name in config.run.trackers:
        if importlib.util.find_spec(name) is None:
            raise FatalError(f"run.trackers names {name!r}, which is not installed: pip install {name}")


def start_trackers(config: Config, begin: int) -> Tracker:
    """All trackers of a run, as one.

    Args:
        begin: the step that a resumed run continues from. TensorBoard discards what was kept of later steps; the
            others keep both.

    Raises:
        FatalError: a tracker is not installed, or cannot start.
    """
    check_trackers(config)
    trackers: list[Tracker] = []
    run_id = ""
    for name in dict.fromkeys(config.run.trackers):
        if name == "tensorboard":
            trackers.append(TensorBoardTracker(config.run.dir / "tensorboard", begin))
            continue
        try:
            run_id = run_id or _run_id(config.run.dir, begin)
            trackers.append(OptionalTracker(name, _OPTIONAL[name](config, run_id)))
        except Exception as error:  # another program's, over a network: it may raise anything
            reason = f"run.trackers names {name!r}, which did not start: {error}; {_ADVICE[name]}"
            raise FatalError(f"{reason}, or leave it out") from error
    return EveryTracker(trackers)


def _run_id(run_dir: Path, begin: int) -> str:
    """Names a run, also after it was resumed, and apart from all others."""
    path = run_dir / _ID_FILE
    if begin and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    run_id = secrets.token_hex(6)
    run_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(run_id + "\n", encoding="utf-8")
    return run_id
