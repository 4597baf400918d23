"""Many things wrong with a corpus, as the details of one error."""

from collections.abc import Sequence

MOST_SHOWN = 50
"""Details beyond this many are counted instead of shown."""


def shown(problems: Sequence[str], most: int = MOST_SHOWN) -> list[str]:
    """The first `most` problems, then how many more there are."""
    if len(problems) <= most:
        return list(problems)
    return [*problems[:most], f"… and {len(problems) - most:,} more"]
