"""What the ranks of a learner on several nodes do in tests of the weight sync: they publish, and train nothing."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from common import wire
from common.config import Config
from learner.gather_action import GatherAction, published_buckets
from learner.rank_links import RankLinks
from learner.rank_watch import RankWatch
from learner.ranks import Command, Ranks
from learner.train.trainer import Trainer
from learner.weights import leader
from learner.weights.buckets import bytes_of
from learner.weights.deadlines import round_deadlines
from learner.weights.publisher import Publisher
from learner.work.server import WorkServer
from tests.support.rank import TIMEOUT_S
from tests.support.train_once import configuration
from tests.support.weight_receivers import digest

_FACTOR = 1.1  # by which each version's weights are those of the version before
_PROBE = wire.Probe(ids=np.zeros(2, np.int32), logprobs=np.zeros(1, np.float32), tolerance=1.0)
_BYTES_SENT = 200  # its place in Linux' struct tcp_info


def expected_digests(model: Path, versions: int) -> tuple[dict[int, str], int]:
    """What every engine must have, computed without sharding, and the bytes of the weights."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    weights, found = dict(policy.named_parameters()), {}
    with torch.no_grad():
        for version in range(1, versions + 1):
            for tensor in weights.values():
                tensor.mul_(_FACTOR)
            found[version] = digest(weights)
    return found, sum(tensor.nbytes for tensor in weights.values())


def publish_from_nodes(
    model: Path, address: str, host: str, directory: Path, engines: Sequence[str], versions: int, dies: bool = False
) -> None:
    """Publishes ``versions`` versions to these engines from this rank, which is one of several.

    Args:
        address: where rank 0 listens for actors.
        host: where it listens for the other ranks, and where process groups form.
        directory: for ``bytes-RANK.json``, what this rank has sent over connections made while it published, by the
            kernel's count; and for ``published``, one line for each version.
        dies: the leader in rank 1 is killed when it is to send the last version.
    """
    config = configuration(model, "--model.dtype", "float32", "--sync.bucket_mb", "0.05")
    trainer, links, changes = Trainer(config), RankLinks(host), itertools.count(1)
    with RankWatch(links):

        def change(_: Command) -> None:
            with torch.no_grad():
                for parameter in trainer.policy.parameters():
                    parameter.mul_(_FACTOR)
            if next(changes) == versions and dies and dist.get_rank():
                leader.start_broadcast = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[attr-defined]

        ranks = Ranks({"change": change, "gather": GatherAction(config, trainer, links)})
        before = {inode for inode, _ in _connections()}
        if dist.get_rank():
            ranks.follow()
        else:
            _lead(config, address, host, trainer, links, ranks, directory, engines, versions)
        sent = sum(count for inode, count in _connections() if inode not in before)
        (directory / f"bytes-{dist.get_rank()}.json").write_text(json.dumps(sent))


def publish_past_a_stopped_leader(
    model: Path, address: str, host: str, directory: Path, engines: Sequence[str], timeout_s: float
) -> None:
    """Publishes three versions; the leader in rank 1 is stopped in the second, and goes on when that is published.

    It is stopped when it is about to send the last bucket to the first of its engines, and so after all ranks have
    gathered the last one.

    Args:
        directory: for ``versions``, a JSON line for each version: who has it, after how long, the longest time that the
            round may take, and which engines rank 0 sends to.
        timeout_s: ``sync.timeout_s``.
    """
    config = configuration(model, "--model.dtype", "float32", "--sync.bucket_mb", "0.05")
    trainer, links = Trainer(config), RankLinks(host)
    buckets, stopped = published_buckets(config, trainer), directory / "stopped"

    def change(_: Command) -> None:
        with torch.no_grad():
            for parameter in trainer.policy.parameters():
                parameter.mul_(_FACTOR)

    with RankWatch(links):
        ranks = Ranks({"change": change, "gather": GatherAction(config, trainer, links)})
        if dist.get_rank():
            _stop_before_broadcast(2 * len(buckets), stopped)
            ranks.follow()
            return
        server = WorkServer(address, lease_timeout_s=TIMEOUT_S)
        sync = config.sync.model_copy(update={"timeout_s": timeout_s, "host": host})
        publisher = Publisher(server, sync, buckets, trainer.device, lambda: None, math.inf, links)
        while set(server.members()) != set(engines):
            time.sleep(0.05)
        for version in range(1, 4):
            ranks.run("change")
            published = publisher.publish(version, lambda plan: ranks.walk(ranks.run("gather", data=plan)), _PROBE)
            longest_s = round_deadlines(sync, len(engines), sum(map(bytes_of, buckets)), 0, 0.0, math.inf).round_s(0.0)
            own = [name for name, each in publisher.transports["group"]._groups.items() if each.leader == 0]  # type: ignore[attr-defined]
            line = {"members": sorted(published.members), "s": published.seconds, "longest_s": longest_s, "own": own}
            with (directory / "versions").open("a") as lines:
                lines.write(json.dumps(line) + "\n")
            if version == 2:
                os.kill(int(stopped.read_text()), signal.SIGCONT)
        ranks.run("stop")
        server.close()


def _stop_before_broadcast(number: int, stopped: Path) -> None:
    """Stops this process (SIGSTOP) before the broadcast with this number of any group of its leader, counted from 1.

    Args:
        stopped: where the number of the process is written before.
    """
    module: Any = leader
    counts, start = Counter[str](), module.start_broadcast

    def counted(group: Any, *arguments: Any) -> Any:
        counts[group.group_name] += 1
        if counts[group.group_name] == number and not stopped.exists():
            stopped.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return start(group, *arguments)

    module.start_broadcast = counted


def _lead(
    config: Config, address: str, host: str, trainer: Trainer, links: RankLinks, ranks: Ranks, directory: Path,
    engines: Sequence[str], versions: int,
) -> None:  # fmt: skip
    server = WorkServer(address, lease_timeout_s=TIMEOUT_S)
    sync = config.sync.model_copy(update={"timeout_s": TIMEOUT_S, "host": host})
    publisher = Publisher(
        server, sync, published_buckets(config, trainer), trainer.device, lambda: None, math.inf, links
    )  # fmt: skip
    while set(server.members()) != set(engines):
        time.sleep(0.05)
    for version in range(1, versions + 1):
        ranks.run("change")
        for _ in range(2 if version == 1 else 1):  # the second time all have it: nothing is sent, and the groups stay
            published = publisher.publish(version, lambda plan: ranks.walk(ranks.run("gather", data=plan)), _PROBE)
            assert set(published.members) == set(engines)
            server.mark_published(published.members)
        with (directory / "published").open("a") as lines:
            lines.write(f"{version}\n")
    ranks.run("stop")
    server.close()


def _connections() -> list[tuple[int, int]]:
    """The TCP connections of this process: the inode of each, and how many bytes it has sent."""
    found = []
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_SENT + 8)
                    [sent] = struct.unpack_from("Q", info, _BYTES_SENT)
                    found.append((os.fstat(descriptor).st_ino, sent))
    return found
