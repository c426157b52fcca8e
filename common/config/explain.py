"""Says in words what pydantic finds wrong with a file of sections, as a configuration or a pool file."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from common.config.former import FORMER
from common.config.other_names import ABSENT, OTHER_NAMES
from common.config.sections import Sections

_OF_VERL = {"actor_rollout_ref", "trainer", "algorithm", "critic", "reward_model", "custom_reward_function"}  # sections


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for each mistake that pydantic found in a ``model``.

    A key of an earlier version comes with what has taken its place. Any other unknown key comes with the one that was
    probably meant, or with all that its section has.
    """
    lines = []
    of_verl = False
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(_unknown(item["loc"], model, item["input"]))
            of_verl |= item["loc"][0] in _OF_VERL and issubclass(model, Sections)
        elif item["type"] == "value_error":  # from our own validators, whose messages name the value
            lines.append(f"{key}: {item['msg'].removeprefix('Value error, ')}".removeprefix(": "))
        elif item["type"] == "missing":
            lines.append(f"{key} is missing")
        elif item["type"] == "tuple_type":
            lines.append(f'{key} = {item["input"]!r}: a list is meant, in a shell as \'["a", "b"]\'')
        else:
            lines.append(f"{key} = {item['input']!r}: {item['msg']}")
    if of_verl:
        lines.append("lrpo from-verl SCRIPT translates a whole launch script of verl (docs/papers.md)")
    return "\n  ".join(lines)


def _unknown(place: tuple[int | str, ...], model: type[BaseModel], given: Any) -> str:
    """What to say of a key that there is not.

    Only the last part of its name is compared: that of the section is right, or pydantic would have refused that one.
    Of a section that nothing here is called alike each key is looked up, as ``trainer.total_epochs`` of verl.

    Args:
        given: its value.
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
    if settings and isinstance(given, Mapping) and (place[0] in _OF_VERL or not near):
        told = {inner: _by_other_name(inner, model) for inner in _keys_below(key, given)}
        if any(told.values()):
            return "\n  ".join(f"unknown key {inner!r}{said}" for inner, said in told.items())
    alike = _alike(last, model)
    if settings and (other := OTHER_NAMES.get(key, OTHER_NAMES.get(last))):
        names = [other]
    else:  # what sounds alike in this section, and what others call so; of a key without a section the latter alone
        names = near + alike if path else alike or near
    if names:
        return f"unknown key {key!r}; did you mean {' or '.join(map(repr, names))}?"
    head = f"{'.'.join(path)} has" if path else "there are"
    return f"unknown key {key!r}; {head} {', '.join(section.model_fields)}"


def _by_other_name(key: str, model: type[BaseModel]) -> str:
    """Which of our settings a key in a section of others stands for, as the rest of a sentence; empty if none does."""
    last = key.rpartition(".")[2]
    if last in ABSENT:
        return f": {ABSENT[last]}"
    other = OTHER_NAMES.get(key, OTHER_NAMES.get(last))
    names = [other] if other else _alike(last, model)
    return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def _alike(last: str, model: type[BaseModel]) -> list[str]:
    """The settings of all sections with this last part of a name."""
    return [f"{name}.{last}" for name in model.model_fields if last in _section_at(model, [name]).model_fields]


def _keys_below(key: str, table: Mapping[str, Any]) -> Iterator[str]:
    """The keys of all values in a table, and in those in it."""
    for name, value in table.items():
        inner = f"{key}.{name}"
        if isinstance(value, Mapping) and value:
            yield from _keys_below(inner, value)
        else:
            yield inner


def _section_at(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model of the section at a path of keys, among which may be those of tables that the user names."""
    for part in path:
        if part in model.model_fields:
            kind = model.model_fields[part].annotation
            inner = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, BaseModel)]
            model = inner[0] if inner else model
    return model
