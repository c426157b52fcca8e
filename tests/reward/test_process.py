"""The reward process, as it is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from common.net.sockets import connect
from common.wire import Health, Healthy, Heartbeat, ScoreReply, decode, encode
from scripts.bench.support.scoring import SENTENCES, request
from tests.support import processes

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 400  # a busy machine takes minutes to import torch


@contextmanager
def _service(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    address = f"ipc://{tmp_path}/reward"
    config = tmp_path / "run.toml"
    run_dir = f'[run]\ndir = "{tmp_path}/run"\n'
    config.write_text(f'{run_dir}[reward]\naddresses = ["{address}"]\nbatch_window_ms = 50\n')
    process = processes.Popen(
        [sys.executable, "-m", "reward", str(config)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield address, process
    finally:
        process.kill()
        process.wait()


def _reply(socket: Any) -> ScoreReply:
    assert socket.poll(1000 * _PATIENCE_S), "no reply"
    reply = decode(socket.recv())
    assert isinstance(reply, ScoreReply)
    return reply


@pytest.mark.e2e
def test_service_answers_two_clients_around_poison_and_ends_when_asked(tmp_path: Path) -> None:
    with _service(tmp_path) as (address, process), zmq.Context() as context:
        with connect(context, address, "first") as first, connect(context, address, "second") as second:
            first.send(encode(request([SENTENCES["de"], SENTENCES["ja"]], ["de", "en"], id=11)))
            first.send(b"\xc1 this is no MessagePack")
            first.send(msgpack.packb({"kind": "score", "id": "eleven"}))
            first.send(encode(Heartbeat(holding=[], seconds={})))
            first.send_multipart([b"one", b"frame", b"too many"])
            second.send(encode(request(["a"], ["en", "de"], id=22)))
            second.send(encode(request([SENTENCES["fr"]], ["fr"], id=23)))
            first.send(encode(request([], [], id=12)))

            # Replies come in the order in which the requests are finished, so they are told apart by their ids.
            replies = {one.id: one for one in (_reply(first), _reply(first))}
            assert replies.keys() == {11, 12}
            reply = replies[11]
            assert reply.error == ""
            assert [score.detected for score in reply.scores] == ["de", "ja"]
            assert [score.compliant for score in reply.scores] == [True, False]
            assert reply.scores[0].similarity > 0.7
            assert reply.scores[0].reward == pytest.approx((reply.scores[0].similarity + 1) / 2)
            assert reply.busy_s > 0 <= reply.waiting_s
            assert (replies[12].error, replies[12].scores) == ("", [])

            replies = {one.id: one for one in (_reply(second), _reply(second))}
            assert replies.keys() == {22, 23}
            refused, served = replies[22], replies[23]
            assert refused.scores == []
            assert "1 answers, but 2 languages" in refused.error
            assert (served.error, served.scores[0].compliant) == ("", True)
            assert not first.poll(100)
            first.send(encode(Health()))
            health = decode(first.recv())
            assert isinstance(health, Healthy) and health.ready
            assert (health.counts["refused"], health.counts["failed"], health.counts["answers"]) == (4, 1, 3)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=_PATIENCE_S)
        assert process.returncode == 130
        assert f"reward is ready on {address}" in log
        assert "'refused': 4" in log
        assert "Traceback" not in log
        assert (tmp_path / "run" / "reward" / "references-0.sqlite").exists(), "for its next life"


@pytest.mark.e2e
def test_taken_port_fails_before_models_are_loaded(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as taken:
        address = f"tcp://127.0.0.1:{taken.bind_to_random_port('tcp://127.0.0.1')}"
        config = tmp_path / "run.toml"
        config.write_text(f'[reward]\naddresses = ["{address}"]\nembedder = "/no/such/encoder"\n')
        command = [sys.executable, "-m", "reward", str(config)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    assert ended.returncode == 1
    assert f"cannot listen on {address}" in ended.stderr
    assert "Traceback" not in ended.stderr
