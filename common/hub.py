"""The Hugging Face hub: which names are its, and why something of it could not be had."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # its documentation lists it

# Without a GPU the commands set HF_HUB_OFFLINE=1 by themselves, so that unsetting it would not help.
OFFLINE = "HF_HUB_OFFLINE=1 keeps this process from the hub: set HF_HUB_OFFLINE=0 to ask it"


def may_be_of_hub(name: str) -> bool:
    """Whether a model's or a data set's name may be one of the hub: it is written like one, and is no path here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def why(name: str, error: Exception) -> str:
    """Why a model could not be loaded.

    Args:
        name: a directory, or a name of the hub.
        error: what its loader raised.

    Returns:
        What the loader said; where the environment keeps this process from the hub, what to set, and only the first
        line of that, as the others advise to check the network.
    """
    if isinstance(error, OSError) and may_be_of_hub(name) and constants.HF_HUB_OFFLINE:
        return f"it is no directory here, and {OFFLINE} ({first_line(error)})"
    return str(error) if Path(name).exists() else f"it is no directory here: {error}"


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
