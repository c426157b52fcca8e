"""Sets up torch.distributed: the process group of the learner ranks, and the mesh that weights are sharded over."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from common.gpus import has_cuda
from common.nccl import set_nccl_defaults
from common.process import FatalError

_POLL_S = 1.0  # a signal ends the wait at once, and this only lets the loop turn


def set_up_distributed(timeout_s: float) -> None:
    """Joins the default process group of the ranks that torchrun has started; blocks until all have joined.

    Commands and CPU tensors go through gloo, CUDA tensors through NCCL.

    Args:
        timeout_s: the longest that joining, or any later collective, may take.

    Raises:
        FatalError: torch cannot use the GPU of this rank.
    """
    backend = "gloo"
    if has_cuda():
        set_nccl_defaults()
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        try:
            torch.cuda.set_device(rank)
        except (RuntimeError, AssertionError) as error:  # torch's, for an old driver or a GPU that is not there
            reason = str(error).partition("\n")[0]
            raise FatalError(
                f"cannot use GPU {rank} of this machine: {reason}; update the driver (580 or newer for CUDA 13), lower "
                "learner.ranks to the number of GPUs, or set LRPO_DEVICE=cpu"
            ) from None
        backend = "cpu:gloo,cuda:nccl"
    _meet(partial(dist.init_process_group, backend, timeout=timedelta(seconds=timeout_s)))


def _meet(join: Callable[[], None]) -> None:
    """Calls ``join`` on a thread and waits for it, so that a signal ends the wait.

    Python hears of a signal only when torch has returned. A rank that waits for one that has failed would heed torchrun
    when the time is up, and torchrun waits for it.
    """
    ended, errors = threading.Event(), list[Exception]()

    def run() -> None:
        try:
            join()
        except Exception as error:  # whatever it is, it belongs to the caller
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=run, name="meeting the other ranks", daemon=True).start()
    while not ended.wait(_POLL_S):
        pass
    if errors:
        raise errors[0]


def training_device() -> torch.device:
    """The GPU of this rank, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda() else torch.device("cpu")


def sharding_mesh(device: torch.device, replicas: int, timeout_s: float) -> DeviceMesh:
    """The mesh of all ranks to shard over: one dimension, or (replicas, shards) with more than one replica.

    Args:
        replicas: the setting ``learner.replicas``.
        timeout_s: the longest that a collective may take among some of the ranks. One of all ranks has the time that
            :func:`set_up_distributed` was given.

    Raises:
        FatalError: ``replicas`` does not divide the number of ranks.
    """
    ranks = dist.get_world_size()
    if ranks % replicas:
        raise FatalError(f"learner.replicas = {replicas} does not divide the {ranks} ranks")
    # From groups made here: those of init_device_mesh have torch's own timeout, which is half an hour for gloo.
    if replicas == 1:
        everyone = dist.group.WORLD
        assert everyone is not None  # the default group, which was set up
        return DeviceMesh.from_group(everyone, device.type, mesh_dim_names=("shard",))
    mesh, timeout = torch.arange(ranks).view(replicas, -1), timedelta(seconds=timeout_s)
    alike, _ = dist.new_subgroups_by_enumeration(mesh.T.tolist(), timeout=timeout)
    parts, _ = dist.new_subgroups_by_enumeration(mesh.tolist(), timeout=timeout)
    return DeviceMesh.from_group([alike, parts], device.type, mesh, mesh_dim_names=("replicate", "shard"))
