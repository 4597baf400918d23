"""Numbers in sentences and tables."""

from collections.abc import Sequence

_MOST_DIGITS = 4


def counted(number: int, noun: str) -> str:
    """A number of things whose plural ends in s, such as "1 error" or "2,620 errors"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def digits_apart(values: Sequence[float], least: int) -> int:
    """Digits after the point, from `least` to 4, with which no value looks like 0 unless it is."""
    for digits in range(least, _MOST_DIGITS):
        if all(float(f"{value:.{digits}f}") for value in values if value):
            return digits
    return _MOST_DIGITS


def p_text(p: float, level: float) -> str:
    """Such as "= 0.012" or "< 0.001"; with as many digits as it takes to see on which side of `level` it is."""
    if p < 0.001:
        return "< 0.001"
    digits = next(digits for digits in range(3, 20) if (float(f"{p:.{digits}f}") < level) == (p < level))
    return f"= {p:.{digits}f}"
