"""Says in words what pydantic finds wrong with a file of sections, as a configuration or a pool file."""

from __future__ import annotations

import difflib
from typing import get_args

from pydantic import BaseModel, ValidationError

from common.config.former import FORMER
from common.config.other_names import ABSENT, OTHER_NAMES
from common.config.sections import Sections


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for each mistake that pydantic found in a ``model``.

    A key of an earlier version comes with what has taken its place. Any other unknown key comes with the one that was
    probably meant, or with all that its section has.
    """
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(_unknown(item["loc"], model))
        elif item["type"] == "value_error":  # from our own validators, whose messages name the value
            lines.append(f"{key}: {item['msg'].removeprefix('Value error, ')}".removeprefix(": "))
        elif item["type"] == "missing":
            lines.append(f"{key} is missing")
        elif item["type"] == "tuple_type":
            lines.append(f'{key} = {item["input"]!r}: a list is meant, in a shell as \'["a", "b"]\'')
        else:
            lines.append(f"{key} = {item['input']!r}: {item['msg']}")
    return "\n  ".join(lines)


def _unknown(place: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """What to say of a key that there is not.

    Only the last part of its name is compared: that of the section is right, or pydantic would have refused that one.
    """
    key, last = ".".join(map(str, place)), str(place[-1])
    if key in FORMER:
        return f"{key} is gone: {FORMER[key]}"
    settings = issubclass(model, Sections)
    if settings and last in ABSENT:
        return f"unknown key {key!r}: {ABSENT[last]}"
    path = [part for part in place[:-1] if isinstance(part, str)]  # without places in lists
    section = _section_at(model, path)
    near = [".".join([*path, one]) for one in difflib.get_close_matches(last, section.model_fields, n=1)]
    alike = [f"{name}.{last}" for name in model.model_fields if last in _section_at(model, [name]).model_fields]
    if settings and (other := OTHER_NAMES.get(key, OTHER_NAMES.get(last))):
        names = [other]
    else:  # what sounds alike in this section, and what others call so; of a key without a section the latter alone
        names = near + alike if path else alike or near
    if names:
        return f"unknown key {key!r}; did you mean {' or '.join(map(repr, names))}?"
    head = f"{'.'.join(path)} has" if path else "there are"
    return f"unknown key {key!r}; {head} {', '.join(section.model_fields)}"


def _section_at(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model of the section at a path of keys, among which may be those of tables that the user names."""
    for part in path:
        if part in model.model_fields:
            kind = model.model_fields[part].annotation
            inner = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, BaseModel)]
            model = inner[0] if inner else model
    return model
