"""What happens to the other ranks when one fails: the rule in the docstring of learner.ranks."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from common import wire
from common.net.ports import reserve_port
from common.process import FatalError
from learner import rank_links, rank_watch
from learner.rank_links import RankLinks
from learner.rank_watch import RankWatch
from learner.ranks import Command, Ranks, broadcast
from tests.support.pace import Pace
from tests.support.processes import Popen
from tests.support.train_once import run_ranks

_END_S = (
    10.0  # in which all ranks end with the first, on a quiet machine: 5 s of grace, 3 s for news, and their own end
)
_START_S = 10.0  # in which ranks come up there
_PATIENCE_S = 100.0  # for what should come, on a busy machine


def a_follower_raises() -> None:
    """Rank 0 waits for the others in a collective of the action in which rank 1 raises."""

    def act(_: Command) -> None:
        if dist.get_rank() == 1:
            raise ValueError("broken on rank 1")
        dist.all_reduce(torch.zeros(1))

    ranks = Ranks({"act": act})
    with Pace() as pace:
        began = time.monotonic()
        if dist.get_rank():
            ranks.follow()
        with pytest.raises(RuntimeError):
            ranks.run("act")
        seconds = time.monotonic() - began
    raise SystemExit(3 if seconds < _END_S * pace.slowness else 4)


def rank_0_raises_outside_an_action() -> None:
    ranks = Ranks({})
    if dist.get_rank():
        ranks.follow()
        raise SystemExit(0)
    try:
        raise ValueError("broken on rank 0")
    finally:
        ranks.run("stop")


def rank_0_dies() -> None:
    with Pace() as pace:
        began = time.monotonic()
        with pytest.raises(RuntimeError):
            dist.barrier()  # both are connected; rank 0 may be gone before rank 1 has left it
            if dist.get_rank() == 0:
                os._exit(9)
            Ranks({}).follow()
        seconds = time.monotonic() - began
    raise SystemExit(3 if seconds < _END_S * pace.slowness else 4)


def fail(*, rank: int, other_waits_s: float = 3600.0) -> None:
    """One rank fails in an action while the other waits for what never comes, as in a collective of NCCL."""
    rank_watch._GRACE_S = rank_watch._NEWS_S = 0.5

    def act(_: Command) -> None:
        if dist.get_rank() == rank:
            raise ValueError("broken")
        time.sleep(other_waits_s)

    ranks = Ranks({"act": act})
    with RankWatch(RankLinks("127.0.0.1")):
        if dist.get_rank():
            ranks.follow()
        try:
            ranks.run("act")
        except ValueError:
            ranks.stop()  # the other does not listen, so that this does nothing
            raise


def rank_0_fails_beside_one_that_waits() -> None:
    fail(rank=0)


def rank_1_fails_beside_one_that_waits() -> None:
    fail(rank=1)


def rank_1_dies_beside_one_that_waits() -> None:
    rank_watch._GRACE_S = 0.5
    with RankWatch(RankLinks("127.0.0.1")):
        if dist.get_rank():
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3600)


def rank_1_fails_in_a_collective() -> None:
    """Rank 0 gets gloo's error about the closed connection, and says what was before it."""
    with RankWatch(RankLinks("127.0.0.1")):
        if dist.get_rank():
            raise FatalError("rank 1 has no memory")
        dist.all_reduce(torch.zeros(1))


def torchrun_interrupts_rank_0_because_rank_1_has_failed() -> None:
    rank_watch._GRACE_S = 0.5
    with RankWatch(RankLinks("127.0.0.1")):
        if dist.get_rank():
            raise FatalError("rank 1 has no memory")
        time.sleep(0.1)
        raise KeyboardInterrupt


def rank_0_is_interrupted_while_others_do_not_listen() -> None:
    rank_watch._GRACE_S = rank_watch._NEWS_S = 0.5
    with suppress(KeyboardInterrupt), RankWatch(RankLinks("127.0.0.1")):
        if dist.get_rank():
            time.sleep(3600)
        raise KeyboardInterrupt
    os._exit(0)


def what_followers_give_does_not_count() -> None:
    assert broadcast(b"500" if dist.get_rank() == 0 else b"0") == b"500"


def strangers_connect() -> None:
    """To the port on which rank 0 waits for the others: one that is silent, some that talk, and one that breaks off."""
    create, strangers = socket.create_server, list[socket.socket]()

    def create_server(*given: Any) -> socket.socket:
        listener = create(*given)
        hello = b'{"token":"0123","rank":1,"leads":true,"host":""}\n'
        for words in (b"", b"GET / HTTP/1.1\r\n", b"x" * 2000, hello, b"\xff\n"):
            strangers.append(socket.create_connection(listener.getsockname()))
            strangers[-1].sendall(words)
        reset = socket.create_connection(listener.getsockname())
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.close()
        return listener

    socket.create_server = create_server  # type: ignore[assignment]
    rank_links._CONNECT_S = 10 * _PATIENCE_S
    with Pace() as pace:
        began = time.monotonic()
        with RankWatch(RankLinks("127.0.0.1")):
            seconds = time.monotonic() - began
    assert seconds < _END_S * pace.slowness


def the_host_of_rank_0_counts() -> None:
    """A rank on another node knows its own host's address alone, because learner.address may be tcp://*:PORT."""
    with RankWatch(RankLinks("127.0.0.1" if dist.get_rank() == 0 else "192.0.2.1")):
        dist.barrier()


class Note(wire.Message):
    text: str


def messages_travel_both_ways_beside_collectives() -> None:
    """From many threads at once; each arrives once and whole, and rank 0 knows the first rank of each node."""
    os.environ["LOCAL_RANK"] = str(dist.get_rank() % 2)
    links, got, others = RankLinks("127.0.0.1"), list[str](), [0] if dist.get_rank() else [1, 2, 3]
    links.listen("notes", Note, lambda rank, note: got.append(f"{rank} {note.text}"))
    assert links.ranks == others and sorted(links.leaders) == ([0] if dist.get_rank() else [0, 2])
    with RankWatch(links):
        dist.barrier()  # all listen
        texts = [f"{number} " + "x\ny" * number for number in range(200)]
        threads = [
            threading.Thread(target=links.send, args=(rank, "notes", Note(text))) for rank in others for text in texts
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + _PATIENCE_S
        while len(got) < len(threads) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sorted(got) == sorted(f"{rank} {text}" for rank in others for text in texts)
        dist.barrier()


def an_interrupt_is_no_failure() -> None:
    ranks = Ranks({})
    with suppress(KeyboardInterrupt), RankWatch(RankLinks("127.0.0.1")):
        if dist.get_rank():
            ranks.follow()
        else:
            ranks.stop()
            raise KeyboardInterrupt


def stop_is_not_sent_while_others_walk() -> None:
    ranks = Ranks({"gather": lambda _: iter([1, 2])})
    if dist.get_rank():
        ranks.follow()
        return
    walk = ranks.walk(ranks.run("gather"))
    ranks.stop()  # would end the other rank in the middle
    assert list(walk) == [1, 2]
    ranks.run("wait")
    ranks.stop()


def all_ranks_act() -> None:
    sums = []

    def add(command: Command) -> int:
        total = torch.tensor([command.number + dist.get_rank()])
        dist.all_reduce(total)
        sums.append(int(total))
        return int(total)

    ranks = Ranks({"add": add})
    if dist.get_rank():
        ranks.follow()
    else:
        assert [ranks.run("add", number) for number in (1, 2)] == [3, 5]
        assert ranks.run("wait") is None
        ranks.run("stop")
    assert sums == [3, 5]


def test_a_rank_that_waits_for_the_others_ends_when_torchrun_asks_it_to(tmp_path: Path) -> None:
    """As torchrun does when another has failed before all have met. Torch waits as long as a collective may take."""
    (tmp_path / "task").write_bytes(pickle.dumps((all_ranks_act, ())))
    with reserve_port() as holder:
        meeting = holder.getsockname()[:2]
    environment = {**os.environ, "MASTER_ADDR": meeting[0], "MASTER_PORT": str(meeting[1])}
    rank = Popen(
        [sys.executable, "-m", "tests.support.rank", str(tmp_path / "task")], cwd=Path(__file__).parents[2],
        env={**environment, "WORLD_SIZE": "2", "RANK": "0"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + _PATIENCE_S
        with socket.socket() as probe:
            while probe.connect_ex(meeting):  # until it listens, from inside torch
                assert time.monotonic() < deadline and rank.poll() is None
                time.sleep(0.1)
        rank.send_signal(signal.SIGTERM)
        assert rank.wait(_PATIENCE_S) != 0
    finally:
        rank.kill()
        rank.wait()


def rank_0_says_now_and_then_that_it_still_waits() -> None:
    heard, ranks = list[str](), Ranks({"done": lambda _: None})
    ranks._actions["wait"] = lambda command: heard.append(command.action)
    if dist.get_rank():
        ranks.follow()
    else:
        ranks.run("done")
        ranks.keep_waiting(1000)
        assert not heard, "an action has just run"
        for _ in range(3):
            time.sleep(0.02)
            ranks.keep_waiting(0.01)
        ranks.run("stop")
    assert heard == ["wait"] * 3


def test_the_others_hear_from_rank_0_in_a_long_wait() -> None:
    assert run_ranks(2, rank_0_says_now_and_then_that_it_still_waits) == [0, 0]


def test_every_rank_runs_what_rank_0_runs() -> None:
    assert run_ranks(2, all_ranks_act) == [0, 0]


@pytest.mark.parametrize(
    ("body", "exits", "complaint"),
    [
        (a_follower_raises, [3, 1], "broken on rank 1"),
        (rank_0_raises_outside_an_action, [1, 0], "broken on rank 0"),
        (rank_0_dies, [9, 3], ""),
    ],
)
def test_no_rank_waits_for_one_that_failed(body: object, exits: list[int], complaint: str, tmp_path: Path) -> None:
    assert callable(body)
    assert run_ranks(2, body, output=tmp_path / "log") == exits, (tmp_path / "log").read_text()
    assert complaint in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("body", "exits", "last_words"),
    [
        (rank_0_fails_beside_one_that_waits, [1, 1], "ValueError: broken"),
        (rank_1_fails_beside_one_that_waits, [1, 1], "ValueError: broken"),
        (rank_1_dies_beside_one_that_waits, [1, -9], "rank 1 failed: it ended without a word"),
        (rank_1_fails_in_a_collective, [1, 1], "rank 1 has no memory"),
        (torchrun_interrupts_rank_0_because_rank_1_has_failed, [1, 1], "rank 1 has no memory"),
        (rank_0_is_interrupted_while_others_do_not_listen, [0, 1], "rank 0 failed: it was interrupted"),
    ],
)
def test_all_ranks_end_with_the_error_of_the_first(
    body: Callable[[], None], exits: list[int], last_words: str, tmp_path: Path
) -> None:
    """Whatever they wait for: the default group would let them wait for 400 s, and these wait for an hour."""
    with Pace() as pace:
        began = time.monotonic()
        assert run_ranks(2, body, output=tmp_path / "log") == exits, (tmp_path / "log").read_text()
        seconds = time.monotonic() - began
    assert seconds < (_START_S + _END_S) * pace.slowness
    # Either rank may write last, with its traceback or by the watch; torch's own remarks begin with a bracket.
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if not line.startswith("[")]
    assert last_words in lines[-1], "\n".join(lines)


@pytest.mark.parametrize(
    "body",
    [
        an_interrupt_is_no_failure, stop_is_not_sent_while_others_walk, what_followers_give_does_not_count,
        strangers_connect, the_host_of_rank_0_counts,
    ],
)  # fmt: skip
def test_ranks_part_in_peace(body: Callable[[], None], tmp_path: Path) -> None:
    assert run_ranks(2, body, output=tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()


def test_messages_travel_both_ways_beside_collectives(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_ranks(4, messages_travel_both_ways_beside_collectives, output=log) == [0] * 4, log.read_text()
