"""The shapes of the tensors in a safetensors file, from its header.

The library ``safetensors`` reads them too, but it holds Python's lock while it waits for the file system. Where that
hangs, no thread of the process would run any more, and the actor would send no heartbeats.

Format: https://huggingface.co/docs/safetensors, section "Format".
"""

from __future__ import annotations

import json
import os
from pathlib import Path

_LONGEST_HEADER = 100_000_000  # bytes, as in the library


def read_tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Name -> shape of each tensor in a safetensors file. Blocks without a deadline; other threads go on.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file, or shorter than its header says.
    """
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > _LONGEST_HEADER:
            raise ValueError(f"{path} is no safetensors file: its header would have {header_bytes} bytes")
        content = file.read(header_bytes)
        data_bytes = os.fstat(file.fileno()).st_size - 8 - header_bytes
    try:
        tensors = {name: entry for name, entry in json.loads(content).items() if name != "__metadata__"}
        shapes = {name: [int(size) for size in entry["shape"]] for name, entry in tensors.items()}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is no safetensors file: {error!r}") from None
    if end > data_bytes:
        raise ValueError(f"{path} is cut: it has {data_bytes} of {end} bytes of tensors")
    return shapes
