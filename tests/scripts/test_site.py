"""The documentation builds as a site without a broken link, and troubleshooting covers the errors that users meet."""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.docs import site

ROOT = Path(__file__).parents[2]


def test_the_site_builds_and_has_every_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for path in (ROOT / "docs").glob("*.md"):
        page = tmp_path / ("index.html" if path.stem == "index" else f"{path.stem}/index.html")
        assert page.is_file(), f"{path.name} is in no page"
    training = (tmp_path / "api" / "training" / "index.html").read_text(encoding="utf-8")
    assert "truncated importance sampling" in training, "docstrings are in the API pages"
    settings = (tmp_path / "api" / "settings" / "index.html").read_text(encoding="utf-8")
    assert "groups_per_step" in settings and "questions in a step [P]" in settings
    pages = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html"))
    assert not re.search(r'(?:src|href)="\.\./[^"]*\.py"', pages), "links to source files lead nowhere on a site"


def rendered(markdown: str, repo_url: str) -> str:
    page: Any = SimpleNamespace(file=SimpleNamespace(src_uri="some.md"))
    config: Any = SimpleNamespace(repo_url=repo_url)
    files: Any = None
    return site.on_page_markdown(markdown, page, config, files)


def test_links_to_files_of_the_repository_lead_there_or_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    text = (
        "see [the loss](../learner/train/objective.py#L3), [tuning](tuning.md#groups) and [SGLang](https://sglang.ai)"
    )
    assert rendered(text, "") == "see the loss, [tuning](tuning.md#groups) and [SGLang](https://sglang.ai)"
    assert "(https://example.org/lrpo/blob/main/learner/train/objective.py)" in rendered(
        text, "https://example.org/lrpo"
    )
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        rendered("[gone](../learner/gone.py)", "")
    assert "some.md links to ../learner/gone.py, which does not exist" in caplog.text


_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*(?:/|\.(?:py|md|toml|txt|yml|sbatch))")
_FOLDERS = ("actor", "common", "configs", "docs", "learner", "reward", "router", "scripts", "tests")


def test_the_map_of_the_code_names_files_that_are_there() -> None:
    for line in (ROOT / "docs" / "code.md").read_text(encoding="utf-8").splitlines():
        gone = [text for text in re.findall(r"`([^`]+)`", line) if _PATH.fullmatch(text) and not (ROOT / text).exists()]
        assert not gone, f"{gone} is not there, as a path from the root of the repository: {line}"


def test_paths_in_the_documentation_are_there() -> None:
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        quoted = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
        paths = [
            text for text in quoted if _PATH.fullmatch(text) and text.partition("/")[0] in _FOLDERS and "/" in text
        ]
        gone = [text for text in paths if not (ROOT / text).exists() and "YOURS" not in text]
        assert not gone, f"{page.name} names {gone}, which are not there"


_ERRORS = ("FatalError", "ConfigError", "EveryQuestionGivenUp", "NobodyCame", "ChildFailed")
# What a user of a run meets: its processes, and the commands that start, plan, show and publish one.
_COMPARED = ("common", "actor", "reward", "learner", "scripts/ops", "scripts/pool")
_NOT_OF_A_RUN = ("scripts/ops/screenshots.py",)  # makes the pictures of this documentation
_FEW_LETTERS = 12  # of a row that says so little that it would fit messages of which it was not written


def messages(package: str) -> list[tuple[str, str]]:
    """Where an error that ends a process is made, and its message, with … for what is put in."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        where = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if where not in _NOT_OF_A_RUN else ():
            match node:
                case ast.Call(func=ast.Name(id=name), args=[text, *_]) if name in _ERRORS:
                    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                    words = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts]
                    if set("".join(words)) - set("…:, "):
                        found.append((f"{where}:{node.lineno}", "".join(words)))
    return found


def letters(text: str) -> int:
    return len(re.sub(r"[^A-Za-z]", "", text))


def is_row_of(row: str, message: str) -> bool:
    """Whether a row of the page, whose … stands for anything, is the beginning of a message.

    A row of few words, as ``cannot read …``, has to be most of the message; otherwise it would fit almost any.
    """
    begins = re.match(".*".join(map(re.escape, row.split("…"))), message, re.DOTALL)
    return bool(begins) and (letters(row) >= _FEW_LETTERS or letters(row) >= letters(message) / 2)


def test_every_error_of_a_run_has_its_cure_in_the_docs() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [row.replace(r"\|", "|") for row in re.findall(r"^\| `+(.+?)`+ \| .{15,} \|$", text, re.MULTILINE)]
    raised = [one for package in _COMPARED for one in messages(package)]
    assert all(any(where.startswith(package) for where, _ in raised) for package in _COMPARED) and len(raised) > 150
    missing = [(where, message) for where, message in raised if not any(is_row_of(row, message) for row in rows)]
    advice = "\n".join(f"{where}\n| `{message}` | what to do |" for where, message in missing)
    assert not missing, f"docs/troubleshooting.md has no row for these messages:\n{advice}"
    unused = [row for row in rows if not any(is_row_of(row, message) for _, message in raised)]
    assert not unused, f"nothing raises these messages of docs/troubleshooting.md any more: {unused}"
    assert not is_row_of("cannot read …", "cannot read …: its name does not end in …")
    assert is_row_of("cannot read …", "cannot read …: …")
