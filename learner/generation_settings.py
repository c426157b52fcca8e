"""The settings that an exported model gets beside its weights: mended and tried out before anything is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

from transformers import GenerationConfig, PreTrainedModel

from common.process import FatalError

# Values that say how answers are sampled, with those of transformers that say nothing.
_OF_SAMPLING = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 50, "typical_p": 1.0, "min_p": None, "top_h": None,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip


def make_savable(model: PreTrainedModel, path: str, stop_ids: Sequence[int] = ()) -> None:
    """Makes the settings of a model such as transformers writes them, in place, and tries it in a temporary directory.

    transformers loads settings with a mistake in them, and refuses to write them. The usual one, also of published
    models, is a temperature, ``top_p`` or ``top_k`` without ``do_sample``: whoever wrote it wanted answers to be
    sampled so, and that is set here.

    Args:
        path: of the model, for the error.
        stop_ids: tokens that end an answer besides those that its ``generation_config.json`` has.

    Raises:
        FatalError: there is another mistake.
    """
    settings: GenerationConfig | None = model.generation_config
    if settings is not None:
        known = settings.eos_token_id
        ends = [] if known is None else list(known) if isinstance(known, list) else [known]
        ends += [token for token in stop_ids if token not in ends]
        settings.eos_token_id = (ends if len(ends) > 1 else ends[0]) if ends else None
        if any(getattr(settings, name, None) not in (None, silent) for name, silent in _OF_SAMPLING.items()):
            settings.do_sample = True
    try:
        with tempfile.TemporaryDirectory() as directory:
            model.config.save_pretrained(directory)
            if settings is not None:
                settings.save_pretrained(directory)
    except (OSError, ValueError) as error:
        raise FatalError(
            f"the trained model could not be exported: transformers does not write the config.json or "
            f"generation_config.json that {path} has: {' '.join(str(error).split())} Mend that file"
        ) from None
