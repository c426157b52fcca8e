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


def make_savable(model: PreTrainedModel, path: str, stop_ids: Sequence[int] = ()) -> None:
    """Makes the settings of a model such as transformers writes them, in place, and tries it in a temporary directory.

    transformers loads settings with a mistake in them, and refuses to write them. The usual one, also of published
    models, is a temperature, ``top_p`` or ``top_k`` where ``do_sample`` is not true. Where nothing else says how
    answers are found, whoever wrote it wanted them to be sampled so, and ``do_sample`` is set. Where it is given as
    false, the temperature is 0, or beams or a contrastive search are asked for, answers are not to be sampled, and the
    values for sampling are left out. What is changed is in the log.

    Args:
        path: of the model, for the log and the error.
        stop_ids: tokens that end an answer besides those that its ``generation_config.json`` has.

    Raises:
        FatalError: there is another mistake, or the temporary directory cannot be written.
    """
    settings: GenerationConfig | None = model.generation_config
    if settings is not None:
        known = settings.eos_token_id
        ends = [] if known is None else list(known) if isinstance(known, list) else [known]
        ends += [token for token in stop_ids if token not in ends]
        settings.eos_token_id = (ends if len(ends) > 1 else ends[0]) if ends else None
        change = _mend_sampling(settings)
        if change and not (dist.is_initialized() and dist.get_rank()):  # once, not by every rank
            log.warning("generation_config.json of %s is mended for the export: %s", path, change)
    try:
        with tempfile.TemporaryDirectory() as directory:
            model.config.save_pretrained(directory)
            if settings is not None:
                settings.save_pretrained(directory)
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


def _mend_sampling(settings: GenerationConfig) -> str:
    """Makes ``do_sample`` and the values for sampling agree, in place. What was changed; empty where they agreed."""
    given = {
        name: value
        for name, silent in _OF_SAMPLING.items()
        if (value := getattr(settings, name, None)) not in (None, silent)
    }
    greedy = settings.temperature == 0  # as engines read it; transformers divides by it, and raises
    if not given or (settings.do_sample and not greedy):
        return ""
    searches = (settings.num_beams or 1) > 1 or (getattr(settings, "penalty_alpha", None) or 0) > 0
    if settings.do_sample is None and not greedy and not searches:
        settings.do_sample = True
        return f"do_sample = true is set, as {_listed(given)} is given"
    for name in given:
        setattr(settings, name, None)  # as where the file has none: transformers has its default
    change = f"{_listed(given)} is left out, as answers are not sampled"
    if settings.do_sample:
        settings.do_sample = False  # otherwise they would be sampled at a temperature of 1
        change += ", and do_sample = false is set, as a temperature of 0 asks for it"
    return change


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())
