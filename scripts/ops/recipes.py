"""Lists the published recipes, a line for each; with a name, shows what one holds.

    lrpo recipes [NAME]

A recipe is a configuration under configs/recipes/, and configs/lrpo.toml is the one of this project. Its first line
says what it is. ``lrpo train --recipe NAME MODEL DATA`` runs one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from common.config import ConfigError, read_toml
from scripts.ops.command_line import command

_CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def recipe_files() -> dict[str, Path]:
    """The configuration of every recipe by its name, in the order of the names."""
    return {path.stem: path for path in sorted([*(_CONFIGS / "recipes").glob("*.toml"), _CONFIGS / "lrpo.toml"])}


def find_recipe(name: str) -> Path:
    """The configuration of a recipe.

    Raises:
        ConfigError: there is no recipe of this name.
    """
    files = recipe_files()
    if name not in files:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), files, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise ConfigError(f"there is no recipe {name!r}{hint} There are: {', '.join(files)}")
    return files[name]


def first_line(path: Path) -> str:
    """What a recipe is: the first line of its file, a comment."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def recipe_settings(name: str, words: Sequence[str]) -> list[str]:
    """The command line, as ``common.config.load`` reads it, of a recipe with a model and data.

    Files are merged after the recipe, flags after all else. Nothing is held out unless HELDOUT or a file says so, and
    the run is in ``runs/NAME`` unless a file does, for which those of configs/models/ do not count: theirs is the
    place of runs that have no other name.

    Args:
        name: of the recipe.
        words: ``MODEL TRAIN [HELDOUT] [FILE.toml ...] [--section.key value ...]``. Where the first word is a TOML file
            it must name the model, and ``TRAIN`` comes next.

    Raises:
        ConfigError: there is no such recipe, the model or the data are missing, or a file cannot be read.
    """
    recipe = find_recipe(name)
    count = next((number for number, word in enumerate(words) if word.startswith("--")), len(words))
    files = [word for word in words[:count] if word.endswith(".toml")]
    given = [word for word in words[:count] if not word.endswith(".toml")]
    by_file = bool(words) and words[0].endswith(".toml")
    model = [] if by_file or not given else ["--model.path", given.pop(0)]
    if not (by_file or model) or len(given) not in (1, 2):
        raise ConfigError(
            f"--recipe {name} needs a model and questions: lrpo train --recipe {name} MODEL TRAIN [HELDOUT], where "
            "MODEL is a directory, a hub name or a file such as configs/models/qwen2.5-1.5b.toml; given was "
            f"{' '.join(words[:count]) or 'nothing'}"
        )
    if by_file and not _sets(words[0], "model", "path"):
        raise ConfigError(
            f"{words[0]} comes first and so should name the model of --recipe {name}, but it sets no model.path: give "
            f"the files of other settings last, lrpo train --recipe {name} MODEL TRAIN [HELDOUT] {words[0]}"
        )
    own = [*model, "--data.train", given[0]]
    if len(given) == 2:
        own += ["--data.heldout", given[1]]
    elif not any(_sets(file, "data", "heldout") for file in files):
        own += ["--data.heldout", ""]
    if not any(_sets(file, "run", "dir") for file in files if Path(file).resolve().parent != _CONFIGS / "models"):
        own += ["--run.dir", f"runs/{name}"]
    return [str(recipe), *files, *own, *words[count:]]


def _sets(file: str, section: str, key: str) -> bool:
    found = read_toml(Path(file)).get(section)
    return isinstance(found, dict) and key in found


@command()
def main(name: Annotated[str, typer.Argument(help="Of one recipe, whose file is shown.")] = "") -> None:
    if name:
        path = find_recipe(name)
        print(f"# {path}\n{path.read_text(encoding='utf-8')}", end="")
        return
    files = recipe_files()
    width = max(map(len, files))
    for one, path in files.items():
        print(f"{one:<{width}}  {first_line(path)}")


if __name__ == "__main__":
    main()
