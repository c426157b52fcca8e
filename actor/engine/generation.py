"""One finished answer of an engine: what is asked for with it, and how it is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actor.engine.errors import EngineError
from actor.engine.labels import WeightLabels

# Sent with every request, because a server that somebody else has started may have defaults of its own
# (``--preferred-sampling-params``), and these would change the distribution that the log-probabilities belong to.
NEUTRAL_SAMPLING: dict[str, Any] = {
    "top_p": 1.0, "top_k": -1, "min_p": 0.0, "frequency_penalty": 0.0, "presence_penalty": 0.0,
    "repetition_penalty": 1.0, "min_new_tokens": 0, "stop": None, "ignore_eos": False, "n": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """One finished answer of R response tokens."""

    ids: NDArray[np.int32]  # [R] token ids, the stop token included
    logprobs: NDArray[np.float32]  # [R] behaviour log-probabilities at the sampling temperature
    versions: NDArray[np.int32]  # [R] policy version that produced each token
    truncated: bool  # it reached sampling.max_new_tokens before it ended
    retracted: bool  # the engine put it back into its queue for lack of memory, and generated it again later


def sampling_params(
    sampling: dict[str, Any], answers: int, draws: object | None
) -> dict[str, Any] | list[dict[str, Any]]:
    """``sampling_params`` of a request, without what a server may prefer: for all answers, or for each its own.

    Args:
        sampling: what differs from the whole distribution.
        answers: how many are asked for.
        draws: for a server that samples by seeds, what tells these draws from others: the seed of an answer is made of
            it and of the answer's place. Without seeds of their own such a server takes the same one for all, and so
            gives the same answer to equal prompts. None for other servers.
    """
    params = NEUTRAL_SAMPLING | sampling
    if draws is None:
        return params
    return [params | {"sampling_seed": _seed(draws, number)} for number in range(answers)]


def read_generation(
    answer: dict[str, Any], *, labels: WeightLabels | None, version: int, oldest: int, pauses: int
) -> Generation:
    """One answer of ``/generate``.

    Args:
        answer: as the server sent it.
        labels: of the weights that the server was given; None where it does not know the versions, as of adapters.
        version: policy version of the engine at the time of the request.
        oldest: number of the update of the weights that it had then.
        pauses: weight updates during the request, each of which may have retracted the answer once.

    Raises:
        EngineError: the answer did not end by itself or by its limit.
        ForeignWeights: it was made with weights that the server was not given, or with older ones.
    """
    meta = answer["meta_info"]
    finish = meta["finish_reason"]
    if finish["type"] not in ("stop", "length"):
        raise EngineError(f"/generate: an answer ended with {finish}")
    ids = np.array(answer["output_ids"], np.int32)
    if labels is None:
        versions = np.full(len(ids), version, np.int32)
    else:
        versions = labels.read_versions(meta, len(ids), version, oldest)
    logprobs = np.array([entry[0] for entry in meta["output_token_logprobs"]], np.float32)
    retracted = meta.get("num_retractions", 0) > pauses
    return Generation(ids, logprobs, versions, finish["type"] == "length", retracted)


def _seed(draws: object, number: int) -> int:
    """31 bits, which every version of SGLang takes."""
    return int.from_bytes(hashlib.sha256(f"{draws} {number}".encode()).digest()[:4]) >> 1
