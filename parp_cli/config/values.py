"""Types of the values in recipes, with their limits: what the text of a YAML scalar means is decided by its field.

pydantic checks limits and choices; the validators here are stricter than it about text, so that a quoted number, a
fraction for a whole number, or `1` for true is reported instead of guessed at.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from parp_cli.pruning.methods import all_specs

CONFLICT = "conflict"
"""The type of pydantic's error for values that do not go together."""


class Text(str):
    """A YAML scalar as it is written.

    Attributes:
        plain: without quotes; only then can it be a number or a truth value.
        folder: where relative paths start; None leaves paths as they are.
    """

    def __new__(cls, text: str, *, plain: bool, folder: Path | None) -> "Text":
        self = super().__new__(cls, text)
        self.plain, self.folder = plain, folder
        return self

    plain: bool
    folder: Path | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Base of the dataclasses that recipes are read as; a docstring after each field says what the key means."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that are valid alone but do not go together: the field to report, and the message."""
        yield from ()

    @model_validator(mode="after")
    def _check_conflicts(self) -> "Section":
        errors = [
            InitErrorDetails(type=PydanticCustomError(CONFLICT, "{text}", {"text": text}), loc=(field,), input=None)
            for field, text in self.conflicts()
        ]
        if errors:
            raise ValidationError.from_exception_data(type(self).__name__, errors)
        return self


def _from_text(read: Callable[[Text], Any]) -> BeforeValidator:
    return BeforeValidator(lambda value: read(value) if isinstance(value, Text) else value)


def _number(kind: type[int] | type[float]) -> BeforeValidator:
    def read(text: Text) -> float:
        number = kind(text)
        if not (text.plain and math.isfinite(number)):
            raise ValueError(text)
        return number

    return _from_text(read)


def _truth(text: Text) -> bool:
    if not text.plain or text.lower() not in ("true", "yes", "on", "false", "no", "off"):
        raise ValueError(text)
    return text.lower() in ("true", "yes", "on")


def _path(text: Text) -> str:
    return text if text.folder is None else os.path.abspath(text.folder / os.path.expanduser(text))


def _method_name(value: str) -> str:
    if value not in all_specs():
        raise ValueError(value)
    return value


class _MethodNames:
    """The JSON schema of `MethodName`: methods may be registered until it is asked for."""

    @staticmethod
    def __get_pydantic_json_schema__(schema: Any, handler: Any) -> dict[str, Any]:
        meanings = {name: spec.description for name, spec in all_specs().items()}
        return {**handler(schema), "enum": list(meanings), "meanings": meanings}


MethodName = Annotated[str, AfterValidator(_method_name), _MethodNames]
"""Of a method in `pruning.methods`."""

Flag = Annotated[bool, _from_text(_truth)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), _number(int)]
Count = Annotated[int, Field(ge=1), _number(int)]
CountOrZero = Annotated[int, Field(ge=0), _number(int)]
CountAboveOne = Annotated[int, Field(ge=2), _number(int)]
Positive = Annotated[float, Field(gt=0), _number(float)]
PositiveOrZero = Annotated[float, Field(ge=0), _number(float)]
Share = Annotated[float, Field(ge=0, le=1), _number(float)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1), _number(float)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1), _number(float)]
ShareBetween = Annotated[float, Field(gt=0, lt=1), _number(float)]
ShareUpToHalf = Annotated[float, Field(ge=0, le=0.5), _number(float)]

Precision = Literal["auto", "float32", "tf32", "bfloat16"]

FilePath = Annotated[str, _from_text(_path)]
"""Relative to the recipe's folder, or, given by `--set`, to the working folder; `~` is the home folder."""

NameOrPath = Annotated[str, _from_text(lambda text: _path(text) if text.startswith((".", "~")) else text)]
"""A path only where it begins with `.` or `~`, else a name."""
