"""What the connections between the ranks notice by themselves."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.support.hosts import network

PATIENCE_S = 60.0
SOON_S = 30.0  # far below the quarter of an hour for which Linux repeats what nobody acknowledges
PORT = 29500
LISTENS = f"""
import socket, time
with socket.create_server(("", {PORT})) as listener:
    connection, _ = listener.accept()
    time.sleep({10 * PATIENCE_S})
"""
SPEAKS = f"""
import socket, sys, time
from pathlib import Path
from learner import rank_links
rank_links._USER_TIMEOUT_MS = 3000
directory = Path(sys.argv[2])
while True:
    try:
        connection = socket.create_connection((sys.argv[1], {PORT}), 1)
        break
    except OSError:
        time.sleep(0.1)
connection = rank_links._kept_alive(connection)
(directory / "connected").touch()
while not (directory / "down").exists():
    time.sleep(0.05)
connection.sendall(b"a message\\n")
began = time.monotonic()
try:
    connection.recv(1)
except OSError as error:
    (directory / "noticed.partial").write_text(f"{{time.monotonic() - began}} {{error}}")
    (directory / "noticed.partial").rename(directory / "noticed")
"""


def test_a_host_that_vanishes_with_a_message_under_way_is_noticed(tmp_path: Path) -> None:
    """Keepalive asks nothing as long as something that was sent waits for its acknowledgement."""
    with network(2) as (here, there):
        there.start([sys.executable, "-c", LISTENS], tmp_path / "listens.log", {})
        here.start([sys.executable, "-c", SPEAKS, there.address, str(tmp_path)], tmp_path / "speaks.log", {})
        appears(tmp_path / "connected", PATIENCE_S)
        there.link("down")
        (tmp_path / "down").touch()
        appears(tmp_path / "noticed", SOON_S)
    seconds, _, error = (tmp_path / "noticed").read_text().partition(" ")
    assert 1 < float(seconds) < SOON_S and "timed out" in error


def appears(path: Path, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not happen"
        time.sleep(0.05)
