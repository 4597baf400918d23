"""Which parameters are pruned, and where in the encoder a parameter sits.

PARP prunes weights and biases of the attention projections and of both feed-forward layers in every
Transformer layer; other scopes take less, or convolutions too. Which those are follows from the types of the modules
of a network; nothing here spells out the parameters of one model. torch is imported
only once there is a model, so that reports on masks alone can use the names without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from parp_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

# Scope -> the parts of the network (see `_parts`) that it takes.
_SCOPES = {
    "transformer": {"attention", "feed-forward"},
    "attention": {"attention"},
    "feed-forward": {"feed-forward"},
    "front-end": {"front-end"},
    "everything": {"front-end", "position", "attention", "feed-forward"},
}

# What a module is called -> what the field (fairseq, the paper) calls it.
_KINDS = {
    "q_proj": "q_proj",
    "k_proj": "k_proj",
    "v_proj": "v_proj",
    "in_proj": "qkv",  # WavLM's attention keeps the three in one matrix (3·D, D)
    "out_proj": "out_proj",
    "intermediate_dense": "fc1",
    "output_dense": "fc2",
}
_KIND = re.compile(rf"\.layers\.\d+\..*\b({'|'.join(_KINDS)})[._](?:weight|bias)$")
# Outside of the layers the place says more than the module's name, which is "conv" twice.
_KINDS_BEFORE_THE_LAYERS = {
    "conv": re.compile(r"\bfeature_extractor\.conv_layers\.\d+\.conv\.(?:weight|bias)$"),
    "projection": re.compile(r"\bfeature_projection\.projection\.(?:weight|bias)$"),
    "norm": re.compile(r"\b(?:conv_layers\.\d+|feature_projection)\.layer_norm\.(?:weight|bias)$"),
    "pos_conv": re.compile(r"\bpos_conv_embed\..*conv\.(?:bias|weight|parametrizations\.weight\.original1)$"),
}
# What a group of each kind of structure has of a module: some of its rows (0) or columns (1), and how often the groups
# follow one another there: WavLM's packed rows are all heads' queries, then their keys, then their values.
_PARTS_OF = {
    "heads": {"q_proj": (0, 1), "k_proj": (0, 1), "v_proj": (0, 1), "qkv": (0, 3), "out_proj": (1, 1)},
    "units": {"fc1": (0, 1), "fc2": (1, 1)},
}
_CONVOLUTIONS = "feature_extractor.conv_layers"
_PROJECTION, _PROJECTION_NORM = (f"encoder.feature_projection.{name}" for name in ("projection.weight", "layer_norm"))
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.")
_FRONT_END = re.compile(r"\b(?:feature_extractor|feature_projection)\.")

SCOPES = tuple(_SCOPES)
"""What can be pruned by name; any other scope is a pattern of parameter names."""

KINDS = (*_KINDS_BEFORE_THE_LAYERS, *_KINDS.values())
"""Every kind of prunable module, in reading order."""


def prunable_parameters(
    model: nn.Module, *, biases: bool = True, scope: str = "transformer", norms: bool = False
) -> dict[str, nn.Parameter]:
    """The parameters that pruning may touch. Never among them: the Transformer's norms, the mask embedding, the head.

    Args:
        model: a model of `parp_cli.models.speech.config.build`, or one that contains it.
        biases: whether biases are pruned too, as in the paper's release.
        scope: one of `SCOPES`, or a glob of state-dict names such as "*.layers.[0-5].feed_forward.*".
            transformer: the projections of attention and both feed-forward layers, PARP's; attention, feed-forward:
            its halves; front-end: convolutions of the waveform and the projection of their features; everything:
            all these and the positional convolution (of its normalised weight, the direction). A glob chooses among
            all linear and convolutional modules, so among WavLM's gates of attention too.
        norms: whether the front end's norms are prunable too, whatever `biases` says: a channel that is pruned whole
            has its entries of them.

    Returns:
        The parameters themselves by their state-dict names, from the waveform to the last Transformer layer; the
        order is the same each time, so that positions in it can break ties.

    Raises:
        UsageError: the scope matches nothing.
    """
    from torch import nn

    parts = _SCOPES.get(scope)
    names: list[str] = []
    found: dict[str, nn.Parameter] = {}
    for part, prefix, module in _parts(model):
        for own_name, parameter in module.named_parameters():
            # original0 is the length of a normalised weight; pruning it would remove kernel positions as a whole.
            is_norm = isinstance(module, nn.LayerNorm | nn.GroupNorm)
            if own_name.endswith("original0") or (own_name.endswith("bias") and not (biases or is_norm)):
                continue
            if is_norm and not norms:
                continue
            name = f"{prefix}.{own_name}"
            names.append(name)
            if fnmatchcase(name, scope) if parts is None else part in parts:
                found[name] = parameter
    if not found:
        raise _nothing_matches(scope, names, biases=biases)
    return found


def _parts(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """The linear and convolutional modules below the head, and the front end's norms: each one's part of the network,
    its name, and itself."""
    from torch import nn

    from parp_cli.models.speech import encoder, wavlm

    for name, module in model.named_modules():
        match module:
            case encoder.FeatureExtractor() | encoder.FeatureProjection():
                part = "front-end"
            case encoder.PositionalConvolution() | encoder.PositionalStack():
                part = "position"
            # What WavLM's attention shares with the others are its packed projections; beside them is a gate for
            # relative positions.
            case wavlm.RelativeAttention():
                yield "attention", f"{name}.attention", module.attention
                yield "gate", f"{name}.gru_rel_pos_linear", module.gru_rel_pos_linear
                continue
            case encoder.SelfAttention():
                part = "attention"
            case encoder.FeedForward():
                part = "feed-forward"
            case _:
                continue
        for child_name, child in module.named_modules():
            of_channels = part == "front-end" and isinstance(child, nn.LayerNorm | nn.GroupNorm)
            if of_channels or isinstance(child, nn.Linear | nn.Conv1d):
                yield part, f"{name}.{child_name}", child


def _nothing_matches(scope: str, names: list[str], *, biases: bool) -> UsageError:
    nearest = get_close_matches(scope, [*SCOPES, *names], n=1)
    return UsageError(
        f"no prunable parameter matches the scope {scope!r}",
        details=[] if biases else ["biases are left out"],
        hint=f"did you mean {nearest[0]}?"
        if nearest
        else f"one of {', '.join(SCOPES)}, or a pattern of names such as '*.layers.[0-5].feed_forward.*'",
    )


def kind_of(name: str) -> str:
    """The kind of module a prunable parameter belongs to: one of `KINDS`; "other" for any other name."""
    if match := _KIND.search(name):
        return _KINDS[match[1]]
    return next((kind for kind, place in _KINDS_BEFORE_THE_LAYERS.items() if place.search(name)), "other")


def layer_of(name: str) -> int | None:
    """The Transformer layer a parameter belongs to, from 0; None outside of them."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def layers_of(names: Iterable[str]) -> dict[str, str]:
    """A label for the layer of each parameter: "0" and up in the Transformer, "front-end", or "other"."""
    labels = {}
    for name in names:
        number = layer_of(name)
        outside = "front-end" if _FRONT_END.search(name) else "other"
        labels[name] = outside if number is None else str(number)
    return labels


@dataclass(frozen=True)
class Structure:
    """The attention heads or the feed-forward units of a layer, or the channels of a convolution of the feature
    encoder: weights that can be removed together.

    Attributes:
        layer: from 0; of the feature encoder for channels.
        count: how many of them there are.
        parts: for each parameter the dimension that they lie along, and how often all follow one another there. The
            biases of the last projections belong to none.
    """

    kind: str
    layer: int
    count: int
    parts: Mapping[str, tuple[int, int]]

    @property
    def least(self) -> int:
        """How many stay whatever is pruned: without any channel no audio would get through."""
        return int(self.kind == "channels")

    @property
    def ranked(self) -> Sequence[str]:
        """The parts whose magnitudes a group is ranked by: all, but of channels the kernels alone, as of filters in Li
        et al. 2017. What leads out of a channel is partly zero where those that it leads to are pruned."""
        return list(self.parts)[: 1 if self.kind == "channels" else None]

    @property
    def closing(self) -> Sequence[str]:
        """The parts that have to be zero for a group to have no effect. With the others it may come back.

        Of heads and units what leads out of them. Of channels what leads into them, since norms count them; of the last
        ones, which a norm follows, what leads out too.
        """
        if self.kind != "channels":
            return [name for name, (dimension, _) in self.parts.items() if dimension == 1]
        return [
            name
            for name, (dimension, _) in self.parts.items()
            if (is_feature_encoder(name) and dimension == 0) or name == _PROJECTION
        ]


def channels_of(names: Iterable[str], counts: Sequence[int], *, bias: bool, norms: Sequence[bool]) -> list[Structure]:
    """The channels of each convolution of the feature encoder, where all of their weights are among the names.

    Args:
        names: of prunable parameters.
        counts: channels of each convolution.
        bias: whether convolutions have biases.
        norms: for each convolution whether a norm follows it.
    """
    known, found = set(names), []
    for layer, count in enumerate(counts):
        own = ["conv.weight", *(["conv.bias"] if bias else [])]
        own += ["layer_norm.weight", "layer_norm.bias"] if norms[layer] else []
        parts = {f"{_CONVOLUTIONS}.{layer}.{name}": (0, 1) for name in own}
        if layer + 1 < len(counts):
            parts[f"{_CONVOLUTIONS}.{layer + 1}.conv.weight"] = (1, 1)
        else:
            parts |= {_PROJECTION: (1, 1), f"{_PROJECTION_NORM}.weight": (0, 1), f"{_PROJECTION_NORM}.bias": (0, 1)}
        if known >= set(parts):
            found.append(Structure("channels", layer, count, parts))
    return found


def structures_of(names: Iterable[str], sizes_of_layer: Callable[[int], tuple[int, int, int]]) -> list[Structure]:
    """The structures whose weights are all among the names, biases with them if they are.

    Args:
        names: of prunable parameters.
        sizes_of_layer: of the architecture.
    """
    parts: dict[tuple[int, str], dict[str, tuple[int, int]]] = {}
    for name in names:
        layer, kind = layer_of(name), kind_of(name)
        for structure, places in _PARTS_OF.items():
            if layer is not None and kind in places and not (places[kind][0] == 1 and name.endswith("bias")):
                parts.setdefault((layer, structure), {})[name] = places[kind]
    found = []
    for (layer, structure), own in parts.items():
        heads, _, units = sizes_of_layer(layer)
        weights = {kind_of(name) for name in own if name.endswith("weight")}
        if weights in ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"qkv", "out_proj"}, {"fc1", "fc2"}):
            found.append(Structure(structure, layer, heads if structure == "heads" else units, own))
    return found


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the head of a network."""
    return name.startswith("aux.")


def is_feature_encoder(name: str) -> bool:
    """Whether a parameter belongs to the convolutions of the waveform: where one changes, features can't be cached."""
    return re.search(r"\bfeature_extractor\.", name) is not None
