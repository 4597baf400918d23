"""Remove from a text encoder the attention heads and feed-forward units that its masks have emptied, and build what is
left.

Its outputs stay the same except for rounding. Every layer keeps one head and one unit, whose weights may be zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from parp_cli.models.small import Small, constants, kept_parts, selected
from parp_cli.models.transformers.architecture import TextArchitecture
from parp_cli.models.transformers.library import library
from parp_cli.models.transformers.structures import Structure

_COUNTS = ("num_attention_heads", "n_heads", "n_head")
"""What modules of attention call the number of their heads."""


def without_empty_groups(
    architecture: TextArchitecture, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> Small:
    """The encoder without the heads and units that its masks have emptied.

    Args:
        architecture: of the encoder.
        weights: all of it, zero where pruned; with or without a head.
        masks: True = kept; weights without one are kept.
    """
    weights, masks = dict(weights), dict(masks)
    sizes = [architecture.sizes_of_layer(index) for index in range(architecture.layers)]
    before = {"heads": [heads for heads, _, _ in sizes], "units": [units for _, _, units in sizes]}
    after = {kind: list(counts) for kind, counts in before.items()}
    activation = library().activations.ACT2FN[architecture.activation]
    for structure in architecture.structures_of(weights):
        after[structure.kind][structure.layer] = _cut(structure, weights, masks, activation)
    heads, units = ((sum(before[kind]), sum(after[kind])) for kind in ("heads", "units"))
    blocks = sum(map(bool, (*before["heads"], *before["units"])))
    return Small(
        architecture=replace(architecture, heads=tuple(after["heads"]), feed_forward=tuple(after["units"])),
        weights=weights,
        masks={} if all(bool(mask.all()) for mask in masks.values()) else masks,
        heads=heads,
        units=units,
        channels=(0, 0),
        blocks=(blocks, blocks),
    )


def _cut(structure: Structure, weights: dict[str, Tensor], masks: dict[str, Tensor], activation: Any) -> int:
    """Remove a structure's empty groups from weights and masks, in place; how many are left."""
    count, part = structure.count, structure.parts[structure.source]
    leads_in = kept_parts(structure.source, part, count, weights, masks)
    removed = ~(kept_parts(structure.out, structure.parts[structure.out], count, weights, masks) & leads_in)
    removed[0] &= not removed.all()
    given, added = (f"{name.removesuffix('.weight')}.bias" for name in (structure.source, structure.out))
    if given in weights:
        of_units = activation if structure.kind == "units" else None
        constant = constants(structure.out, (given, part), removed & ~leads_in, weights, of_units)
        weights[added] = (weights[added].double() + constant).float()
        if added in masks:
            masks[added] = masks[added] | (constant != 0)
    left = (~removed).nonzero().flatten()
    for name, part in {**structure.parts, **structure.follows}.items():
        for tensors in (weights, masks):
            if name in tensors:
                tensors[name] = selected(tensors[name], part, count, left)
    return len(left)


def resize(model: nn.Module, architecture: TextArchitecture) -> None:
    """Give the layers of a model, built by its config, the heads and units that an architecture has: the first ones."""
    whole = replace(architecture, heads=None, feed_forward=None)
    for structure in whole.structures_of(name for name, _ in model.named_parameters()):
        heads, _, units = architecture.sizes_of_layer(structure.layer)
        left = torch.arange(heads if structure.kind == "heads" else units)
        for name, part in {**structure.parts, **structure.follows}.items():
            module, own = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            tensor = selected(getattr(module, own).detach(), part, structure.count, left)
            setattr(module, own, nn.Parameter(tensor))
            if isinstance(module, nn.Linear):
                module.out_features, module.in_features = module.weight.shape
        if structure.kind == "heads":
            _count_heads(model, structure.source.removesuffix(".weight").rpartition(".")[0], heads)


def _count_heads(model: nn.Module, attention: str, heads: int) -> None:
    """Tell a module of attention how many heads it has."""
    module: Any = model.get_submodule(attention)
    for key in _COUNTS:
        if hasattr(module, key):
            setattr(module, key, heads)
    if hasattr(module, "all_head_size"):
        module.all_head_size = heads * module.attention_head_size
