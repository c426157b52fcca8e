"""The settings that an exported model gets beside its weights: mended and tried out before anything is trained."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from transformers import GenerationConfig, PreTrainedModel

from common.process import FatalError

log = logging.getLogger("learner")

# Values that say how answers are sampled, with those of transformers that say nothing.
_OF_SAMPLING = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 50, "typical_p": 1.0, "min_p": None, "top_h": None,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
_OFF = {"top_k": 0, "min_p": 0.0}  # which switch a filter off and are not transformers' own, so that it refuses them


def add_stop_ids(model: PreTrainedModel, stop_ids: Sequence[int]) -> None:
    """Lets tokens end an answer besides those that the model's ``generation_config.json`` has, in place."""
    settings: GenerationConfig | None = model.generation_config
    if settings is None:
        return
    known = settings.eos_token_id
    ends = [] if known is None else list(known) if isinstance(known, list) else [known]
    ends += [token for token in stop_ids if token not in ends]
    settings.eos_token_id = (ends if len(ends) > 1 else ends[0]) if ends else None


def mend_sampling(model: PreTrainedModel, path: str) -> None:
    """Makes ``do_sample`` of a model's settings and their values for sampling agree, in place; logs what is changed.

    transformers loads settings with a mistake in them, and refuses to write them. The usual one, also of published
    models, is a temperature, ``top_p`` or ``top_k`` where ``do_sample`` is not true. Where nothing else says how
    answers are found, whoever wrote it wanted them to be sampled so, and ``do_sample`` is set. Where it is given as
    false, the temperature is 0, or beams or a contrastive search are asked for, answers are not to be sampled, and the
    values for sampling are left out. A value that only switches a filter off, as ``top_k`` = 0, asks for no sampling.

    Args:
        path: of the model, for the log.
    """
    settings: GenerationConfig | None = model.generation_config
    change = "" if settings is None else _mend(settings)
    if change and not (dist.is_initialized() and dist.get_rank()):  # once, not by every rank
        log.warning("generation_config.json of %s is mended for the export: %s", path, change)


def try_to_save(model: PreTrainedModel, path: str) -> None:
    """Writes the settings of a model into a temporary directory, as the export will.

    Args:
        path: of the model, for the error.

    Raises:
        FatalError: transformers does not write them, or the temporary directory cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory() as directory:
            model.config.save_pretrained(directory)
            if model.generation_config is not None:
                model.generation_config.save_pretrained(directory)
    except OSError as error:  # of the machine, not of the model
        raise FatalError(
            f"cannot try out in a temporary directory whether the model can be exported: {error}. Make room there, or "
            "name another directory in the environment variable TMPDIR"
        ) from None
    except ValueError as error:
        raise FatalError(
            f"the trained model could not be exported: transformers does not write the config.json or "
            f"generation_config.json that {path} has: {' '.join(str(error).split())} Mend that file"
        ) from None


def _mend(settings: GenerationConfig) -> str:
    """Makes ``do_sample`` and the values for sampling agree, in place. What was changed; empty where they agreed."""
    given = {
        name: value
        for name, silent in _OF_SAMPLING.items()
        if (value := getattr(settings, name, None)) not in (None, silent)
    }
    greedy = settings.temperature == 0  # as engines read it; transformers divides by it, and raises
    if not given or (settings.do_sample and not greedy):
        return ""
    asking = {name: value for name, value in given.items() if value != _OFF.get(name)}
    searches = (settings.num_beams or 1) > 1 or (getattr(settings, "penalty_alpha", None) or 0) > 0
    if asking and settings.do_sample is None and not greedy and not searches:
        settings.do_sample = True
        return f"do_sample = true is set, as {_listed(asking)} is given"
    for name in given:
        setattr(settings, name, None)  # as where the file has none: transformers has its default
    change = f"{_listed(given)} is left out, as answers are not sampled"
    if settings.do_sample:
        settings.do_sample = False  # otherwise they would be sampled at a temperature of 1
        change += ", and do_sample = false is set, as a temperature of 0 asks for it"
    return change


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())
