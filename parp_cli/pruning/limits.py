"""Which sparsities and patterns there are. Without torch, so that commands refuse others before it loads."""

import re
from typing import Final, Literal

from parp_cli.errors import UsageError

PatternKind = Literal["global", "layer", "tensor", "n:m", "block"]

WHOLE: Final = ("global", "layer", "tensor")
"""The kinds without sides."""

_SIDES = re.compile(r"([1-9][0-9]*)([:x])([1-9][0-9]*)")

_LARGEST_GROUP = 32


def check_sparsity(sparsity: float) -> None:
    """Refuse a share that cannot be pruned.

    Raises:
        UsageError: outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity {sparsity:g} is outside [0, 1)", hint="0.5 prunes half of the weights")


def check_setting(sparsity: float | None, pattern: str | None) -> None:
    """Refuse what is given of the two, if there is no such thing.

    Raises:
        UsageError: as `check_sparsity` and `read_pattern`.
    """
    if sparsity is not None:
        check_sparsity(sparsity)
    if pattern is not None:
        read_pattern(pattern)


def read_pattern(text: str) -> tuple[PatternKind, tuple[int, int]]:
    """Read "global", "layer", "tensor", N:M such as "2:4", or a block such as "16x16".

    Returns:
        The kind, and its sides: N and M, or the rows and columns of a block; (1, 1) of the other kinds.

    Raises:
        UsageError: it is none of these, or not 1 <= N < M <= 32.
    """
    for kind in WHOLE:
        if text == kind:
            return kind, (1, 1)
    match = _SIDES.fullmatch(text)
    if match is None:
        raise UsageError(
            f"no pattern {text!r}",
            hint="one of global, layer, tensor, N of M weights such as 2:4, or blocks such as 16x16",
        )
    sides = (int(match[1]), int(match[3]))
    if match[2] == "x":
        return "block", sides
    if not sides[0] < sides[1] <= _LARGEST_GROUP:
        raise UsageError(
            f"no pattern {text!r}",
            hint=f"N:M keeps N of M weights, with 1 <= N < M <= {_LARGEST_GROUP}, such as 2:4",
        )
    return "n:m", sides
