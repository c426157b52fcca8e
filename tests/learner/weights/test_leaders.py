"""Several learner nodes: each node's leader sends the weights to its share of the engines."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.weights.assignment import assign_leaders
from tests.support.hosts import Host, network
from tests.support.publish_from_nodes import expected_digests, publish_from_nodes, publish_past_a_stopped_leader
from tests.support.rank import TIMEOUT_S
from tests.support.train_once import run_ranks
from tests.support.weight_receivers import Receiver

ENGINES = ["a", "b", "c", "d"]
VERSIONS = 3
STOPPED_TIMEOUT_S, SLACK_S = 8.0, 60.0  # of each step of a round; for a busy machine
NAMES = st.sampled_from([f"e{number}" for number in range(12)])
MACHINES = st.sampled_from(["", "one", "two", "three"])
LEADERS = st.dictionaries(st.integers(0, 15), MACHINES, min_size=1, max_size=5)


@given(st.dictionaries(NAMES, MACHINES), LEADERS, st.dictionaries(NAMES, st.integers(0, 15)))
def test_no_leader_has_more_than_its_share_and_engines_stay(
    engines: dict[str, str], leaders: dict[int, str], before: dict[str, int]
) -> None:
    found = assign_leaders(engines, leaders, before)
    most = -(-len(engines) // len(leaders))
    load = {rank: list(found.values()).count(rank) for rank in leaders}
    assert found.keys() == engines.keys() and set(found.values()) <= set(leaders)
    assert max(load.values()) <= most
    for name in engines:
        former = before.get(name)
        if former in leaders and found[name] != former:
            assert load[former] == most, "it could have stayed"
        elif former not in leaders and found[name] not in [r for r in leaders if leaders[r] == engines[name] != ""]:
            near = [rank for rank in leaders if leaders[rank] == engines[name] != ""]
            assert all(load[rank] == most for rank in near), "one of its own machine had room"
    assert assign_leaders(engines, leaders, found) == found, "the same engines stay where they are"


def test_what_is_lost_is_replaced_without_moving_the_others() -> None:
    leaders = {0: "x", 8: "y"}
    first = assign_leaders(dict.fromkeys("abcdefgh", ""), leaders, {})
    assert sorted(first.values()) == [0] * 4 + [8] * 4
    second = assign_leaders(dict.fromkeys("bcdefghi", ""), leaders, first)
    assert second["i"] == first["a"] and all(second[name] == first[name] for name in "bcdefgh")
    near = assign_leaders({"a": "y", "b": "y", "c": "x", "d": "x"}, leaders, {})
    assert near == {"a": 8, "b": 8, "c": 0, "d": 0}


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/queue"


@pytest.fixture
def receivers(address: str) -> Iterator[dict[str, Receiver]]:
    found = {name: Receiver(address, name) for name in ENGINES}
    yield found
    for receiver in found.values():
        receiver.close()


def test_two_leaders_send_half_of_the_engines_each_and_the_weights_arrive_exactly(
    tiny_policy: Path, tmp_path: Path, address: str, receivers: dict[str, Receiver]
) -> None:
    """Every engine has the bytes of the unsharded weights; what the leaders send is counted by the kernel."""
    log, arguments = tmp_path / "log", (tiny_policy, address, "127.0.0.1", tmp_path, ENGINES, VERSIONS)
    assert run_ranks(2, publish_from_nodes, *arguments, output=log, nodes=2) == [0, 0], log.read_text()[-3000:]
    expected, size = expected_digests(tiny_policy, VERSIONS)
    for name, receiver in receivers.items():
        assert receiver.digests == expected, name
        assert receiver.groups == 1, "its group is used again"
    half = VERSIONS * size * len(ENGINES) / 2
    for rank in range(2):
        sent = json.loads((tmp_path / f"bytes-{rank}.json").read_text())
        assert half <= sent < 1.1 * half, f"rank {rank} sends {sent} bytes for {half}"


def test_a_leader_that_dies_while_it_sends_ends_the_run(
    tiny_policy: Path, tmp_path: Path, address: str, receivers: dict[str, Receiver]
) -> None:
    log, arguments = tmp_path / "log", (tiny_policy, address, "127.0.0.1", tmp_path, ENGINES, 2, True)
    began = time.monotonic()
    assert run_ranks(2, publish_from_nodes, *arguments, output=log, nodes=2) == [1, -9], log.read_text()[-3000:]
    assert time.monotonic() - began < TIMEOUT_S / 2, "no deadline of a collective or of an engine was waited for"
    assert "rank 1 failed: it ended without a word" in log.read_text()
    assert (tmp_path / "published").read_text().split() == ["1"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_leader_that_is_stopped_costs_its_engines_alone_and_the_run_goes_on_with_it(
    tiny_policy: Path, tmp_path: Path, address: str, receivers: dict[str, Receiver]
) -> None:
    """SIGSTOP, which closes no connection: rank 0 waits for the deadlines of the round and no longer."""
    log, arguments = tmp_path / "log", (tiny_policy, address, "127.0.0.1", tmp_path, ENGINES, STOPPED_TIMEOUT_S)
    codes = run_ranks(2, publish_past_a_stopped_leader, *arguments, output=log, nodes=2)
    assert codes == [0, 0], log.read_text()[-3000:]
    first, second, third = (json.loads(line) for line in (tmp_path / "versions").read_text().splitlines())
    own = first["own"]
    assert first["members"] == ENGINES and len(own) == 2
    lost = set(ENGINES) - set(second["members"])
    assert lost and not lost & set(own), "those of the leader that was stopped, and no others"
    assert 0.9 * second["longest_s"] < second["s"] < second["longest_s"] + SLACK_S
    assert third["members"] == second["members"] and third["s"] < SLACK_S, "it gathers again, and holds up nobody"
    expected, _ = expected_digests(tiny_policy, 3)
    for name in second["members"]:
        assert receivers[name].digests == expected, name
    for name in lost:
        assert receivers[name].digests[1] == expected[1], name
    assert "rank 1, its leader, did not send the weights within" in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_half_of_the_bytes_leave_the_node_of_rank_0(tiny_policy: Path, tmp_path: Path) -> None:
    """Two learner nodes and four engines for each, on four hosts, which are network namespaces.

    With one leader rank 0 sends everything. The bytes are those of the interface of its node, so they include what the
    ranks send one another while they gather: half of the weights for each version.
    """
    sent = {leaders: bytes_of_rank_0(tiny_policy, tmp_path / str(leaders), leaders) for leaders in (1, 2)}
    _, size = expected_digests(tiny_policy, 1)
    print("bytes out of rank 0's node, by number of leaders", sent, "weights", size * VERSIONS, flush=True)
    saved = sent[1] - sent[2]
    assert saved == pytest.approx(4 * VERSIONS * size, rel=0.1), "four engines are the other leader's"
    assert sent[2] < 0.6 * sent[1]


def bytes_of_rank_0(model: Path, directory: Path, leaders: int) -> int:
    """What rank 0's host sends while 8 engines get all versions; checks that each has got the right bytes."""
    directory.mkdir()
    names = [f"{host}{number}" for host in "ab" for number in range(4)]
    expected, _ = expected_digests(model, VERSIONS)
    with network(4) as hosts:
        first, second = hosts[:2]
        address = f"ipc://{directory}/queue"  # which all namespaces see, and which no interface counts
        ranks = start_ranks([first, second], leaders, directory, model, address, names)
        for host, letter in zip(hosts[2:], "ab", strict=True):
            mine = [name for name in names if name[0] == letter]
            command = ["-m", "tests.support.weight_receivers", address, str(directory), *mine]
            host.start([sys.executable, *command], directory / "receivers", {"GLOO_SOCKET_IFNAME": "eth0"})
        codes = [process.wait(TIMEOUT_S) for process in ranks]
        assert codes == [0, 0], (directory / "ranks").read_text()[-3000:]
        found = first.sent_bytes()
    for name in names:
        digests = json.loads((directory / f"{name}.json").read_text())
        assert {int(version): value for version, value in digests.items()} == expected
    return found


def start_ranks(
    hosts: list[Host], leaders: int, directory: Path, model: Path, address: str, names: list[str]
) -> list[subprocess.Popen[bytes]]:
    """A rank of the learner on each host; only the first ``leaders`` of them are the first of a node."""
    task = directory / "task"
    arguments = model, address, hosts[0].address, directory, names, VERSIONS
    task.write_bytes(pickle.dumps((publish_from_nodes, arguments)))
    common = {
        "WORLD_SIZE": str(len(hosts)), "MASTER_ADDR": hosts[0].address, "MASTER_PORT": "29400",
        "GLOO_SOCKET_IFNAME": "eth0",
    }  # fmt: skip
    return [
        host.start(
            [sys.executable, "-m", "tests.support.rank", str(task)], directory / "ranks",
            {**common, "RANK": str(rank), "LOCAL_RANK": "0" if rank < leaders else "1"},
        )
        for rank, host in enumerate(hosts)
    ]  # fmt: skip
