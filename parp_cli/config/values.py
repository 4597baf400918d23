"""Kinds of values that recipes hold, with their limits; `strict_yaml.py` checks them."""

from typing import Annotated

from parp_cli.config.strict_yaml import IsPath, Range

Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Count = Annotated[int, Range(at_least=1)]
CountOrZero = Annotated[int, Range(at_least=0)]
Positive = Annotated[float, Range(above=0)]
PositiveOrZero = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
ShareBelowOne = Annotated[float, Range(at_least=0, below=1)]
FilePath = Annotated[str, IsPath()]
NameOrPath = Annotated[str, IsPath(only_if_dotted=True)]
