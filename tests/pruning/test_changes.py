"""What is drawn of re-prunings, and what is left away."""

from parp_cli.pruning.changes import Change, changes
from parp_cli.pruning.pruner import Repruning


def repruning(**layers: tuple[int, int]) -> Repruning:
    revived, dropped = (sum(counts[which] for counts in layers.values()) for which in (0, 1))
    return Repruning(update=1, sparsity=0.5, revived=revived, dropped=dropped, layers=layers)


def test_layers_that_differ_are_not_swaps() -> None:
    """Although over all layers as many were revived as dropped, which is so whenever the sparsity stays."""
    found = changes([repruning(a=(1, 2), b=(5, 4)), repruning(a=(3, 3), b=(0, 0))])
    assert found == (
        Change(name="revived", overall=(6, 3), by_layer={"a": (1, 3), "b": (5, 0)}),
        Change(name="dropped", overall=(6, 3), by_layer={"a": (2, 3), "b": (4, 0)}),
    )


def test_layers_that_swap() -> None:
    assert changes([repruning(a=(1, 1)), repruning(a=(2, 2), b=(3, 3))]) == (
        Change(name="swapped", overall=(1, 5), by_layer={"a": (1, 2), "b": (0, 3)}),
    )


def test_only_one_of_the_two() -> None:
    assert [change.name for change in changes([repruning(a=(0, 2)), repruning(a=(0, 0))])] == ["dropped"]
    assert [change.name for change in changes([repruning(a=(2, 0)), repruning(a=(0, 0))])] == ["revived"]


def test_nothing_at_all() -> None:
    assert changes([repruning(a=(0, 0))]) == (Change(name="swapped", overall=(0,), by_layer={"a": (0,)}),)


def test_records_without_layers() -> None:
    found = changes([Repruning(update=1, sparsity=0.5, revived=3, dropped=4)])
    assert found == (
        Change(name="revived", overall=(3,), by_layer={}),
        Change(name="dropped", overall=(4,), by_layer={}),
    )
