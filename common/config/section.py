"""What every section of the configuration is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from common.languages import code_of

LanguageCode = Annotated[str, AfterValidator(code_of)]  # given as a code or an English name, kept as the code
Fraction = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65535)]


def _named(value: Any) -> Any:
    if value == "":
        raise ValueError("it is empty: name a directory, as . for the present one")
    return value


Directory = Annotated[Path, BeforeValidator(_named)]  # Path("") would be the present directory, which nobody named


def is_http(url: str) -> bool:
    """Whether a text has the form ``http://HOST:PORT``, or https, with or without port and path."""
    try:
        parts = urlsplit(url)
        return bool(parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:  # the port is no number, or a bracket is missing
        return False


class ConfigError(ValueError):
    """The user's mistake in a configuration; the message names the file or key and what to do."""


class Section(BaseModel):
    """A table of the TOML file: immutable, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _switched_off(cls, values: Any) -> Any:
        """An empty text is no value where a setting may have none, so that a later file or flag can switch it off."""
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if field.default is None}
        return {key: None if key in optional and value == "" else value for key, value in values.items()}

    @property
    def is_whole(self) -> bool:
        """Whether every setting was given, as in the JSON that a run writes: then nobody has chosen any of them."""
        return len(self.model_fields_set) == len(type(self).model_fields)

    def gives(self, name: str) -> bool:
        """Whether somebody chose this setting, be it the default."""
        return name in self.model_fields_set and not self.is_whole

    def differs(self, name: str) -> bool:
        """Whether somebody chose this setting, and not the default."""
        return self.gives(name) and getattr(self, name) != type(self).model_fields[name].default
