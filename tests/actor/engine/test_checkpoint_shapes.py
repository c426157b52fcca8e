"""What an actor reads of its engine's checkpoint, and what it does where it cannot: it goes on without."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from numpy.typing import NDArray
from safetensors.numpy import save_file

from actor.engine.checkpoint_shapes import read_checkpoint_shapes
from actor.engine.client import Engine
from actor.engine.readiness import make_http_session

_PATIENCE_S = 30


def write_shards(directory: Path) -> dict[str, list[int]]:
    """A checkpoint of two files with an index; returns its shapes."""
    arrays: dict[str, NDArray[Any]] = {"a.weight": np.zeros((2, 3), np.float32), "b.weight": np.zeros(5, np.float16)}
    for number, (name, array) in enumerate(arrays.items()):
        save_file({name: array}, directory / f"model-{number}.safetensors", metadata={"format": "pt"})
    index = {"weight_map": {name: f"model-{number}.safetensors" for number, name in enumerate(arrays)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return {name: list(array.shape) for name, array in arrays.items()}


def test_the_shapes_of_a_checkpoint_are_read_with_its_index_and_without(tmp_path: Path) -> None:
    shapes = write_shards(tmp_path)
    save_file({"other.weight": np.zeros(1)}, tmp_path / "consolidated.safetensors")
    assert read_checkpoint_shapes(str(tmp_path)) == shapes, "a file that the index does not name is of another form"
    (tmp_path / "consolidated.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").unlink()
    assert read_checkpoint_shapes(str(tmp_path)) == shapes


@pytest.mark.parametrize("path", ["/data/models/x", "nobody/has-this-model", "a model/of/many parts", "", "x" * 300])
def test_a_checkpoint_that_is_on_the_engines_host_alone_is_none(path: str) -> None:
    assert read_checkpoint_shapes(path or "/nowhere at all/") == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes((2).to_bytes(8, "little") + b"[]"),
        lambda file: file.write_bytes((12).to_bytes(8, "little") + b'{"a": "bcd"}'),
        lambda file: file.with_name("model.safetensors.index.json").write_text("{}"),
        lambda file: file.with_name("model.safetensors.index.json").write_text('{"weight_map":'),
    ],
    ids=["missing", "cut", "a pointer", "empty", "a list", "no tensors", "an index of nothing", "half an index"],
)
def test_a_checkpoint_of_which_a_part_cannot_be_read_is_none(damage: Callable[[Path], object], tmp_path: Path) -> None:
    """Half of one would be taken for another model than the learner's."""
    assert write_shards(tmp_path)
    damage(tmp_path / "model-1.safetensors")
    assert read_checkpoint_shapes(str(tmp_path)) == {}


def test_a_file_system_that_hangs_holds_up_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe that nobody writes into hangs when it is opened, like a file of a server that is gone."""
    pipe = tmp_path / "model.safetensors"
    os.mkfifo(pipe)

    async def model_info(_: web.Request) -> web.Response:
        return web.json_response({"model_path": str(tmp_path)})

    async def read() -> float:
        """The longest time between two steps of the event loop."""
        app = web.Application()
        app.add_routes([web.get("/model_info", model_info)])
        async with TestServer(app) as server, make_http_session() as http:
            engine = Engine(str(server.make_url("")).rstrip("/"), http, 60, "retract")
            reading = asyncio.create_task(engine.read_checkpoint_shapes(3.0))
            longest, last = 0.0, time.monotonic()
            while not reading.done():
                await asyncio.sleep(0.01)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
            assert await reading == {}
        return longest

    # If the whole process hangs, it is let go after a while, so that this fails.
    rescue = f"import time; time.sleep({_PATIENCE_S}); open({str(pipe)!r}, 'wb')"
    rescuer = subprocess.Popen([sys.executable, "-c", rescue])
    try:
        began = time.monotonic()
        assert asyncio.run(asyncio.wait_for(read(), _PATIENCE_S)) < 10, "the rescuer comes only after _PATIENCE_S"
        assert 1.4 < time.monotonic() - began < 20
        assert f"the files of the checkpoint {tmp_path} could not be read within 2 s" in caplog.text
    finally:
        rescuer.kill()
        rescuer.wait()
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))  # the thread ends
