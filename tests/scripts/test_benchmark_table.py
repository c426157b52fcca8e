"""What the benchmarks of speed print; and that the commands of the documentation, and their flags, are there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench import table
from scripts.bench.table import Row
from tests.support import processes

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 240  # on a busy machine
ROWS = [
    Row("groups", 5000.4, "groups/s", "plain 2500", 2.0, ">= 1", True),
    Row("pause", 0.25, "s", goal="<= 0.1", ok=False),
    Row("bytes", 7.0, ""),
]


def test_the_rows_are_a_table_for_people_and_one_line_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    table.report("queue", ROWS, as_json=True)
    [line] = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found.keys() == {"name", "rows"} and found["name"] == "queue"
    assert [Row(**row) for row in found["rows"]] == ROWS
    table.report("queue", ROWS, as_json=False)
    name, header, *lines = capsys.readouterr().out.splitlines()
    assert name == "queue" and header.split() == ["metric", "value", "baseline", "ratio", "goal"]
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert cells[0] == ["groups", "5000 groups/s", "plain 2500", "2.00x", ">= 1", "ok"]
    assert cells[1] == ["pause", "0.25 s", "<= 0.1", "MISSED"] and cells[2] == ["bytes", "7"]


def test_a_benchmark_runs_in_an_empty_directory_which_it_leaves_empty(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Path] = []

    def measure(scratch: Path, steps: int) -> list[Row]:
        assert scratch.is_dir() and not list(scratch.iterdir())
        (scratch / "file").touch()
        seen.append(scratch)
        return [Row("steps", steps, "")]

    table.run(measure, as_json=True, steps=3)
    assert not seen[0].exists()
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["rows"][0]["value"]) == (Path(__file__).stem, 3)


def documented() -> dict[str, set[str]]:
    """By module the flags that README and documentation give it, in the command or in brackets after it."""
    found: dict[str, set[str]] = {}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for text in (page.read_text() for page in pages):
        for module, rest in re.findall(r"python -m (scripts\.bench\.\w+)([^`\n]*(?:` \([^)]*\))?)", text):
            found.setdefault(module, set()).update(re.findall(r"--[a-z][a-z-]*", rest))
    return found


@pytest.mark.parametrize("module", sorted(documented()))
def test_a_documented_benchmark_has_the_flags_that_are_documented(module: str) -> None:
    """Help is there without what a measurement needs."""
    flags = documented()[module]
    done = processes.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert flags <= {*re.findall(r"--[a-z][a-z-]*", done.stdout)}, done.stdout


def test_each_benchmark_is_documented() -> None:
    commands = {path for path in (ROOT / "scripts" / "bench").rglob("*.py") if "@command" in path.read_text()}
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for path in commands}
    assert named == documented().keys()


@pytest.mark.parametrize("script", ["train.sh", "gpu_check.sh"])
def test_a_script_tells_its_usage(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("LRPO_DEVICE", "cpu")
    done = subprocess.run(
        [ROOT / "scripts" / script, "--help"], capture_output=True, text=True, check=False, timeout=_PATIENCE_S
    )
    assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stdout + done.stderr
