"""Remove from an encoder what its masks have emptied: attention heads, feed-forward units, whole blocks of them, and
channels of the feature encoder.

Its outputs stay the same except for rounding. What is constant of empty groups is added to the bias of the output. A
channel is empty where all of it is pruned, what leads into it and out of it and its entries of norms; it was zero then,
and norms go on to count it as such.

G groups (heads or units) in a layer, D features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import gelu

from parp_cli.models.network import SMALL
from parp_cli.models.small import Small, constants, kept_parts, selected, split
from parp_cli.models.speech.config import Architecture, ConvLayer
from parp_cli.models.speech.prunable import Structure, kind_of

_BLOCKS = {"heads": "attention.", "units": "feed_forward."}
_SOURCES = ("v_proj", "qkv", "fc1")
"""Kinds of module without whose rows a group has no input."""

_POSITIONS = "rel_attn_embed.weight"


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
            groups = split(mask, dimension, repeats, structure.count, -1).movedim(dimension + 1, 0)
            kept |= groups.flatten(1).any(1)
        kept[0] |= not kept.any()
        left[structure.layer] = kept.nonzero().flatten()
        layers[structure.layer] = (len(left[structure.layer]), *layers[structure.layer][1:])
    for structure in structures:
        for tensors in (weights, masks):
            for name, part in structure.parts.items():
                if name in tensors:
                    tensors[name] = selected(tensors[name], part, structure.count, left[structure.layer])
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
                    tensors[name] = selected(tensors[name], part, structure.count, left)
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
    part = structure.parts[source]
    leads_out = kept_parts(out, structure.parts[out], structure.count, weights, masks)
    leads_in = kept_parts(source, part, structure.count, weights, masks)
    bias = source.removesuffix("weight") + "bias"
    activation = gelu if structure.kind == "units" else None
    return ~(leads_out & leads_in), constants(out, (bias, part), ~leads_in, weights, activation)


def _move_positions(weights: dict[str, Tensor], heads: tuple[int, ...]) -> None:
    """WavLM's embedding of relative positions to the first layer with heads; removed where there is none."""
    name = next((name for name in weights if name.endswith(_POSITIONS)), None)
    first = next((index for index, count in enumerate(heads) if count), None)
    if name is not None:
        embedding = weights.pop(name)
        if first is not None:
            weights[f"encoder.transformer.layers.{first}.{_BLOCKS['heads']}{_POSITIONS}"] = embedding
