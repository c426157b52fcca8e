"""A picture of a run's TensorBoard, taken by headless Chromium.

``python -m scripts.screenshot RUN_DIR OUT.png [--filter REGEX] [--width 1400] [--height 1480]``
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

_FILTER = r"learning/(reward|compliance)|staleness_(bound|max|mean)|tokens_per|actor-0/gen|learner/(train|wait)"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync --disable-background-networking "
    "--disable-component-update --hide-scrollbars --remote-debugging-port={port} --user-data-dir={profile} "
    "about:blank"
)
_SETTLE_S = 8.0  # charts are drawn as they come into view, a while after the page has loaded
_DEADLINE_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--filter", default=_FILTER, help="regular expression of the metrics to show")
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=1480)
    arguments = parser.parse_args()
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise SystemExit("error: no Chromium on the PATH; install it (on Debian: apt-get install chromium)")
    events = arguments.run_dir / "tensorboard"
    if not events.is_dir():
        raise SystemExit(f"error: {arguments.run_dir} holds no TensorBoard events")
    ports = [_free_port(), _free_port()]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = _FLAGS.format(port=ports[1], profile=profile)
        board = ["-m", "tensorboard.main", "--logdir", str(events), "--port", str(ports[0]), "--load_fast", "false"]
        commands = [[sys.executable, *board], [browser, *flags.split()]]
        quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes = [subprocess.Popen(command, **quiet) for command in commands]
        try:
            url = f"http://127.0.0.1:{ports[0]}/?darkMode=false&tagFilter={quote(arguments.filter)}#timeseries"
            size = (arguments.width, arguments.height)
            picture = asyncio.run(asyncio.wait_for(_photograph(url, ports[1], size), _DEADLINE_S))
        finally:
            for process in processes:
                process.terminate()
                process.wait(timeout=10)
    arguments.out.write_bytes(picture)


async def _photograph(url: str, debugging_port: int, size: tuple[int, int]) -> bytes:
    async with aiohttp.ClientSession() as session:
        await _reachable(session, url)
        targets = await _reachable(session, f"http://127.0.0.1:{debugging_port}/json")
        page = next(target for target in targets if target["type"] == "page")
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket_:
            screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
            await _command(socket_, "Emulation.setDeviceMetricsOverride", **screen)
            await _command(socket_, "Page.navigate", url=url)
            await asyncio.sleep(_SETTLE_S)
            button = "[...document.querySelectorAll('button')].find(b => b.innerText.includes('Settings'))"
            await _command(socket_, "Runtime.evaluate", expression=f"{button}?.click()")  # closes the side panel
            await asyncio.sleep(_SETTLE_S / 2)
            shot = await _command(socket_, "Page.captureScreenshot", format="png")
            return base64.b64decode(shot["data"])


async def _reachable(session: aiohttp.ClientSession, url: str) -> Any:
    while True:
        try:
            async with session.get(url) as response:
                return await response.json() if "json" in response.content_type else None
        except aiohttp.ClientError:
            await asyncio.sleep(0.3)


async def _command(socket_: aiohttp.ClientWebSocketResponse, method: str, **parameters: Any) -> Any:
    await socket_.send_json({"id": 1, "method": method, "params": parameters})
    while True:
        answer = await socket_.receive_json()
        if answer.get("id") == 1:
            return answer["result"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
