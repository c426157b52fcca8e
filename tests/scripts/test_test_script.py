"""The exit code of ``scripts/test.sh``, with commands in place of pytest and mypy that end as they are told."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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
