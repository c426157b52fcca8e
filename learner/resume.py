"""What a run that goes on may do otherwise than it began: its configuration is compared with the one it has had so far.

``config.json`` in run.dir is the configuration of the steps until now. Settings that change nothing about the trained
policy, or only how long it is trained, may differ. Any other must be named in ``resume.accept``.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import Config
from common.config.resume import CONFIG_FILE
from common.process import FatalError

log = logging.getLogger("learner.resume")

# A setting is harmless if every step is what it would have been without the change, apart from rounding and from what
# is random in an asynchronous run. A section's name stands for all of it.
_HARMLESS = frozenset({
    "resume",
    "run.dir", "run.rendezvous", "run.trackers",
    # The questions themselves are compared by their digest, wherever they lie.
    "data.train", "data.heldout", "data.columns", "data.language", "data.broken_rows", "data.pass_rate",
    "actor.name", "actor.engine_url", "actor.engine_port", "actor.groups_in_flight", "actor.attempts", "actor.restarts",
    "actor.start_timeout_s", "actor.request_timeout_s", "actor.score_patience_s",
    "reward.addresses", "reward.replica", "reward.device", "reward.batch_window_ms", "reward.batch_texts",
    "reward.batch_tokens", "reward.queue_texts", "reward.cache_entries", "reward.drift_warning",
    "reward.request_timeout_s", "reward.judge_timeout_s", "reward.judge_calls", "reward.diagnostics",
    "learner.steps", "learner.epochs",
    "learner.address", "learner.ranks", "learner.nodes", "learner.torchrun", "learner.restarts", "learner.replicas",
    "learner.lease_timeout_s", "learner.group_attempts", "learner.group_engines", "learner.group_timeout_s",
    "learner.optimizer_on_cpu", "learner.reference_on_cpu", "learner.microbatch_tokens", "learner.head_chunk",
    "learner.activation_checkpointing", "learner.checkpointed_layers", "learner.compile", "learner.keep_gathered",
    "learner.checkpoint_every", "learner.checkpoints_kept", "learner.record",
    "learner.gradient_noise_every",
    "learner.evaluate", "learner.evaluate_before", "learner.evaluate_every", "learner.evaluate_questions",
    "learner.evaluate_samples", "learner.evaluate_unseen",
    "sync.transport", "sync.backend", "sync.host", "sync.port", "sync.directory", "sync.bucket_mb", "sync.timeout_s",
    "sync.slowest_mb_per_s", "sync.drain_s",
    "lora.sync",
})  # fmt: skip
# What a run cannot change even if that is accepted, because its checkpoints hold adapters of this form.
_FIXED = frozenset({"lora.rank", "lora.alpha", "lora.targets"})


@dataclass(frozen=True)
class Change:
    """A setting that differs from the one that the run has had so far."""

    key: str  # as in "learner.lr"
    before: Any  # JSON
    now: Any  # JSON

    @property
    def is_harmless(self) -> bool:
        """Whether it may change without being accepted."""
        return _is_harmless(self.key)

    def __str__(self) -> str:
        return f"{self.key}: {json.dumps(self.before)} -> {json.dumps(self.now)}"


def changes(before: dict[str, Any], config: Config) -> list[Change]:
    """How ``config`` differs from the JSON of an earlier one, sorted by key.

    A setting that only one of the two programs knows is no change: it has the meaning that it always had.
    """
    now = config.model_dump(mode="json")
    found = []
    for section, values in now.items():
        known = before.get(section, {})
        found += [
            Change(f"{section}.{name}", known[name], value)
            for name, value in values.items()
            if name in known and _what_matters(section, name, known[name]) != _what_matters(section, name, value)
        ]
    return sorted(found, key=lambda change: change.key)


def what_matters(config: Config, section: str) -> dict[str, Any]:
    """The settings of a section, as JSON, that are not harmless."""
    values = getattr(config, section).model_dump(mode="json")
    return {
        name: _what_matters(section, name, value)
        for name, value in values.items()
        if not _is_harmless(f"{section}.{name}")
    }


def _is_harmless(key: str) -> bool:
    return key in _HARMLESS or key.partition(".")[0] in _HARMLESS


def _what_matters(section: str, name: str, value: Any) -> Any:
    """Of judges the models: where they are served may change."""
    return [one.partition("@")[0] for one in value] if (section, name) == ("reward", "judges") else value


def check(config: Config) -> None:
    """Compares the configuration of a run that has a checkpoint with its own, and logs what changed.

    Args:
        config: with the number of steps that it will make.

    Raises:
        FatalError: settings have changed that are neither harmless nor accepted, or that no run can change; or what
            they were cannot be read, and that is not accepted; or
            ``model.path`` is this run's own export, so that the KL penalty would be to the policy that it has trained.
    """
    directory, model = config.run.dir, config.model.path
    if model and _same(Path(model), directory / "model"):
        raise FatalError(
            f"model.path = {model} is where this run exports its own model, so the KL penalty would be to the trained "
            "policy and no longer to the one it began with: give the model.path it began with to go on, or another "
            "run.dir to begin a new run from there"
        )
    found = _changes_since(config)
    if fixed := [change for change in found if change.key in _FIXED]:
        listed = "\n  ".join(map(str, fixed))
        raise FatalError(
            f"{directory} was begun with adapters of another form, which cannot go on as these:\n  {listed}\n"
            "give the settings as they were, or begin another run.dir"
        )
    refused = [change for change in found if not (change.is_harmless or _is_accepted(change.key, config))]
    if refused:
        listed = "\n  ".join(map(str, refused))
        keys = ",".join(change.key for change in refused)
        raise FatalError(
            f"{directory} was trained so far with another configuration, and these settings matter:\n  {listed}\n"
            f"give them as they were, begin another run.dir, or accept the change with --resume.accept {keys}"
        )
    for change in found:
        accepted = "" if change.is_harmless else " (accepted)"
        log.info("resuming with another setting, %s%s", change, accepted)
        moved = config.router.anneal or config.learner.stages or config.learner.lr_schedule != "constant"
        if moved and change.key in ("learner.steps", "learner.epochs"):
            log.warning(
                "%s: router.anneal, learner.stages and lr_schedule go by the share of the run, and move with it",
                change,
            )


def keep_configuration(config: Config, step: int) -> None:
    """Keeps the configuration of the steps until now as ``config-until-step-000040.json``, if it is another one.

    Raises:
        FatalError: it cannot be written.
    """
    path = config.run.dir / CONFIG_FILE
    kept = config.run.dir / f"config-until-step-{step:06d}.json"
    if not _changes_since(config) or kept.exists():  # one that was used for no step is not kept
        return
    try:
        shutil.copy2(path, kept)
    except OSError as error:
        raise FatalError(f"cannot keep {path} as {kept}: {error.strerror}") from None
    log.info("the configuration of the steps so far is kept in %s", kept)


def _changes_since(config: Config) -> list[Change]:
    """What has changed since the run's checkpoints were written; nothing where there are none."""
    if all(path.suffix for path in (config.run.dir / "checkpoints").glob("step-*")):  # none, or half-written ones
        return []
    path = config.run.dir / CONFIG_FILE
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError("it is no table of settings")
    except (OSError, ValueError) as error:
        if CONFIG_FILE not in config.resume.accept:
            raise FatalError(
                f"cannot compare with the configuration that the run had so far, {path}: {error}; put the file back, "
                f"begin another run.dir, or accept all settings as they are now with --resume.accept {CONFIG_FILE}"
            ) from None
        log.warning("cannot compare with the configuration that the run had so far, %s: %s", path, error)
        return []
    return changes(before, config)


def _is_accepted(key: str, config: Config) -> bool:
    return key in config.resume.accept or key.partition(".")[0] in config.resume.accept


def _same(one: Path, other: Path) -> bool:
    return one.absolute().resolve() == other.absolute().resolve()
