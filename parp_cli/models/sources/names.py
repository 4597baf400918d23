"""State dicts: from other projects' names to ours, every tensor accounted for.

Ours are the names of `parp_cli.models.speech.config.build(...).state_dict()`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from parp_cli.errors import CheckpointError, MaskError, first_few
from parp_cli.models.network import check_weights, read_architecture
from parp_cli.models.small import uneven_layers
from parp_cli.models.sources.torch_prune import with_whole_attention
from parp_cli.models.speech.config import Architecture, build
from parp_cli.storage.checkpoint import Parent

if TYPE_CHECKING:
    from torch import Tensor


class Encoder(NamedTuple):
    """A model that was read from somewhere.

    Attributes:
        architecture: what to build, a `models.network.Architecture`.
        weights: float32, exactly those of `build(architecture, ...)`, with `aux.weight` (V, D) and `aux.bias`
            (V,) where there is a vocabulary, and with `MASK_EMBEDDING` where it came with one.
        task: what its head is for, as a checkpoint records it (`Metadata.task`); None without a CTC head. Of its V
            symbols the blank ("<blank>") is the first, and "|" stands between words.
        parents: the checkpoint of parp it was read from, and what that descends from; empty for other sources.
        masks: what it came pruned with (boolean, True = kept), by the names of weights; the weights are zero there.
        notes: what else was there and could not be kept, with the remedy.
    """

    architecture: Any
    weights: dict[str, Tensor]
    task: Mapping[str, Any] | None
    parents: tuple[Parent, ...] = ()
    masks: Mapping[str, Tensor] = {}
    notes: tuple[str, ...] = ()

    @property
    def vocabulary(self) -> list[str] | None:
        """The V output symbols by label id; None without a CTC head."""
        symbols = (self.task or {}).get("vocabulary")
        return None if symbols is None else list(symbols)


# The weight-normed positional convolution is stored as magnitude and direction: under the first names by
# torch.nn.utils.weight_norm, under the second by torch.nn.utils.parametrizations.weight_norm.
_WEIGHT_NORM = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}

MASK_EMBEDDING = "mask_embedding"
"""Name of the vector (D,) that stood for masked frames in pre-training. Fine-tuning puts it in again; a model that only
recognises has no use for it, so it may be absent."""

_MOST_DETAILS = 20

Rules = Iterable[tuple[str, str]]
"""From another project's names to ours, as `renamed` takes them."""


def check_same_model(mask_of: str, ours: Mapping[str, Any], other: str, theirs: Mapping[str, Any]) -> None:
    """Refuse a model that a mask fits by accident, such as a deeper one of equal width.

    Args:
        mask_of, ours: the file with the mask, and its architecture as JSON.
        other, theirs: the model or file it is to go with, and its architecture as JSON.

    Raises MaskError: the architectures differ in sizes; those of several names may have the same.
    """
    if not read_architecture(ours).same_network(read_architecture(theirs)):
        raise MaskError(
            f"the mask of {mask_of} is that of another model than {other}",
            details=[f"{mask_of}: {ours.get('name')}", f"{other}: {theirs.get('name')}"],
            hint="masks can be combined, compared and applied to weights only within one architecture",
        )


def refuse_unsupported(
    options: Mapping[str, Any], supported: Mapping[str, Any], *, source: str, details: Iterable[str] = ()
) -> None:
    """Refuse options of a network (CheckpointError) that have another value than the supported one, which is also the
    default; `details` are what else is not supported."""
    found = [f"{k}: {options[k]!r}, supported is {v!r}" for k, v in supported.items() if options.get(k, v) != v]
    if found := [*found, *details]:
        raise CheckpointError(f"{source} uses options that parp does not support", details=found)


def head_note(source: str, size: int, remedy: str) -> str:
    """What is said of an output head that is left out, as nothing names its labels."""
    return f"the output head of {source} is left out, as nothing says what its {size} labels are: {remedy}"


def without(weights: Mapping[str, Tensor], prefixes: Iterable[str]) -> dict[str, Tensor]:
    """The weights whose names start with none of the prefixes."""
    prefixes = tuple(prefixes)
    return {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}


def renamed(name: str, rules: Rules) -> str:
    """The name after the first rule (regular expression, replacement) that matches its start; as it is after none."""
    for pattern, replacement in rules:
        new, count = re.subn(rf"^{pattern}", replacement, name, count=1)
        if count:
            return new
    return name


def shapes(architecture: Architecture, vocabulary_size: int | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an architecture's weights, in state-dict order, without allocating them."""
    with torch.device("meta"):
        model = build(architecture, vocabulary_size=vocabulary_size)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def with_current_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the positional convolution under the names that today's builders give it."""
    return {re.sub(r"\.weight_[gv]$", lambda old: _WEIGHT_NORM[old[0]], name): w for name, w in weights.items()}


def fit(
    weights: Mapping[str, Tensor],
    architecture: Architecture,
    *,
    source: str,
    vocabulary_size: int | None = None,
    rules: Rules | None = None,
) -> dict[str, Tensor]:
    """The weights in float32, state-dict order and today's names, if they are exactly those of the architecture.

    `MASK_EMBEDDING` is let through where it is there.

    Args:
        weights: under our names, except for the positional convolution, which may have either naming; or another
            project's, for which `rules` are.
        architecture: what they must fit.
        source: where they come from, for the message.
        vocabulary_size: rows of the head `aux`; None where there must be none.
        rules: from another project's names to ours, as `renamed` takes them.

    Raises CheckpointError: names that are missing or left over, or shapes that differ, all of them at once.
    """
    if rules is not None:
        weights = {renamed(name, rules): tensor for name, tensor in weights.items()}
        weights = pack_attention(weights) if architecture.family == "wavlm" else weights
    found = with_current_names(weights)
    expected = shapes(architecture, vocabulary_size)
    if MASK_EMBEDDING in found:
        expected[MASK_EMBEDDING] = (architecture.width,)
    hint = "the file is of another model, or holds layers that parp does not know"
    check_weights(found, expected, source=source, name=architecture.name, hint=hint)
    return {name: found[name].detach().to(torch.float32).contiguous() for name in expected}


def fit_masks(
    masks: Mapping[str, Tensor],
    weights: Mapping[str, Tensor] | None,
    *,
    source: str,
    rules: Rules = (),
) -> dict[str, Tensor]:
    """Masks under our names, in the order of the weights that `fit` returned, less those of a head that was left out.

    Args:
        masks: by the names of their weights, ours or another project's, for which `rules` are.
        weights: None for those of an architecture that is not known; then any names are let through.
        source: where they come from, for the message.

    Raises MaskError: there is no such weight, or one of another shape.
    """
    is_wavlm = any("rel_attn_embed" in name for name in weights or masks)
    found = {renamed(name, rules): mask for name, mask in masks.items()}
    found = with_current_names(pack_attention(with_whole_attention(found)) if is_wavlm else found)
    if weights is None:
        return found
    wrong = []
    for name, mask in without(found, ["aux."]).items():
        shape = f"weight {tuple(weights[name].shape)}" if name in weights else "no such weight"
        if name not in weights or weights[name].shape != mask.shape:
            wrong.append(f"{name}: mask {tuple(mask.shape)}, {shape}")
    if wrong:
        raise MaskError(f"the masks of {source} do not fit its weights", details=first_few(wrong, _MOST_DETAILS))
    return {name: found[name] for name in weights if name in found}


def check_equal_layers(architecture: Architecture) -> None:
    """Refuse an architecture that other projects' models cannot have.

    Raises CheckpointError: sizes differ from layer to layer, or heads from what fills the width, or are 0; or channels
    of the feature encoder were removed.
    """
    keys = ("heads", "head_size", "feed_forward", "conv_layers", "conv_norm_channels")
    sizes = {key: value for key in keys if (value := getattr(architecture, key)) is not None}
    uneven = isinstance(architecture.feed_forward, tuple) or architecture.head_size is not None
    if uneven or not architecture.feed_forward or architecture.conv_norm_channels is not None:
        raise uneven_layers(architecture.name, sizes)


_SEPARATE = re.compile(r"(.*(?<!\.attention)\.attention)\.(q_proj|k_proj|v_proj|out_proj)\.(weight|bias)")
_PACKED = re.compile(r"(.*\.attention)\.attention\.(in_proj_|out_proj\.)(weight|bias)")


def pack_attention(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """WavLM's q, k and v projections as one, the way torchaudio keeps them.

    Other projects have `….attention.q_proj.weight` (D, D) and so on; torchaudio has
    `….attention.attention.in_proj_weight` (3·D, D), q above k above v. A projection that lacks one of the
    three is left as it is, for `fit` to name it.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = _SEPARATE.fullmatch(name)
        if match is None:
            packed[name] = tensor
            continue
        layer, projection, part = match.groups()
        parts = [f"{layer}.{which}_proj.{part}" for which in "qkv"]
        if projection == "out_proj":
            packed[f"{layer}.attention.out_proj.{part}"] = tensor
        elif any(other not in weights for other in parts):
            packed[name] = tensor
        elif projection == "q_proj":
            packed[f"{layer}.attention.in_proj_{part}"] = torch.cat([weights[other] for other in parts])
    return packed


def unpack_attention(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack_attention`."""
    separate: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = _PACKED.fullmatch(name)
        if match is None:
            separate[name] = tensor
            continue
        layer, projection, part = match.groups()
        if projection == "out_proj.":
            separate[f"{layer}.out_proj.{part}"] = tensor
        else:
            for which, third in zip("qkv", tensor.chunk(3), strict=True):
                separate[f"{layer}.{which}_proj.{part}"] = third.contiguous()
    return separate
