"""Commands whose arguments and flags are the parameters of a function, and whose errors are one line."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from common.config import ConfigError
from common.process import FatalError

Result = TypeVar("Result")


def run(
    body: Callable[..., Result], doc: str | None, arguments: Sequence[str] | None = None, *errors: type[Exception]
) -> Result:
    """Calls ``body`` with what the command line says; ``errors`` are further ones whose message says enough."""
    with plain_errors(*errors):
        return body(**vars(parser(body, doc).parse_args(arguments)))


@contextmanager
def plain_errors(*errors: type[Exception]) -> Iterator[None]:
    """Ends the process with code 1 and the message of what the user can mend, with 130 when interrupted."""
    plain: tuple[type[Exception], ...] = (ConfigError, FatalError, *errors)
    try:
        yield
    except plain as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def parser(body: Callable[..., Any], doc: str | None) -> argparse.ArgumentParser:
    """Positional parameters are arguments, keyword-only ones flags; one that is False is a switch.

    A parameter is a type that is made of one text, or None, or a list of these, or a Literal of texts;
    ``Annotated[type, help, metavar]`` says more of it.
    """
    main = sys.modules["__main__"].__spec__
    prog = f"python -m {main.name}" if main else None
    made = argparse.ArgumentParser(prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, parameter in inspect.signature(body, eval_str=True).parameters.items():
        kind, told = parameter.annotation, dict[str, Any]()
        if get_origin(kind) is Annotated:
            kind, *words = get_args(kind)
            told = dict(zip(("help", "metavar"), words, strict=False))
        kinds = [one for one in get_args(kind) if one is not type(None)]
        if get_origin(kind) is list:
            told["nargs"] = "+"
        if get_origin(kind) is Literal:
            told["choices"] = kinds
        elif kind is bool:
            told["action"] = "store_true"
        else:
            told["type"] = kinds[0] if kinds else kind
        if parameter.kind is parameter.KEYWORD_ONLY:
            required = parameter.default is parameter.empty
            told |= {"required": True} if required else {"default": parameter.default}
            name = f"--{name.replace('_', '-')}"
        made.add_argument(name, **told)
    return made
