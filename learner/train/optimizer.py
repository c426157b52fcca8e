"""The optimizer: AdamW with its state in float32, or in 8 bits by torchao.

The moments of AdamW take 8 bytes for each parameter in float32, and 2 in 8 bits: blocks of 256 values share a scale
(arXiv 2110.02861). torchao's optimizer knows the sharded parameters of FSDP2. It quantizes what a rank holds of a
parameter where that is at least 4096 values in whole blocks, and keeps the state of the rest in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from common.config import LearnerConfig
from common.process import FatalError


def make_optimizer(parameters: Iterable[torch.nn.Parameter], config: LearnerConfig) -> torch.optim.Optimizer:
    """AdamW as ``learner.optimizer`` says, for parameters that are sharded already.

    Raises:
        FatalError: it needs the package torchao, which is not installed.
    """
    groups = parameter_groups(parameters)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=0.0, fused=True)
    try:
        from torchao.optim import AdamW8bit  # an optional package
    except ImportError as error:
        raise FatalError(
            f"learner.optimizer = {config.optimizer!r} needs the package torchao ({error}): install it with "
            "pip install 'torchao>=0.18,<0.19', or set learner.optimizer = 'adamw'"
        ) from None
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=config.lr, betas=config.betas, weight_decay=0.0)
    return optimizer


def parameter_groups(parameters: Iterable[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """The optimizer's two groups: matrices, and the vectors that ``learner.weight_decay_on`` may leave out.

    Vectors are biases and the gains of norms. The groups are the same whatever the setting, so that a checkpoint can be
    read under another one.
    """
    every = list(parameters)
    matrices = [one for one in every if _is_matrix(one)]
    vectors = [one for one in every if not _is_matrix(one)]
    return [{"params": members} for members in (matrices, vectors) if members]


def set_rates(optimizer: torch.optim.Optimizer, lr: float, config: LearnerConfig) -> None:
    """Sets what the configuration says for the next step, because a checkpoint brings its own settings."""
    for group in optimizer.param_groups:
        decays = config.weight_decay_on == "all" or _is_matrix(group["params"][0])
        # torchao has the rate in a tensor, so that another rate is not another program for torch.compile.
        rate = torch.tensor(lr) if isinstance(group["lr"], Tensor) else lr
        group |= {"lr": rate, "betas": config.betas, "weight_decay": config.weight_decay if decays else 0.0}


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """The step of the optimizer. On a CPU torchao's is computed without the program that torch.compile makes of it."""
    with torch.compiler.set_stance("force_eager") if _is_compiled(optimizer) else nullcontext():
        optimizer.step()


def initialise(optimizer: torch.optim.Optimizer) -> None:
    """Makes the state of the parameters that have none yet, as their first step would: zeros.

    These are all before the first step, and later those that have not had a gradient so far. A checkpoint is read by an
    optimizer that has made no step, so it must hold the state of every parameter.

    Torch makes a missing state before it reads or writes one by a step with the gradient 0. The state then says that a
    step was made, so that the bias correction of the first real step is that of the second: with the default betas,
    the step is only 0.74 times as large (pytorch #164929).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in optimizer.state:
                continue
            if isinstance(optimizer, torch.optim.AdamW):
                on_device = group.get("fused") or group.get("capturable")
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device if on_device else "cpu"),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
            else:
                _initialise_by_step(optimizer, group, parameter)


def describe_state(optimizer: torch.optim.Optimizer) -> dict[str, int] | None:
    """What must be the same where a state in 8 bits is read: which values share a scale depends on the sharding.

    None for a state in float32, which any number of ranks can read.
    """
    if isinstance(optimizer, torch.optim.AdamW):
        return None
    parameter = optimizer.param_groups[0]["params"][0]
    return {"bits": 8, "shards": parameter.device_mesh.size(-1) if isinstance(parameter, DTensor) else 1}


def check_same_state(saved: Mapping[str, int] | None, optimizer: torch.optim.Optimizer, checkpoint: str) -> None:
    """Compares the state in a checkpoint with what the optimizer of this run can read.

    Args:
        saved: what ``describe_state`` gave when the checkpoint was written.
        checkpoint: its path, for the error.

    Raises:
        FatalError: it cannot be read.
    """
    now = describe_state(optimizer)
    if saved == now:
        return
    held, wanted = (
        "in float32" if one is None else f"in {one['bits']} bits, for weights in {one['shards']} shards"
        for one in (saved, now)
    )
    raise FatalError(
        f"cannot resume from {checkpoint}: the state of its optimizer is {held}, and that of this run is {wanted}: "
        "give learner.optimizer, learner.ranks and learner.replicas as they were, or another run.dir"
    )


def as_plain_tensors(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Divides the state of an optimizer into what torch can save as it is, and the parts of moments in 8 bits.

    torch cannot write tensors of torchao's class while training goes on.

    Args:
        state: of ``get_state_dict``, with moments by parameter.

    Returns:
        The state without moments in 8 bits, and their parts by names that end with the shard of this rank. All share
        the memory of ``state``. In float32 there are no parts.
    """
    plain, parts = {**state, "state": {}}, dict[str, Tensor]()
    for parameter, moments in state["state"].items():
        kept = plain["state"][parameter] = dict[str, Any]()
        for name, value in moments.items():
            local = value.to_local() if isinstance(value, DTensor) else value
            if not is_traceable_wrapper_subclass(local):
                kept[name] = value
                continue
            shard = (value.device_mesh.get_coordinate() or [0])[-1] if isinstance(value, DTensor) else 0
            for part in local.__tensor_flatten__()[0]:  # codes, scales and the values that the codes stand for
                parts[f"{parameter}.{name}.{part}.{shard}"] = getattr(local, part)
    return plain, parts


@torch.no_grad()
def _initialise_by_step(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor) -> None:
    """Makes the state of one parameter by a step with gradient and learning rate 0, and takes the step back."""
    rate = group["lr"]
    parameter.grad, group["lr"] = torch.zeros_like(parameter), torch.zeros_like(rate)
    take_step(optimizer)  # which leaves out parameters without a gradient
    optimizer.state[parameter]["step"].zero_()
    parameter.grad, group["lr"] = None, rate


def _is_compiled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether torch.compile is used, and the parameters are on a CPU."""
    return not isinstance(optimizer, torch.optim.AdamW) and optimizer.param_groups[0]["params"][0].device.type == "cpu"


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.dim() >= 2
