"""Attention heads and feed-forward units of text encoders: which weights each has of which module of a layer.

Known are the layers of BERT (RoBERTa's and ELECTRA's are the same), DeBERTa-v2, DistilBERT and XLNet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Part = tuple[int, int]


@dataclass(frozen=True)
class _Block:
    """The modules of a block, and the dimension of their weights that its heads or units lie along.

    Attributes:
        source: the module without whose rows a group gives a constant, or nothing.
        out: the module that leads out of the groups; its bias belongs to none.
        inside: all modules, with the two.
        follows: what else has a part for each group, which no pattern prunes.
    """

    kind: str
    source: str
    out: str
    inside: Mapping[str, int]
    follows: Mapping[str, int] = field(default_factory=dict)


def _linear(kind: str, source: str, out: str, *others: str, follows: Sequence[str] = ()) -> _Block:
    """Of linear modules: rows of all but the last."""
    inside = {**dict.fromkeys((source, *others), 0), out: 1}
    return _Block(kind, source, out, inside, dict.fromkeys(follows, 0))


_BLOCKS = (
    _linear("heads", "value", "attention.output", "query", "key"),
    _linear("heads", "attention.v_lin", "attention.out_lin", "attention.q_lin", "attention.k_lin"),
    # DeBERTa's maps of relative positions are there or not, as its config says.
    _linear(
        "heads", "value_proj", "attention.output", "query_proj", "key_proj", follows=("pos_key_proj", "pos_query_proj")
    ),
    _Block(
        "heads",
        "rel_attn.v",
        "rel_attn.o",
        dict.fromkeys(("rel_attn.v", "rel_attn.q", "rel_attn.k", "rel_attn.r", "rel_attn.o"), 1),
        {**{f"rel_attn.r_{which}_bias": 0 for which in "rsw"}, "rel_attn.seg_embed": 1},
    ),
    _linear("units", "intermediate", "output"),
    _linear("units", "ffn.lin1", "ffn.lin2"),
    _linear("units", "ff.layer_1", "ff.layer_2"),
)


@dataclass(frozen=True)
class Structure:
    """The attention heads or the feed-forward units of a layer, as `pruning.structures.Structure`.

    Attributes:
        layer: from 0.
        source, out: the weights that lead into the groups, and out of them.
        follows: parts of what is not pruned, but removed together with a group.
    """

    kind: str
    layer: int
    count: int
    parts: Mapping[str, Part]
    source: str
    out: str
    follows: Mapping[str, Part]

    least = 1
    """A layer keeps its modules, whose sizes cannot be 0 in transformers."""

    @property
    def ranked(self) -> Sequence[str]:
        return list(self.parts)

    @property
    def closing(self) -> Sequence[str]:
        return [self.out]


def structures_of(
    names: Iterable[str],
    *,
    layer_of: Callable[[str], int | None],
    kind_of: Callable[[str], str],
    sizes_of_layer: Callable[[int], tuple[int, int, int]],
) -> list[Structure]:
    """The structures whose weights are all among the names, biases with them if they are.

    Args:
        names: of prunable parameters, or of all.
        layer_of, kind_of, sizes_of_layer: of the architecture.
    """
    layers: dict[int, dict[str, str]] = {}
    for name in names:
        if (layer := layer_of(name)) is not None:
            layers.setdefault(layer, {})[name] = kind_of(name)
    found = []
    for layer, own in sorted(layers.items()):
        heads, _, units = sizes_of_layer(layer)
        weights = {kind: name for name, kind in own.items() if not name.endswith(".bias")}
        for block in _BLOCKS:
            if weights.keys() >= block.inside.keys():
                parts, follows = (
                    {
                        name: (of_kind[kind] if name == weights[kind] else 0, 1)
                        for name, kind in own.items()
                        if kind in of_kind and (name == weights[kind] or kind != block.out)
                    }
                    for of_kind in (block.inside, block.follows)
                )
                count = heads if block.kind == "heads" else units
                ends = weights[block.source], weights[block.out]
                found.append(Structure(block.kind, layer, count, parts, *ends, follows))
    return found
