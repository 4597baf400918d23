"""Which sparsities and patterns there are. Without torch, so that commands refuse others before it loads."""

import math
import re
from typing import Final, Literal, cast

from parp_cli.errors import UsageError

PatternKind = Literal["global", "layer", "tensor", "row", "n:m", "block"]

WHOLE: Final = ("global", "layer", "tensor")
"""The kinds that any tensor can have."""

GROWING: Final = (*WHOLE, "row", "block")
"""The kinds whose sparsity can grow; N:M has one."""

DEFAULT_SPARSITY, DEFAULT_SCOPE, DEFAULT_PATTERN = 0.5, "transformer", "global"
"""Where neither a recipe nor a command nor a checkpoint says what to prune."""

_SIDES = re.compile(r"([1-9][0-9]*)([:x])([1-9][0-9]*)")

_LARGEST_GROUP = 32


def check_sparsity(sparsity: float) -> None:
    """Refuse a share that cannot be pruned.

    Raises:
        UsageError: outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity {sparsity:g} is outside [0, 1)", hint="0.5 prunes half of the weights")


def same_sparsity(one: float, other: float) -> bool:
    """Whether two sparsities are the same as far as a message shows them: to six digits."""
    return math.isclose(one, other, abs_tol=1e-6)


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
    """Read "global", "layer", "tensor", "row", N:M such as "2:4", or a block such as "16x16".

    Returns:
        The kind, and its sides: N and M, or the rows and columns of a block; (1, 1) of the other kinds.

    Raises:
        UsageError: it is none of these, or not 1 <= N < M <= 32.
    """
    for kind in (*WHOLE, "row"):
        if text == kind:
            return cast(PatternKind, kind), (1, 1)
    match = _SIDES.fullmatch(text)
    if match is None:
        raise UsageError(
            f"no pattern {text!r}",
            hint="one of global, layer, tensor, row, N of M weights such as 2:4, or blocks such as 16x16",
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
