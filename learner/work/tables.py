"""Tables of rows from local parquet files and from the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from common.process import FatalError


def read_table(source: str) -> pa.Table:
    """Reads a whole table, and blocks while it does.

    Args:
        source: the path of a parquet file; or a data set of the hub, of which the split ``train`` is read, as
            ``owner/name`` or ``owner/name:configuration``. With ``HF_HUB_OFFLINE`` it must be in the local cache.

    Raises:
        FatalError: the source is neither, cannot be read, or the hub does not answer within 10 s.
    """
    name, _, configuration = source.partition(":")
    try:
        if Path(source).exists() or not re.fullmatch(r"[\w-]+/[\w.-]+", name) or source.endswith(".parquet"):
            return pq.read_table(source)
        import datasets  # imported here because it is slow to import and rarely needed
        from huggingface_hub import HfApi, constants

        if not constants.HF_HUB_OFFLINE:
            # This fails at once if the hub cannot be reached, whereas load_dataset would retry for half a minute.
            HfApi().dataset_info(name, timeout=10)
        return datasets.load_dataset(name, configuration or None, split="train").data.table
    except FileNotFoundError:
        raise FatalError(f"cannot read {source}: there is no such file") from None
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise FatalError(f"cannot read {source}: {error}") from None
    except httpx.HTTPError as error:
        raise FatalError(f"{source} is not a local file, and the hub cannot be reached: {error}") from None
