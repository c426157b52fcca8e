"""What a learner tells of its run to whoever asks, over the real socket."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from common import wire
from common.config import load
from common.net import sockets
from common.net.rendezvous import announce
from common.process import FatalError
from learner.groups import Group
from learner.work.scheduler import WorkQueue
from learner.work.server import WorkServer
from scripts.ops import status
from tests.support.groups import work

ROOT = Path(__file__).parents[2]
_LONG_S = 1000.0
NEWEST = "step 12/150  reward 0.500  learner cost 44%: add 1.0 learner ranks", {"l40s-0": 410.0}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    address = ["--learner.address", f"ipc://{tmp_path}/queue", "--run.dir", str(tmp_path)]
    (tmp_path / "config.json").write_text(load(address).model_dump_json())
    return tmp_path


@pytest.fixture
def server(run_dir: Path) -> Iterator[WorkServer]:
    """A learner with one actor, which holds two groups."""
    server = WorkServer(f"ipc://{run_dir}/queue", lease_timeout_s=2 * _LONG_S)
    queue: WorkQueue[Group] = WorkQueue(groups_per_step=2, staleness=0, window=1, attempts=1, total=9)
    server.serve(queue, lambda n: work(n, ["en"]), lambda *_: None)
    actor = sockets.connect(zmq.Context.instance(), f"ipc://{run_dir}/queue", "l40s-0")
    hello = wire.Hello(protocol=wire.PROTOCOL, engine_ranks=1, slots=4, transport="group", name="l40s-0")
    actor.send(wire.encode(hello.of(wire.Lives("life", ""))))
    welcome = wire.decode(actor.recv())
    assert isinstance(welcome, wire.Welcome)
    seconds, gauges = {"generate": 6.0, "wait_work": 2.0, "reward_busy": 9.0}, {"usage": 0.25}
    server.mark_published(server.members())
    assert isinstance(wire.decode(actor.recv()), wire.Leased)
    actor.send(wire.encode(wire.Heartbeat(holding=[], seconds=seconds, gauges=gauges).of(welcome.lives)))
    assert isinstance(wire.decode(actor.recv()), wire.Alive)
    server.members()["l40s-0"].last_heard += _LONG_S  # who asks may be long in coming
    yield server
    actor.close()
    server.close()


def ask(run_dir: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.ops.status", str(run_dir), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LONG_S, check=False)


def test_a_line_without_a_terminal_and_again_until_the_run_is_over(run_dir: Path, server: WorkServer) -> None:
    before = ask(run_dir, "--once")
    assert (before.returncode, before.stderr) == (0, "") and before.stdout.startswith("before the first step")
    server.update_status(*NEWEST)
    told = ask(run_dir, "--once").stdout
    assert told.startswith(NEWEST[0]) and "leased 2" in told
    assert "[l40s-0 live 2/4 groups 410 tokens/s 75% busy]" in told
    assert server.refused_messages == 0 and list(server.members()) == ["l40s-0"], "who asks is no actor"


def test_a_live_table_in_a_terminal(run_dir: Path, server: WorkServer) -> None:
    server.update_status(*NEWEST)
    terminal, inside = pty.openpty()
    environment = {**os.environ, "COLUMNS": "160", "TERM": "xterm"}
    command = [sys.executable, "-m", "scripts.ops.status", str(run_dir), "--once"]
    with subprocess.Popen(command, cwd=ROOT, stdout=inside, stderr=inside, env=environment) as shown:
        assert shown.wait(_LONG_S) == 0
    os.close(inside)
    written = b""
    with suppress(OSError):  # nobody writes any more, and all is read
        while part := os.read(terminal, 100_000):
            written += part
    os.close(terminal)
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", written.decode())
    for words in ("step 12/150", "l40s-0", "410", "75%", "wait for work", "learner cost 44%"):
        assert words in text, text


def test_a_learner_is_found_where_it_has_announced_itself(run_dir: Path, server: WorkServer) -> None:
    places = ["--run.dir", str(run_dir), "--run.rendezvous", str(run_dir / "meet")]
    config = load([*places, "--learner.address", "tcp://*:5700"])
    (run_dir / "config.json").write_text(config.model_dump_json())
    announce(config.run, "learner", f"ipc://{run_dir}/queue")
    assert "l40s-0" in ask(run_dir, "--once").stdout


def test_it_says_why_there_is_nothing_to_see(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ask(run_dir / "nowhere")
    assert missing.returncode == 1 and missing.stderr.startswith(
        f"error: {run_dir}/nowhere holds no run that has started"
    )
    (run_dir / "broken").mkdir()
    (run_dir / "broken" / "config.json").write_text('{"learner": 3}')
    with pytest.raises(FatalError, match=r"broken/config\.json is not a configuration"):
        status.show(run_dir / "broken", 1.0, True)
    monkeypatch.setattr(status, "_DEADLINE_S", 0.5)
    with pytest.raises(FatalError, match=f"no answer from the learner at ipc://{run_dir}/queue within"):
        status.show(run_dir, 1.0, False)
    (run_dir / "summary.json").write_text("{}")
    status.show(run_dir, 1.0, False)
    assert capsys.readouterr().out.startswith("the run is over")
