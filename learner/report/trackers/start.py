"""Makes the trackers that ``run.trackers`` names."""

from __future__ import annotations

from common.config import Config
from learner.report.trackers.tensorboard_tracker import TensorBoardTracker
from learner.report.trackers.tracker import EveryTracker, Tracker


def start_trackers(config: Config, begin: int) -> Tracker:
    """All trackers of a run, as one.

    Args:
        begin: the step that a resumed run continues from; what was kept of later steps is discarded where that can be.
    """
    trackers: list[Tracker] = []
    if "tensorboard" in config.run.trackers:
        trackers.append(TensorBoardTracker(config.run.dir / "tensorboard", begin))
    return EveryTracker(trackers)
