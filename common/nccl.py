"""NCCL settings that every process of a run must have alike.

NCCL decides by its *own* settings how to read the memory handle that a peer sends. If they differ between the learner
and an engine, the first broadcast hangs or fails. SGLang switches both settings off in its own processes where the
environment says nothing, and so does the learner. Who wants them on sets them for every process of the run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

NCCL_DEFAULTS = {"NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "0"}


def set_nccl_defaults(environment: MutableMapping[str, str] | None = None) -> None:
    """Gives the settings their defaults where the environment has none. Must come before NCCL's first use."""
    target = os.environ if environment is None else environment
    for name, value in NCCL_DEFAULTS.items():
        target.setdefault(name, value)


def nccl_settings(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The settings of a process with this environment, by default of this one."""
    source = os.environ if environment is None else environment
    return {name: source.get(name, value) for name, value in NCCL_DEFAULTS.items()}
