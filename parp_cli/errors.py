"""Every error a user can cause, each with its exit code; `console.show_error` prints it, and nothing else does."""

from collections.abc import Iterable, Sequence

MAX_DETAILS = 50
"""Details of one error beyond this many are counted instead of shown."""


def first_few(items: Sequence[str], limit: int = MAX_DETAILS) -> list[str]:
    """The first `limit` items, then how many more there are."""
    if len(items) <= limit:
        return list(items)
    return [*items[:limit], f"… and {len(items) - limit:,} more"]


class ParpError(Exception):
    """Base of all errors with a message for the user; itself a bug, or a case nobody foresaw.

    Args:
        message: one line, lower case, that names the offending thing.
        details: one line for each thing that is wrong.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, details: Iterable[str] = (), hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message, *(f"  {detail}" for detail in self.details)]
        if self.hint is not None:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class UsageError(ParpError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has unknown keys, wrong types or values out of range."""


class DataError(ParpError):
    """Audio, transcripts or a corpus cannot be used."""

    exit_code = 3


class CheckpointError(ParpError):
    """A checkpoint is missing, broken, foreign, or of another kind than needed."""

    exit_code = 4


class MaskError(CheckpointError):
    """A mask does not fit the weights it is applied to."""


class ResourceError(ParpError):
    """Disk, memory or a device gave out."""

    exit_code = 5


class Interrupted(ParpError):
    """The user stopped the run (Ctrl-C)."""

    exit_code = 130
