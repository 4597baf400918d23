"""Which utterances go together: batches of similar length, so that little of them is padding."""

import random
from collections.abc import Iterable, Sequence

_JITTER = 0.1
"""Lengths are compared give or take this share, so that batches differ from epoch to epoch."""


def batches_by_seconds(lengths: Sequence[float], *, seconds: float, seed: int, epoch: int) -> list[list[int]]:
    """Shuffled batches for one epoch of training; the same from the same seed and epoch.

    Args:
        lengths: of all utterances, in seconds.
        seconds: the most that a batch may hold, padding included: longest utterance × count.
        seed: of the whole run.
        epoch: number of the pass over the data.

    Returns:
        Indices into `lengths`, each exactly once. An utterance longer than `seconds` is a batch of its own.

    Raises:
        ValueError: `seconds` is not above 0.
    """
    # Only random() is promised to give the same numbers in every version of Python, so that it does the shuffling.
    rng = random.Random(f"{seed}/{epoch}")
    jittered = [length * (1 + _JITTER * (2 * rng.random() - 1)) for length in lengths]
    order = sorted(range(len(lengths)), key=jittered.__getitem__)
    batches = _fill(order, lengths, seconds)
    keys = [rng.random() for _ in batches]
    return [batches[index] for index in sorted(range(len(batches)), key=keys.__getitem__)]


def sorted_batches(lengths: Sequence[float], seconds: float) -> list[list[int]]:
    """Batches for evaluation, longest first, so that memory gives out at once or not at all.

    Arguments, result and errors are those of `batches_by_seconds`.
    """
    return _fill(sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)), lengths, seconds)


def _fill(order: Iterable[int], lengths: Sequence[float], seconds: float) -> list[list[int]]:
    """Cut `order` into batches, each as large as fits."""
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
