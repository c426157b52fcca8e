"""``scripts/test.sh``: its exit code, with commands in place of pytest and mypy; and what its seed is the seed of."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import core, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("tests", "types", "code"), [(0, 0, 0), (1, 0, 1), (5, 0, 5), (0, 1, 1), (2, 1, 2)])
def test_the_script_fails_if_and_only_if_tests_or_types_do(tests: int, types: int, code: int, tmp_path: Path) -> None:
    (tmp_path / "scripts" / "env").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "test.sh", tmp_path / "scripts")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in pytest) exit {tests} ;; mypy) exit {types} ;; esac\n')
    python.chmod(0o755)
    (tmp_path / "scripts" / "env" / "env.sh").write_text(f'ensure_env() {{ export LRPO_PYTHON="{python}"; }}\n')
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    assert subprocess.run([tmp_path / "scripts" / "test.sh"], env=environment, check=False).returncode == code
    assert not list((tmp_path / "tmp").iterdir()), "nothing is left behind"


def examples_of_hypothesis() -> list[int]:
    found: list[int] = []

    @settings(max_examples=20, database=None)
    @given(st.integers())
    def collect(number: int) -> None:
        found.append(number)

    collect()
    return found


def test_examples_of_hypothesis_are_of_the_seed_of_the_run(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--hypothesis-seed") is not None:
        pytest.skip("--hypothesis-seed asks for another one")
    seed = int(os.environ["LRPO_TEST_SEED"])
    assert core.global_force_seed == seed
    drawn = examples_of_hypothesis()
    assert examples_of_hypothesis() == drawn
    monkeypatch.setattr(core, "global_force_seed", seed + 1)
    assert examples_of_hypothesis() != drawn
