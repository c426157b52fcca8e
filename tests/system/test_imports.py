"""Rules of the code: who may import whom, what loads without torch, and that nothing depends on the time of day."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
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


def imports_between_modules() -> dict[str, set[str]]:
    """Module -> the modules of this repository that it imports, anywhere in it; tests are left out."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in [*PACKAGES, "scripts"]
        for path in (ROOT / package).rglob("*.py")
        if "stand_ins" not in path.parts
    }
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                within = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= within & files.keys() or {node.module}
        graph[module] = named & files.keys() - {module}
    return graph


def test_no_imports_go_in_a_circle() -> None:
    list(TopologicalSorter(imports_between_modules()).static_order())  # raises CycleError, which names the circle


def part_of(module: str) -> str:
    """The folder of a package in which a module is, or the module itself where it is directly under its package."""
    return ".".join(module.split(".")[:2])


def imports_between_parts(package: str) -> dict[str, set[str]]:
    """Folders of a package, and modules directly under it -> those that they import."""
    found: dict[str, set[str]] = {}
    for module, imported in imports_between_modules().items():
        if module.partition(".")[0] == package:
            others = {part_of(name) for name in imported if name.partition(".")[0] == package}
            found.setdefault(part_of(module), set()).update(others - {part_of(module)})
    return found


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_folders_of_a_package_and_the_modules_beside_them_form_a_tree(package: str) -> None:
    parts = imports_between_parts(package)
    assert {module.partition(".")[0] for module in parts} == {package} and len(parts) > 2
    list(TopologicalSorter(parts).static_order())


# From below: each imports only those before it, of the folders of the learner.
LEARNER = ("data", "evaluate", "work", "weights", "train", "report", "loop")
ABOVE_LOOP = {"learner.run", "learner.build", "learner.process", "learner.__main__"}


def test_the_folders_of_the_learner_lie_one_above_the_other() -> None:
    parts = imports_between_parts("learner")
    folders = {part for part in parts if (ROOT / Path(*part.split("."))).is_dir()} - {"learner"}
    assert folders == {f"learner.{name}" for name in LEARNER}
    for place, name in enumerate(LEARNER):
        wrong = parts[f"learner.{name}"] & {f"learner.{other}" for other in LEARNER[place:]}
        assert not wrong, f"learner.{name} imports {wrong}, which lie above it"
    for part, imported in parts.items():
        if part not in ABOVE_LOOP:
            assert not imported & ABOVE_LOOP, f"{part} imports {imported & ABOVE_LOOP}"
        if part not in ABOVE_LOOP | {"learner.loop"}:
            assert "learner.loop" not in imported, part


def test_only_weights_loop_and_what_puts_a_run_together_know_the_server() -> None:
    graph = imports_between_modules()
    users = {part_of(module) for module, imported in graph.items() if "learner.work.server" in imported}
    assert {user for user in users if user.startswith("learner")} == {
        "learner.weights", "learner.loop", "learner.build", "learner.process",
    }  # fmt: skip


def test_what_the_wheel_holds_imports_no_tests() -> None:
    for path in (path for package in [*PACKAGES, "scripts", "configs"] for path in (ROOT / package).rglob("*.py")):
        assert "tests" not in imported(path), f"{path.relative_to(ROOT)} imports tests, which the package lacks"


@pytest.mark.parametrize("module", ["common.config", "common.wire", "router"])
def test_imports_without_torch(module: str) -> None:
    check = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


# What may ask for the time of day: to write it down, and for nothing else.
TELLS_TIME = {"learner/report/trackers/events.py"}
WALL_CLOCKS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}


def test_nothing_depends_on_the_time_of_day() -> None:
    """Somebody may set the clock at any time, so that deadlines and ages are of the monotonic clock."""
    found = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                if (owner, node.attr) in WALL_CLOCKS:
                    found.add(str(path.relative_to(ROOT)))
            elif isinstance(node, ast.ImportFrom) and node.module == "time":
                assert not {alias.name for alias in node.names} & {"time", "time_ns"}, path
    assert found == TELLS_TIME
