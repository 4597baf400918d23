"""Remove from an encoder what its masks have emptied: attention heads, feed-forward units, whole blocks of them, and
channels of the feature encoder.

Its outputs stay the same except for rounding. A group is empty where the columns that lead out of it are pruned,
whatever comes in; or where what leads into it is (a head's values, a unit's row): then it gives a constant, made of its
biases, which is added to the bias of the output. A channel is empty where all of it is pruned, what leads into it and
out of it and its entries of norms; it was zero then, and norms go on to count it as such.

G groups (heads or units) in a layer, D features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import gelu

from parp_cli.models.network import SMALL
from parp_cli.models.speech.config import Architecture, ConvLayer
from parp_cli.models.speech.prunable import Structure, kind_of

_BLOCKS = {"heads": "attention.", "units": "feed_forward."}
_SOURCES = ("v_proj", "qkv", "fc1")
"""Kinds of module without whose rows a group has no input."""

_POSITIONS = "rel_attn_embed.weight"


@dataclass(frozen=True)
class Small:
    """An encoder without what was empty.

    Attributes:
        masks: of the weights that are left; empty where they prune nothing.
        heads, units, channels, blocks: how many there were and are; of blocks (attention, feed-forward) those with any
            of the first two.
    """

    architecture: Architecture
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    heads: tuple[int, int]
    units: tuple[int, int]
    channels: tuple[int, int]
    blocks: tuple[int, int]

    @property
    def removed(self) -> bool:
        """Whether anything was."""
        return any(before > after for before, after in (self.heads, self.units, self.channels))


def without_empty_groups(
    architecture: Architecture, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> Small:
    """The encoder without the heads, units and channels that its masks have emptied.

    Args:
        architecture: of the encoder.
        weights: all of it, zero where pruned; with or without a head and a mask embedding.
        masks: True = kept; weights without one are kept.
    """
    weights, masks = dict(weights), dict(masks)
    kept: dict[str, list[tuple[int, ...]]] = {kind: [()] * architecture.layers for kind in _BLOCKS}
    structures = architecture.structures_of(weights)
    conv_layers = _cut_channels(architecture, [one for one in structures if one.kind == "channels"], weights, masks)
    for structure in structures:
        if structure.kind in _BLOCKS:
            kept[structure.kind][structure.layer] = _cut(structure, weights, masks)
    heads, units = (tuple(map(len, kept[kind])) for kind in ("heads", "units"))
    sizes = [architecture.sizes_of_layer(index) for index in range(architecture.layers)]
    numbers = None
    if architecture.family == "wavlm":
        old = architecture.kept_heads or [tuple(range(count)) for count, _, _ in sizes]
        numbers = tuple(tuple(before[i] for i in after) for before, after in zip(old, kept["heads"], strict=True))
        _move_positions(weights, heads)
    made = replace(
        architecture,
        name=architecture.name.removesuffix(SMALL) + SMALL,
        conv_layers=conv_layers,
        conv_norm_channels=architecture.norm_channels,
        heads=heads,
        head_size=sizes[0][1],
        kept_heads=numbers,
        feed_forward=units,
    )
    return Small(
        architecture=made,
        weights=weights,
        masks={} if all(bool(mask.all()) for mask in masks.values()) else masks,
        heads=(sum(count for count, _, _ in sizes), sum(heads)),
        units=(sum(inner for _, _, inner in sizes), sum(units)),
        channels=(sum(layer[0] for layer in architecture.conv_layers), sum(layer[0] for layer in conv_layers)),
        blocks=(sum(bool(n) for count, _, inner in sizes for n in (count, inner)), sum(map(bool, (*heads, *units)))),
    )


def _cut_channels(
    architecture: Architecture, structures: Sequence[Structure], weights: dict[str, Tensor], masks: dict[str, Tensor]
) -> tuple[ConvLayer, ...]:
    """Remove the empty channels from weights and masks, in place; the layers of the feature encoder that is left."""
    layers = list(architecture.conv_layers)
    left = {}
    for structure in structures:
        kept = torch.zeros(structure.count, dtype=torch.bool)
        for name, (dimension, repeats) in structure.parts.items():
            mask = masks.get(name, torch.ones_like(weights[name], dtype=torch.bool))
            groups = _split(mask, dimension, repeats, structure.count, -1).movedim(dimension + 1, 0)
            kept |= groups.flatten(1).any(1)
        kept[0] |= not kept.any()
        left[structure.layer] = kept.nonzero().flatten()
        layers[structure.layer] = (len(left[structure.layer]), *layers[structure.layer][1:])
    for structure in structures:
        for tensors in (weights, masks):
            for name, part in structure.parts.items():
                if name in tensors:
                    tensors[name] = _selected(tensors[name], part, structure.count, left[structure.layer])
    return tuple(layers)


def _cut(structure: Structure, weights: dict[str, Tensor], masks: dict[str, Tensor]) -> tuple[int, ...]:
    """Remove a structure's empty groups from weights and masks, in place; the numbers of those that are left."""
    block = f"encoder.transformer.layers.{structure.layer}." + _BLOCKS[structure.kind]
    out = next(name for name, (dimension, _) in structure.parts.items() if dimension == 1)
    bias = out.removesuffix("weight") + "bias"
    empty, constant = _empty(structure, out, weights, masks)
    weights[bias] = (weights[bias].double() + constant).float()
    if bias in masks:
        masks[bias] = masks[bias] | (constant != 0)
    left = (~empty).nonzero().flatten()
    gates = {name: (1, 1) for name in weights if name == f"{block}gru_rel_pos_const"}
    for tensors in (weights, masks):
        if len(left):
            for name, part in {**structure.parts, **gates}.items():
                if name in tensors:
                    tensors[name] = _selected(tensors[name], part, structure.count, left)
        else:
            rest = [name for name in tensors if name.startswith(block) and not name.endswith(_POSITIONS)]
            removed = {name: tensors.pop(name) for name in rest}
            if tensors is weights:
                weights[f"{block}bias"] = removed[bias]
    return tuple(left.tolist())


def _empty(
    structure: Structure, out: str, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Which groups (G,) are empty, and what those of them that give a constant add to the output (D,), in float64."""
    source = next(name for name in structure.parts if kind_of(name) in _SOURCES and name.endswith("weight"))
    repeats = structure.parts[source][1]

    def last(tensor: Tensor) -> Tensor:  # of packed projections, the values'
        return _split(tensor, 0, repeats, structure.count, -1)[-1]

    everything = {name: torch.ones_like(weights[name], dtype=torch.bool) for name in (out, source)}
    leads_out = _split(masks.get(out, everything[out]), 1, structure.count, -1).any(2).any(0)
    leads_in = last(masks.get(source, everything[source])).flatten(1).any(1)
    given = last(weights[source.removesuffix("weight") + "bias"]).double()
    given = gelu(given) if structure.kind == "units" else given  # the weights of a softmax sum to one
    given = torch.where(leads_in[:, None], 0.0, given).flatten()
    return ~(leads_out & leads_in), weights[out].double() @ given


def _selected(tensor: Tensor, part: tuple[int, int], count: int, left: Tensor) -> Tensor:
    """The groups with these numbers."""
    dimension, repeats = part
    groups = _split(tensor, dimension, repeats, count, -1).index_select(dimension + 1, left)
    return groups.flatten(dimension, dimension + 2).contiguous()


def _split(tensor: Tensor, dimension: int, *sizes: int) -> Tensor:
    """One dimension as several, of which one may be -1."""
    return tensor.reshape(*tensor.shape[:dimension], *sizes, *tensor.shape[dimension + 1 :])


def _move_positions(weights: dict[str, Tensor], heads: tuple[int, ...]) -> None:
    """WavLM's embedding of relative positions to the first layer with heads; removed where there is none."""
    name = next((name for name in weights if name.endswith(_POSITIONS)), None)
    first = next((index for index, count in enumerate(heads) if count), None)
    if name is not None:
        embedding = weights.pop(name)
        if first is not None:
            weights[f"encoder.transformer.layers.{first}.{_BLOCKS['heads']}{_POSITIONS}"] = embedding
