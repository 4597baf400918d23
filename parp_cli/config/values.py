"""Types of the values in recipes, with their limits; pydantic reads them from text."""

import ast
import dataclasses
import inspect
import os
import textwrap
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from parp_cli.config.tree import Text
from parp_cli.pruning.methods import all_specs

T = TypeVar("T")

CONFLICT = "conflict"
"""The type of pydantic's error for values that do not go together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Base of the dataclasses that recipes are read as; a docstring after each field says what the key means."""

    # The reader reports unknown keys: pydantic would not get as far as the conflicts beside them.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="ignore", use_attribute_docstrings=True, allow_inf_nan=False, str_min_length=1
    )

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


def documented(kind: type[T]) -> type[T]:
    """A dataclass of settings that others inherit from, whose docstrings pydantic reads for itself alone: now they are
    with its fields."""
    statements = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(statements, ast.ClassDef)
    for field, text in pairwise(statements.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(meaning))):
                if name in (fields := getattr(kind, "__dataclass_fields__")):  # noqa: B009
                    fields[name].metadata = {"description": inspect.cleandoc(meaning)}
    return kind


def _from_text(read: Callable[[Text], str]) -> BeforeValidator:
    return BeforeValidator(lambda value: read(value) if isinstance(value, Text) else value)


def _path(text: Text) -> str:
    return os.path.abspath(text.folder / os.path.expanduser(text)) if text and text.folder is not None else text


def _method_name(value: str) -> str:
    if value not in all_specs():
        raise ValueError(value)
    return value


def _add_methods(schema: dict[str, Any]) -> None:
    """Describe them in a JSON schema, when it is asked for: until then methods may be registered."""
    schema["meanings"] = {name: spec.description for name, spec in all_specs().items()}
    schema["enum"] = list(schema["meanings"])


MethodName = Annotated[str, AfterValidator(_method_name), Field(json_schema_extra=_add_methods)]
"""Of a method in `pruning.methods`."""

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
CountAboveOne = Annotated[int, Field(ge=2)]
Positive = Annotated[float, Field(gt=0)]
PositiveOrZero = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareAboveZero = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
ShareBetween = Annotated[float, Field(gt=0, lt=1)]
ShareUpToHalf = Annotated[float, Field(ge=0, le=0.5)]

Precision = Literal["auto", "float32", "tf32", "bfloat16"]

Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1, json_schema_extra={"expected": "a name or a list of names"}),
]
"""One name or a list of them."""

FilePath = Annotated[str, _from_text(_path)]
"""Relative to the recipe's folder, or, given by `--set`, to the working folder; `~` is the home folder."""

NameOrPath = Annotated[str, _from_text(lambda text: _path(text) if text.startswith((".", "~")) else text)]
"""A path only where it begins with `.` or `~`, else a name."""

NamesOrPaths = Annotated[
    tuple[NameOrPath, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1, json_schema_extra={"expected": "a name or a path, or a list of them"}),
]
