"""Sets up torch.distributed: the process group of the learner ranks, and the mesh that weights are sharded over."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from common.gpus import has_cuda
from common.process import FatalError


def set_up_distributed(timeout_s: float) -> None:
    """Joins the default process group of the ranks that torchrun has started; blocks until all have joined.

    Commands and CPU tensors go through gloo, CUDA tensors through NCCL.

    Args:
        timeout_s: the longest that joining, or any later collective, may take.
    """
    backend = "gloo"
    if has_cuda():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def training_device() -> torch.device:
    """The GPU of this rank, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda() else torch.device("cpu")


def sharding_mesh(device: torch.device, replicas: int) -> DeviceMesh:
    """The mesh of all ranks to shard over: one dimension, or (replicas, shards) with more than one replica.

    Raises:
        FatalError: ``replicas`` (the setting learner.replicas) does not divide the number of ranks.
    """
    ranks = dist.get_world_size()
    if ranks % replicas:
        raise FatalError(f"learner.replicas = {replicas} does not divide the {ranks} ranks")
    mesh = init_device_mesh(device.type, (replicas, ranks // replicas), mesh_dim_names=("replicate", "shard"))
    return mesh if replicas > 1 else mesh["shard"]
