"""Numbers that options of commands take: each has a range, so that a wrong one is refused before anything is done."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FREE = "RightOption"  # the reward from which an answer is right: rewards may have any value


def options_without_a_range(path: Path) -> Iterator[str]:
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Subscript) or ast.unparse(node.value) != "Annotated":
            continue
        assert isinstance(node.slice, ast.Tuple)
        annotated, call = node.slice.elts[:2]
        kind = ast.unparse(annotated).removesuffix(" | None").removeprefix("list[").removesuffix("]")
        if isinstance(call, ast.Call) and kind in ("int", "float"):
            given = {keyword.arg for keyword in call.keywords}
            is_free = text.splitlines()[node.lineno - 1].startswith(FREE)
            if ast.unparse(call.func).startswith("typer.") and not (is_free or given & {"min", "parser", "callback"}):
                yield f"{path.relative_to(ROOT)}:{node.lineno}"


@pytest.mark.parametrize("folder", ["scripts", "router", "reward", "learner", "actor"])
def test_numbers_have_a_range(folder: str) -> None:
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths and not [where for path in paths for where in options_without_a_range(path)]
