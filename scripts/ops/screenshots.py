"""Takes pictures of the TensorBoard pages of a run, with headless Chromium.

``python -m scripts.ops.screenshots RUN_DIR OUT_DIR [--width 1400]`` writes ``learning.png``, ``health.png``,
``flow.png``, ``languages.png``, ``staleness.png``, ``router.png`` and ``text.png``.
"""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from PIL import Image

from common.net.ports import reserve_port
from common.process import FatalError
from scripts.ops.command_line import command
from scripts.ops.supervise import Children

PAGES = {  # by name: the tab of TensorBoard, and the heading on it
    **{name: ("custom_scalars", name) for name in ("Learning", "Health", "Flow")},
    "Languages": ("images", "languages_by_step"),
    "Staleness": ("images", "staleness_by_step"),
    "Router": ("images", "router"),
    "Text": ("text", "sample"),
}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync --disable-background-networking "
    "--disable-component-update --hide-scrollbars --remote-debugging-port={port} --user-data-dir={profile} "
    "about:blank"
)
_COLOURS = 128  # enough to tell the lines of a chart apart, and a third of the bytes
_HEIGHT = 7000  # of the window; a chart is drawn only when it comes into view
_SETTLE_S, _ATTEMPTS = 2.0, 15  # attempts are limited, because the chart of a metric that a run lacks stays empty
_DEADLINE_S = 480.0
_FIND = """
const all = (node, pick) => [...(pick(node) ? [node] : []),
    ...[...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes].flatMap(n => all(n, pick))];
const words = node => all(node, n => n.nodeType == 3 && !['STYLE', 'SCRIPT'].includes(n.parentNode.nodeName))
    .map(n => n.data.trim()).filter(Boolean).join(' ');
const box = node => {const r = node.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]};
"""
_TIDY = """
all(document.body, n => n.id == 'sidebar').forEach(n => n.style.display = 'none');
all(document.body, n => n.nodeName == 'TF-CATEGORY-PAGINATED-VIEW').forEach(n => n.opened = true);
all(document.body, n => n.nodeName.endsWith('CHART-CARD')).forEach(n => n._matchesListOpened = true);
all(document.body, n => n.id == 'steps-container').forEach(n => n.style.maxHeight = '1400px');
all(document.body, n => n.nodeName == 'TF-IMAGE-LOADER').forEach(n => n.set('actualSize', true));
"""
_PANE = "TF-CATEGORY-PAGINATED-VIEW"


@dataclass(frozen=True)
class Page:
    """The text of a page, and a picture of it as PNG."""

    words: str
    picture: bytes


def save(run_dir: Path, out_dir: Path, width: int) -> None:
    """Writes a picture of each page as ``out_dir/NAME.png``.

    Raises:
        FatalError: there is no browser or no run, or TensorBoard does not show the run within eight minutes.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, page in photograph(run_dir, width).items():
        picture = Image.open(io.BytesIO(page.picture)).convert("RGB").quantize(_COLOURS)
        picture.save(out_dir / f"{name.lower()}.png", optimize=True)


def photograph(run_dir: Path, width: int) -> dict[str, Page]:
    """Photographs all pages, and returns them by name. Blocks for at most eight minutes.

    Raises:
        FatalError: there is no browser or no run, or TensorBoard does not show the run in time.
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise FatalError("no Chromium on the PATH; install it (on Debian: apt-get install chromium)")
    events = run_dir / "tensorboard"
    if not events.is_dir():
        raise FatalError(f"{run_dir} holds no TensorBoard events")
    with reserve_port() as one, reserve_port() as other:
        ports = [holder.getsockname()[1] for holder in (one, other)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        board = ["-m", "tensorboard.main", "--logdir", str(events), "--port", str(ports[0]), "--load_fast", "false"]
        flags = _FLAGS.format(port=ports[1], profile=profile)
        with Children(Path(profile) / "logs") as children:
            children.start("tensorboard", [sys.executable, *board])
            children.start("browser", [browser, *flags.split()])
            try:
                return asyncio.run(asyncio.wait_for(_photograph_pages(ports[0], ports[1], width), _DEADLINE_S))
            except TimeoutError:
                raise FatalError(f"TensorBoard did not show {run_dir} within {_DEADLINE_S:.0f} s") from None


async def _photograph_pages(board_port: int, browser_port: int, width: int) -> dict[str, Page]:
    url = f"http://127.0.0.1:{board_port}/?darkMode=false"
    async with aiohttp.ClientSession() as session:
        await _wait_until_served(session, url)
        targets = await _wait_until_served(session, f"http://127.0.0.1:{browser_port}/json")
        address = next(target for target in targets if target["type"] == "page")["webSocketDebuggerUrl"]
        async with session.ws_connect(address, max_msg_size=0) as tab:
            screen = {"width": width, "height": _HEIGHT, "deviceScaleFactor": 1, "mobile": False}
            await _command(tab, "Emulation.setDeviceMetricsOverride", **screen)
            return {
                page: await _photograph_page(tab, f"{url}#{plugin}", heading)
                for page, (plugin, heading) in PAGES.items()
            }


async def _photograph_page(tab: Any, url: str, heading: str) -> Page:
    """Photographs the part of a tab under a heading, without the side bar and with all legends."""
    await _command(tab, "Page.navigate", url=url)
    pick = f"all(document.body, n => n.nodeName == '{_PANE}' && words(n).startsWith('{heading}'))[0]"
    words = before = ""
    for _ in range(_ATTEMPTS):  # TensorBoard draws the charts first, then their data, and the legends at the end
        words = await _evaluate(tab, f"{pick} && words({pick})") or ""
        if words and words == before and "Matches (0)" not in words:
            break
        await _evaluate(tab, _TIDY)
        await asyncio.sleep(_SETTLE_S)
        before = words
    x, y, width, height = await _evaluate(tab, f"box({pick})")
    clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
    shot = await _command(tab, "Page.captureScreenshot", format="png", clip=clip)
    return Page(words, base64.b64decode(shot["data"]))


async def _evaluate(tab: Any, expression: str) -> Any:
    answer = await _command(tab, "Runtime.evaluate", expression=f"{{{_FIND} {expression}}}", returnByValue=True)
    return answer["result"].get("value")


async def _wait_until_served(session: aiohttp.ClientSession, url: str) -> Any:
    while True:
        try:
            async with session.get(url) as response:
                return await response.json() if "json" in response.content_type else None
        except aiohttp.ClientError:
            await asyncio.sleep(0.3)


async def _command(tab: Any, method: str, **parameters: Any) -> Any:
    await tab.send_json({"id": 1, "method": method, "params": parameters})
    while True:
        answer = await tab.receive_json()
        if answer.get("id") == 1:
            return answer["result"]


@command()
def main(
    run_dir: Annotated[Path, typer.Argument(help="Directory of the run.")],
    out_dir: Annotated[Path, typer.Argument(help="Directory of the pictures.")],
    *,
    width: Annotated[int, typer.Option(min=1, help="Width of the browser's window, in pixels.")] = 1400,
) -> None:
    save(run_dir, out_dir, width)


if __name__ == "__main__":
    main()
