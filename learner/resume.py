"""What a run that goes on may do otherwise than it began: its configuration is compared with the one it has had so far.

The checkpoint that it goes on from has the configuration of the steps until then; ``config.json`` in run.dir has that
of the newest start, which may have trained no step. Settings that change nothing about the trained policy, or only how
long it is trained, may differ. Any other must be named in ``resume.accept``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import Config
from common.config.resume import CONFIG_FILE, SKIPPED_UNTIL
from common.files import replace_text
from common.process import FatalError

log = logging.getLogger("learner.resume")

# A setting is harmless if every step is what it would have been without the change, apart from rounding, from what is
# random in an asynchronous run, and from the masks of lora.dropout, which are others with other ranks or micro-batches.
# A section's name stands for all of it.
_HARMLESS = frozenset({
    "resume",
    "run.dir", "run.rendezvous", "run.trackers",
    # Training questions are compared by their digest, wherever they lie. Those of evaluations may be others, too;
    # learner/loop/evaluator.py compares their digests, and the summary then has no figures of before.
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
_UNTIL = "config-until-step-"  # and the step: how the files with the earlier configurations are called
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


def changes(before: Mapping[str, Any], config: Config) -> list[Change]:
    """How ``config`` differs from the JSON of an earlier one, sorted by key.

    A setting that the earlier program did not know counts as having had its default, which keeps the meaning that there
    was without it. One that this program no longer knows is no change.
    """
    now, defaults = config.model_dump(mode="json"), Config().model_dump(mode="json")
    found = []
    for section, values in now.items():
        earlier = defaults[section] | before.get(section, {})
        found += [
            Change(f"{section}.{name}", earlier[name], value)
            for name, value in values.items()
            if _what_matters(section, name, earlier[name]) != _what_matters(section, name, value)
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
    """Of judges the models: where they are served may change. Of the targets of adapters, the names in any order."""
    match f"{section}.{name}":
        case "reward.judges":
            return [one.partition("@")[0] for one in value]
        case "lora.targets":
            return sorted(set(value))
    return value


def check(config: Config, kept: Mapping[str, Any] | None) -> None:
    """Compares the configuration of a run that has a checkpoint with its own, and logs what changed.

    Args:
        config: with the number of steps that it will make.
        kept: the configuration that the checkpoint has, as JSON; empty where an older program wrote it, so that the
            run's ``config.json`` has to do; None where there is no checkpoint.

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
    found = changes(before, config) if (before := _before(config, kept)) is not None else []
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


def are_forgiven(config: Config, kept: Mapping[str, Any], step: int) -> bool:
    """Whether the steps in a row that trained nothing until ``step`` no longer count (``learner.loop.skips``).

    That is so where ``resume.accept`` has ``skipped-until-STEP``, with the step, so that the same command given again
    does not forgive later ones; and where a setting that matters has changed since, if there are steps left for it.

    Args:
        kept: as of :func:`check`.
        step: of the checkpoint.
    """
    if f"{SKIPPED_UNTIL}{step}" in config.resume.accept:
        return True
    changed = bool(kept) and not all(change.is_harmless for change in changes(kept, config))
    return changed and step < config.learner.steps


def keep_configuration(config: Config, kept: Mapping[str, Any], step: int) -> None:
    """Keeps the configuration of the steps until now as ``config-until-step-000040.json``, if it is another one.

    Those of later steps, which the resume undoes, are removed.

    Args:
        kept: as of :func:`check`.
        step: of the checkpoint.

    Raises:
        FatalError: it cannot be written, or one of a later step not be removed.
    """
    _remove_later(config.run.dir, step)
    before, path = _before(config, kept), config.run.dir / f"{_UNTIL}{step:06d}.json"
    if before is None or not changes(before, config):
        return
    if not kept and path.exists():  # then config.json may be of a start that trained no step
        return
    try:
        replace_text(path, json.dumps(before, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise FatalError(f"cannot keep the configuration of the steps so far as {path}: {error.strerror}") from None
    log.info("the configuration of the steps so far is kept in %s", path)


def _remove_later(directory: Path, step: int) -> None:
    """Removes what was kept of later steps, which the resume undoes."""
    for path in directory.glob(f"{_UNTIL}*.json"):
        number = path.stem.removeprefix(_UNTIL)
        if number.isdecimal() and int(number) > step:
            try:
                path.unlink()
            except OSError as error:
                raise FatalError(f"cannot remove {path}, which the resume undoes: {error.strerror}") from None


def _before(config: Config, kept: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The configuration of the steps until now; None where there are none, or where whatever it was is accepted."""
    if kept is None or kept:
        return kept
    path = config.run.dir / CONFIG_FILE
    try:
        before: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(before, dict) or not all(isinstance(section, dict) for section in before.values()):
            raise ValueError("it is no table of settings")
    except (OSError, ValueError) as error:
        if CONFIG_FILE not in config.resume.accept:
            raise FatalError(
                f"cannot compare with the configuration that the run had so far, {path}: {error}; put the file back, "
                f"begin another run.dir, or accept all settings as they are now with --resume.accept {CONFIG_FILE}"
            ) from None
        log.warning("cannot compare with the configuration that the run had so far, %s: %s", path, error)
        return None
    return before


def _is_accepted(key: str, config: Config) -> bool:
    return key in config.resume.accept or key.partition(".")[0] in config.resume.accept


def _same(one: Path, other: Path) -> bool:
    return one.absolute().resolve() == other.absolute().resolve()
