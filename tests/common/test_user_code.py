"""How a file of the user's own is loaded, and how its mistakes are told."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from common.config import ConfigError
from common.user_code import load_user_object

_DATACLASS = """
from __future__ import annotations

import dataclasses
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


@dataclasses.dataclass
class Found:
    count: int


def count(text):
    return Found(len(text))


def in_a_process(text):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(count, text).result(60)
"""


@pytest.fixture(autouse=True)
def _same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def _load(path: Path, text: str, name: str = "f") -> Any:
    path.write_text(text)
    return load_user_object(f"{path}:{name}", "reward.function")


def test_dataclasses_and_process_pools_work_in_such_a_file(tmp_path: Path) -> None:
    in_a_process = _load(tmp_path / "with_pool.py", _DATACLASS, "in_a_process")
    found = in_a_process("four")
    assert found.count == 4 and pickle.loads(pickle.dumps(found)) == found


def test_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    """Nor does one take the place of a module that is called like it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    text = "import dataclasses\n@dataclasses.dataclass\nclass Box:\n    v: int\ndef f(v):\n    return Box(v)\n"
    first, second = (_load(tmp_path / one / "of_one_name.py", text) for one in "ab")
    assert first is not second and all(pickle.loads(pickle.dumps(one(3))) == one(3) for one in (first, second))
    assert "this" not in sys.modules, "which hardly anybody imports"
    assert _load(tmp_path / "a" / "this.py", "def f():\n    return 1\n")() == 1
    assert "this" not in sys.modules


def test_what_lies_beside_it_can_be_imported_now_and_later(tmp_path: Path) -> None:
    (tmp_path / "beside_now.py").write_text("VALUE = 1\n")
    (tmp_path / "beside_later.py").write_text("VALUE = 2\n")
    text = "from beside_now import VALUE\ndef f():\n    import beside_later\n    return VALUE, beside_later.VALUE\n"
    assert _load(tmp_path / "imports_both.py", text)() == (1, 2)
    assert sys.path[-1] == str(tmp_path), "a file of the user's does not take the place of a package"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import math\nx = math.sine(1)\ndef f(): ...\n",
         r"wrong\.py:2 in <module>: AttributeError: module 'math' has no attribute 'sine'"),
        ("class f:\n    def __init__(self):\n        self.gone\n", r"wrong\.py:3 in __init__: AttributeError: 'f' "),
        ("def g(): ...\n", r"wrong\.py defines no 'f'"),
        ("x = 1\nfrom broken_beside import f\n", r"wrong\.py:2 in <module>: SyntaxError: .*broken_beside\.py, line 3"),
        ("def f(:\n", r"wrong\.py:1: SyntaxError"),
    ],
)  # fmt: skip
def test_the_real_error_is_told_with_its_line(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "broken_beside.py").write_text("\n\ndef f(:\n")
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=f"^reward.function: .*{told}"):
        _load(tmp_path / "wrong.py", text)
    if "in <module>" in told:
        assert not [one for one in set(sys.modules) - before if "wrong" in one], "nothing is left of it"
