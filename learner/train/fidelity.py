"""Compares the learner's log-probabilities with those of transformers' own forward pass, when a model is loaded.

The learner does not call a model's own forward pass: it packs sequences, replaces the attention and row-wise parts of
the layers, and computes the vocabulary projection itself, in chunks. What an architecture does besides (soft caps,
scaled logits, a state that runs through packed sequences) would be left out in silence, and everything that is trained
would be slightly wrong. So a few short random sequences are computed both ways, with the same weights, before anything
is sharded. In float32, because rounding to bfloat16 makes differences that others hide behind.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from common.process import FatalError
from learner.train.attention import PACKED_ATTENTION
from learner.train.fused import plain
from learner.train.packing import MicroBatch, bare_sample, pack
from learner.train.policy import Policy, drop_gathered, read_config
from learner.weights.probe import probe_tolerance

log = logging.getLogger("learner.fidelity")

_LEAST_LAYERS = 4  # of a model of which not all are computed
_LENGTHS = (23, 3, 10)  # of the sequences, packed in this order
_WINDOW = 5  # the tokens that a layer with a window sees meanwhile, so that sequences as short as these are longer
_WINDOWS = ("sliding_window", "attention_chunk_size")
_SEED = 0


@dataclass(frozen=True)
class Agreement:
    """What transformers says about the sequences, and how far the learner is from it.

    Args:
        sequences: token ids of each.
        logp: [tokens that are predicted] float32, transformers' own log-probabilities, in nats.
        difference: mean absolute difference of the learner's, in nats.
        dtype: in which both computed.
    """

    sequences: list[NDArray[np.int32]]
    logp: Tensor
    difference: float
    dtype: torch.dtype


def first_layers(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration with only so many layers that each kind is among them, and at least four."""
    config = deepcopy(config)
    shape: Any = config.get_text_config()
    every = shape.num_hidden_layers
    by_layer = {name: value for name, value in vars(shape).items() if isinstance(value, list) and len(value) == every}
    firsts = [value.index(kind) + 1 for value in by_layer.values() for kind in value]
    kept = min(every, max([_LEAST_LAYERS, *firsts]))
    shape.num_hidden_layers = kept
    for name, value in by_layer.items():
        setattr(shape, name, value[:kept])
    return config


@torch.no_grad()
def compare(policy: Policy) -> Agreement:
    """Compares the policy, which must not be sharded yet, with transformers' own forward pass in eager attention.

    The same weights are used for both, so that a model needs no second copy. Layers with a window get a shorter one
    meanwhile.

    Raises:
        FatalError: one of the two cannot compute the model.
    """
    sequences = _random_sequences(policy)
    with _short(_windows(policy)):
        logp = _transformers(policy, sequences)
        found = _learner(policy, sequences)
    return Agreement(sequences, logp, float((found - logp).abs().mean()), next(policy.parameters()).dtype)


@torch.no_grad()
def check_fidelity(policy: Policy) -> Agreement:
    """Compares the policy, whose weights are in float32, as :func:`compare` does.

    Raises:
        FatalError: they differ by more than the order of additions explains, which makes 1e-7 to 1e-5 nats. It names
            the model type and what differs.
        ValueError: the weights are not in float32.
    """
    agreement = compare(policy)
    if agreement.dtype != torch.float32:
        raise ValueError(f"weights in {agreement.dtype} round too much for this")
    sequences, difference = agreement.sequences, agreement.difference
    limit = probe_tolerance(0.0, exact=True, layers=policy.layers, spread=float(agreement.logp.std()))
    if not difference <= limit:  # also where it is not a number
        config: Any = policy.lm.config
        raise FatalError(
            f"the learner's log-probabilities are not the model's: {type(policy.lm).__name__} (model type "
            f"{config.model_type!r}) is off by {difference:.2g} nats a token from transformers' own, and {limit:.2g} "
            f"are allowed. What differs is {_what_differs(policy, sequences, limit)}. This model type cannot be "
            "trained; docs/models.md lists what is supported"
        )
    return agreement


def check_first_layers(make_policy: Callable[..., Policy], path: str, device: torch.device) -> None:
    """Compares the first layers of a model, of every kind that it has, with transformers' own in float32.

    For a model whose weights are not kept in float32: all of them would take twice the memory.

    Args:
        make_policy: takes ``config`` and ``dtype``, as ``Policy`` does.
        path: of the model.

    Raises:
        FatalError: it cannot be loaded, or its log-probabilities are not those of transformers.
    """
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it would name all weights of the other layers
    try:
        policy = make_policy(config=first_layers(read_config(path)), dtype=torch.float32).to(device)
    finally:
        transformers.logging.set_verbosity(verbosity)
    found = check_fidelity(policy)
    log.info("log-probabilities of %d layers in float32: %.1e nats apart", policy.layers, found.difference)
    del policy
    gc.collect()  # its modules refer to one another, and the memory is needed for the whole model


@torch.no_grad()
def rounding_difference(policy: Policy, agreement: Agreement, device: torch.device) -> tuple[float, float]:
    """How far the policy is, with the dtype and the kernels that it trains with, from transformers in ``agreement``.

    A collective of all ranks, once the policy is sharded.

    Returns:
        The mean absolute difference in nats, and the one that rounding explains.
    """
    with _short(_windows(policy)):
        found = policy(_packed(agreement.sequences, device), temperature=1.0)[0]
    drop_gathered(policy)
    allowed = probe_tolerance(0.0, exact=False, layers=policy.layers, spread=float(agreement.logp.std()))
    return float((found - agreement.logp).abs().mean()), allowed


def _random_sequences(policy: Policy) -> list[NDArray[np.int32]]:
    """Token ids without those that stand for something, as the places of images do."""
    shape: Any = policy.lm.config
    embedded = cast(Any, policy.lm.get_input_embeddings()).num_embeddings
    ids = np.arange(min(policy.vocabulary, embedded))
    special = {
        value
        for config in {id(shape): shape, 0: shape.get_text_config()}.values()
        for name, value in config.to_dict().items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    ordinary = np.array([token for token in ids if token not in special])
    generator = np.random.default_rng(_SEED)
    return [generator.choice(ordinary, length).astype(np.int32) for length in _LENGTHS]


def _packed(sequences: Sequence[NDArray[np.int32]], device: torch.device) -> MicroBatch:
    return pack([bare_sample(ids) for ids in sequences]).to(device)


def _learner(policy: Policy, sequences: Sequence[NDArray[np.int32]]) -> Tensor:
    device = next(policy.parameters()).device
    return _guarded(policy, "the learner", lambda: policy(_packed(sequences, device), temperature=1.0)[0])


def _transformers(policy: Policy, sequences: Sequence[NDArray[np.int32]]) -> Tensor:
    """The log-probabilities of each sequence alone, one after the other, [tokens that are predicted] float32."""
    device = next(policy.parameters()).device
    found = []
    with _eager(policy):
        for sequence in sequences:
            ids = torch.from_numpy(sequence.astype(np.int64)).to(device)
            logits = _guarded(policy, "transformers", partial(_own_logits, policy, ids))
            found.append(logits[:-1].float().log_softmax(-1).gather(1, ids[1:, None])[:, 0])
    return torch.cat(found)


def _own_logits(policy: Policy, ids: Tensor) -> Tensor:
    logits: Tensor = policy.lm(input_ids=ids[None], use_cache=False).logits[0]
    return logits


def _guarded(policy: Policy, who: str, compute: Callable[[], Tensor]) -> Tensor:
    try:
        return compute()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the model's own code comes to, if it is not made for being called this way
        raise FatalError(
            f"{who} cannot compute {type(policy.lm).__name__} (model type {cast(Any, policy.lm.config).model_type!r}) "
            f"in packed sequences: {type(error).__name__}: {error}. This model type cannot be trained; docs/models.md "
            "lists what is supported"
        ) from error


@contextmanager
def _eager(policy: Policy) -> Iterator[None]:
    """Within the block the model is as transformers has it."""
    policy.lm.set_attn_implementation("eager")
    try:
        with plain(policy.lm):
            yield
    finally:
        policy.lm.set_attn_implementation(PACKED_ATTENTION)


def _windows(policy: Policy) -> list[tuple[Any, str, int]]:
    """Where the sizes of windows are kept: object, name and value. Masks read the configuration, layers their own."""
    modules = list(policy.lm.modules())
    configs = {id(one): one for one in (getattr(module, "config", None) for module in modules) if one is not None}
    return [
        (holder, name, value)
        for holder in (*configs.values(), *modules)
        for name in _WINDOWS
        if type(value := getattr(holder, name, None)) is int and value > _WINDOW
    ]


@contextmanager
def _short(windows: list[tuple[Any, str, int]]) -> Iterator[None]:
    for holder, name, _ in windows:
        setattr(holder, name, _WINDOW)
    try:
        yield
    finally:
        for holder, name, value in windows:
            setattr(holder, name, value)


def _what_differs(policy: Policy, sequences: Sequence[NDArray[np.int32]], limit: float) -> str:
    """The part of the model to which the difference can be traced, for the error message."""

    def differs(some: Sequence[NDArray[np.int32]]) -> bool:
        return not float((_learner(policy, some) - _transformers(policy, some)).abs().mean()) <= limit

    alone = sequences[:1]
    if not differs(sequences):
        return "what a layer sees beyond its attention window"
    if not differs(alone):
        return "that packed sequences see one another, as a state or a convolution lets them"
    ids = torch.from_numpy(alone[0].astype(np.int64)).to(next(policy.parameters()).device)[None]
    decoder = policy.lm.get_decoder()
    with _eager(policy):
        theirs = decoder(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    head: Any = policy.lm.get_output_embeddings()
    with _eager(policy):
        logits = _own_logits(policy, ids[0])[:-1].float()
    plain = head(theirs).float()
    if not torch.allclose(policy.transform(plain), logits, rtol=1e-3, atol=1e-3):
        return "what the model does to its logits behind the vocabulary projection"
    return "the attention or the layers"
