"""Compares NCCL's settings of an engine with the learner's, before the two form a group that would hang."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import psutil

from common.nccl import nccl_settings

_SYMMETRIC_MEMORY = {"NCCL_CUMEM_ENABLE": "1", "NCCL_NVLS_ENABLE": "1"}  # what SGLang sets for it, whatever was set


def describe_nccl_difference(url: str, server_info: Mapping[str, Any], learner: Mapping[str, str]) -> str:
    """How an engine's settings differ from the learner's; empty where they do not, or cannot be seen from here.

    SGLang takes the settings from its environment, which can be read where this process runs on the same host as the
    same user. Its flags for symmetric memory and NVLS come before the environment.

    Args:
        url: of the engine.
        server_info: what its route ``/server_info`` answered.
        learner: the learner's settings, by name.
    """
    environment = environment_of_server(url)
    engine = {} if environment is None else nccl_settings(environment)
    if server_info.get("enable_nccl_nvls"):
        engine["NCCL_NVLS_ENABLE"] = "1"
    if server_info.get("enable_symm_mem"):
        engine |= _SYMMETRIC_MEMORY
    different = [f"{name}={value}" for name, value in engine.items() if learner.get(name, value) != value]
    wanted = [f"{name}={learner[name]}" for name, value in engine.items() if learner.get(name, value) != value]
    return f"it has {' and '.join(different)}, the learner {' and '.join(wanted)}" if different else ""


def environment_of_server(url: str) -> dict[str, str] | None:
    """The environment with which the server at a loopback address was started; None if it is not visible."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1") or parts.port is None:
        return None
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == parts.port
            if listens and connection.pid is not None:
                found: dict[str, str] = psutil.Process(connection.pid).environ()
                return found if "PATH" in found else None  # a process that renames itself may have overwritten it
    return None
