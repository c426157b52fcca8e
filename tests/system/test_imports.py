"""Who may import whom, and that what the light processes need loads without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"common", "router", "actor", "reward", "learner"}
ALLOWED: dict[str, set[str]] = {
    "common": set(),
    "router": {"common"},
    "actor": {"common"},
    "reward": {"common"},
    "learner": {"common", "router"},
}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_import_only_what_they_may(package: str) -> None:
    files = [path for path in (ROOT / package).rglob("*.py") if "stand_ins" not in path.parts]
    assert files
    for path in files:
        others = imported(path) & (PACKAGES | {"scripts", "tests"}) - {package}
        assert others <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {others - ALLOWED[package]}"


@pytest.mark.parametrize("module", ["common.config", "common.wire", "router"])
def test_imports_without_torch(module: str) -> None:
    check = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
