"""What the offline world is made of: the files in ``scripts/world/texts``; the README there names their origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TEXTS = Path(__file__).parent / "texts"


def countries() -> dict[str, dict[str, Any]]:
    """ISO 3166 code -> name, capital, continent and languages of the country."""
    listed: dict[str, dict[str, Any]] = json.loads((_TEXTS / "countries.json").read_text(encoding="utf-8"))
    return listed


def paragraphs() -> list[dict[str, Any]]:
    """Paragraphs of the Universal Declaration of Human Rights: the rows of ``parallel.parquet``.

    Only articles that have equally many paragraphs in all languages are there. A row has ``id`` (of the paragraph, the
    same in all languages), ``article``, ``language`` and ``text``.
    """
    with (_TEXTS / "declaration.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
