"""``python -m learner.replay DIR``: trains a run recorded with ``learner.record`` again, without actors or rewards.

Prints every step beside what was recorded, and exits with 1 if any loss or gradient norm differs in a single bit.
The number of ranks is that of the recorded run, all of them on this machine. Where the run resumed with another
configuration, the steps after that are trained with it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from common.config import Config
from common.gpus import has_cuda
from common.parent import die_with_launcher
from common.process import FatalError
from learner import recording
from learner.checkpoint import Checkpoints
from learner.launch import launch
from learner.ranks import broadcast
from learner.train.distributed import set_up_distributed
from learner.train.trainer import Trainer

_COLLECTIVE_TIMEOUT_S = 600
# Of the section learner, what no trainer reads.
_NOT_OF_TRAINING = (
    "address", "torchrun", "restarts", "staleness", "window", "lease_timeout_s", "group_attempts", "group_engines",
    "group_timeout_s", "refill", "step_reward", "checkpoint_every", "checkpoints_kept", "record", "evaluate",
    "evaluate_before", "evaluate_every", "evaluate_questions", "evaluate_samples", "evaluate_unseen",
)  # fmt: skip


def replay(directory: Path) -> bool:
    """Trains the recorded steps; every rank of the default process group calls it. Rank 0 prints.

    Where the run went on with another configuration, so does this, by a checkpoint in a directory beside the steps.

    Returns:
        Whether loss and gradient norm of every step came out as recorded, to the last bit.

    Raises:
        FatalError: ``directory`` is no whole recording, or it is of different numbers of ranks.
    """
    config, steps = recording.read(directory)
    later = recording.later_configurations(directory)
    check_ranks(config, later)
    trainer = Trainer(config)
    trained = differing = 0
    for step in steps:
        if step.number in later and not _train_alike(config, later[step.number]):
            config = later[step.number]
            if dist.get_rank() == 0:
                print(f"from step {step.number} on with the configuration that the run resumed with", flush=True)
            checkpoint = _save(trainer, step.number - 1, directory)
            del trainer  # before there is another: both may not fit
            trainer = _resume(config, step.number - 1, checkpoint)
        result = trainer.step(step.groups, step.number - 1)
        now = (recording.loss_of(result), result.grad_norm)
        same = repr(now) == repr((step.loss, step.grad_norm))  # repr tells all floats apart, and nan equals nan
        trained, differing = trained + 1, differing + (not same)
        if dist.get_rank() == 0:
            verdict = "as recorded" if same else f"recorded {step.loss!r} and {step.grad_norm!r}"
            print(f"step {step.number}: loss {now[0]!r}, gradient norm {now[1]!r}, {verdict}", flush=True)
    if dist.get_rank() == 0:
        print(f"{trained} steps, {differing} of them differ", flush=True)
    return not differing


def check_ranks(config: Config, later: Mapping[int, Config]) -> None:
    """The order in which ranks add up is that of their number, which a replay cannot change.

    Args:
        later: by its first step, each configuration with which the run went on.

    Raises:
        FatalError: the numbers differ.
    """
    ranks = config.learner.nodes * config.learner.ranks
    for number, other in later.items():
        if (found := other.learner.nodes * other.learner.ranks) != ranks:
            raise FatalError(
                f"the recorded run had {ranks} learner ranks until step {number - 1} and {found} from step {number} "
                "on, which add up in another order: steps of one number of ranks alone can be replayed to the last "
                f"bit. Move the files of the steps from {number} on elsewhere to replay those before"
            )


def _train_alike(one: Config, other: Config) -> bool:
    """Whether two configurations train in the same way, so that a resume with the other one changes nothing here."""

    def of_training(config: Config) -> tuple[object, ...]:
        learner = config.learner.model_dump(exclude=set(_NOT_OF_TRAINING))
        return learner, config.lora, config.model, config.sampling, config.run.seed

    return of_training(one) == of_training(other)


def _save(trainer: Trainer, step: int, directory: Path) -> Path:
    """Writes the trainer's state as a run does it. A collective.

    Returns:
        The directory of the checkpoints.

    Raises:
        FatalError: it cannot be written.
    """
    try:
        name = tempfile.mkdtemp(prefix="replay-", dir=directory) if dist.get_rank() == 0 else ""
    except OSError as error:
        raise FatalError(f"a replay writes a checkpoint into {directory}, and cannot: {error.strerror}") from None
    root = Path(broadcast(name.encode()).decode())
    checkpoints = Checkpoints(root, kept=1)
    state = trainer.reference_state
    reference = trainer.reference if state.moved else None
    checkpoints.save(trainer.policy, trainer.optimizer, step, {}, reference=reference, reference_stage=state.stage)
    checkpoints.wait()
    return root


def _resume(config: Config, step: int, root: Path) -> Trainer:
    """Goes on from what :func:`_save` wrote, and removes it. A collective."""
    try:
        trainer, checkpoints = Trainer(config), Checkpoints(root, kept=1)
        latest = checkpoints.latest()
        assert latest is not None  # it was written a moment ago
        found = checkpoints.load(latest.path, trainer.policy, trainer.optimizer, trainer.reference)
        trainer.resume_reference(found, step)
        dist.barrier()
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(root, ignore_errors=True)
    return trainer


def main() -> None:
    """Replays under torchrun, or starts itself under torchrun with the recorded number of ranks."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit("usage: python -m learner.replay DIR")
    try:
        if "RANK" in os.environ:
            die_with_launcher()
            if not has_cuda():
                torch.set_num_threads(1)
            set_up_distributed(_COLLECTIVE_TIMEOUT_S)
            raise SystemExit(0 if replay(Path(sys.argv[1])) else 1)
        config = recording.read(Path(sys.argv[1]))[0]
        check_ranks(config, recording.later_configurations(Path(sys.argv[1])))
        recorded = config.learner
        on_this_machine = {"nodes": 1, "ranks": recorded.nodes * recorded.ranks, "restarts": 0}
        launch("learner.replay", recorded.model_copy(update=on_this_machine), sys.argv[1:])
    except FatalError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
