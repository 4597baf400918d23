"""Batches of utterances of similar length, so that little of them is padding."""

import random
from collections.abc import Iterable, Sequence

_JITTER = 0.1  # largest relative change of lengths before sorting, so that batches differ from epoch to epoch


def batches_by_seconds(lengths: Sequence[float], *, seconds: float, seed: int, epoch: int) -> list[list[int]]:
    """Shuffled batches for one epoch of training, deterministic in seed and epoch.

    Args:
        lengths: of all utterances, in seconds.
        seconds: limit of a batch, padding included: longest utterance × count.

    Returns:
        Indices into `lengths`, each exactly once. An utterance longer than `seconds` is a batch of its own.

    Raises ValueError: `seconds` is not above 0.
    """
    # Of all generators only random() gives the same numbers in every version of Python.
    rng = random.Random(f"{seed}/{epoch}")
    jittered = [length * (1 + _JITTER * (2 * rng.random() - 1)) for length in lengths]
    order = sorted(range(len(lengths)), key=jittered.__getitem__)
    batches = _fill(order, lengths, seconds)
    keys = [rng.random() for _ in batches]
    return [batches[index] for index in sorted(range(len(batches)), key=keys.__getitem__)]


def sorted_batches(lengths: Sequence[float], seconds: float) -> list[list[int]]:
    """As `batches_by_seconds`, but longest first, so that memory runs out at once or not at all."""
    return _fill(sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)), lengths, seconds)


def _fill(order: Iterable[int], lengths: Sequence[float], seconds: float) -> list[list[int]]:
    if not seconds > 0:
        raise ValueError(f"a batch of {seconds} seconds holds nothing")
    batches: list[list[int]] = []
    longest = 0.0
    for index in order:
        longest = max(longest, lengths[index])
        if batches and longest * (len(batches[-1]) + 1) <= seconds:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches
