"""What the re-prunings of a run changed, as it is drawn: only what there is to see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parp_cli.pruning.pruner import Repruning


@dataclass(frozen=True, kw_only=True)
class Change:
    """Counts of weights, one a re-pruning, oldest first.

    Attributes:
        name: "revived" or "dropped"; "swapped" where as many were revived as dropped, each time and in each layer.
        overall: over all layers.
        by_layer: by the labels of the layers; empty for records without layers.
    """

    name: str
    overall: tuple[int, ...]
    by_layer: Mapping[str, tuple[int, ...]]


def changes(reprunings: Sequence[Repruning]) -> tuple[Change, ...]:
    """One or two changes: what is always zero is left away, but "swapped" stays where nothing ever changed."""
    layers = list(dict.fromkeys(layer for repruning in reprunings for layer in repruning.layers))
    revived, dropped = (
        Change(
            name=name,
            overall=tuple((repruning.revived, repruning.dropped)[which] for repruning in reprunings),
            by_layer={layer: tuple(r.layers.get(layer, (0, 0))[which] for r in reprunings) for layer in layers},
        )
        for which, name in enumerate(("revived", "dropped"))
    )
    if (revived.overall, revived.by_layer) == (dropped.overall, dropped.by_layer):
        return (Change(name="swapped", overall=revived.overall, by_layer=revived.by_layer),)
    return tuple(change for change in (revived, dropped) if any(change.overall))
