"""The speech encoders `parp` knows: their sizes, and how a network is built from them.

Sizes follow the released checkpoints. Importing this module stays cheap: torch is imported when a model is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from parp_cli.errors import CheckpointError
from parp_cli.models.speech import prunable

if TYPE_CHECKING:
    from torch import Tensor

    from parp_cli.models.small import Small
    from parp_cli.models.speech.encoder import SpeechNetwork

Family = Literal["wav2vec2", "hubert", "wavlm", "data2vec-audio"]
ConvLayer = tuple[int, int, int]  # channels, kernel, stride, the latter two in samples of the layer's input

# Name of an architecture whose sizes are those of no registered one.
CUSTOM = "custom"

_RELEASED_FRONT_END: tuple[ConvLayer, ...] = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)
_MINI_FRONT_END: tuple[ConvLayer, ...] = ((64, 10, 5), *[(64, 3, 2)] * 4, *[(64, 2, 2)] * 2)

_SIZES = ("width", "layers", "positional_kernel", "positional_groups")

OF_FAMILY = {"buckets": "wavlm", "max_distance": "wavlm", "positional_layers": "data2vec-audio"}
"""Sizes that one family alone has."""

# What the encoder's builder of format 1 called the fields. Its dropouts, which were zero in every file, are ignored.
_FORMAT_1 = {
    "extractor_conv_layer_config": "conv_layers",
    "extractor_conv_bias": "conv_bias",
    "encoder_embed_dim": "width",
    "encoder_num_layers": "layers",
    "encoder_num_heads": "heads",
    "encoder_ff_interm_features": "feed_forward",
    "encoder_layer_norm_first": "norm_first",
    "encoder_pos_conv_kernel": "positional_kernel",
    "encoder_pos_conv_groups": "positional_groups",
    "encoder_num_buckets": "buckets",
    "encoder_max_distance": "max_distance",
}
_FORMAT_1_DROPOUTS = {
    "encoder_projection_dropout",
    "encoder_attention_dropout",
    "encoder_ff_interm_dropout",
    "encoder_dropout",
    "encoder_layer_drop",
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A speech encoder without its weights: wav2vec 2.0, HuBERT, WavLM or data2vec-audio.

    Attributes:
        name: a key of `ARCHITECTURES`, or "custom".
        family: which paper's model it is; "wavlm" has relative positions in its attention, and "data2vec-audio" several
            convolutions for positions; the others are one network.
        normalize_waveform: whether an utterance is brought to zero mean and unit variance before the
            feature encoder (`parp_cli.models.speech.waveform.normalize`).
        conv_layers: the feature encoder: channels, kernel, stride of each layer.
        conv_norm: "group": a group norm after its first convolution; "layer": a layer norm after each.
        conv_bias: whether its convolutions have biases.
        conv_norm_channels: of a feature encoder from which channels were removed, how many each layer had: its norms
            count those that are gone as zeros. None where none are.
        width: features of the Transformer, D.
        layers: Transformer layers.
        heads: attention heads; a tuple where they differ from layer to layer. A layer may have none, and no attention.
        head_size: features of a head; None for width / heads.
        kept_heads: for each layer of a WavLM from which heads were removed the numbers of those that are left, of the
            width / head_size that there were: each has its own positions, and its own part of the hidden states.
        feed_forward: features inside the feed-forward blocks; a tuple where they differ from layer to layer. A layer
            may have none, and no such block.
        norm_first: whether layer norm comes before attention and feed-forward, or after each.
        positional_kernel: kernel of the positional convolution, in frames.
        positional_groups: its groups.
        positional_layers: how many such convolutions follow one another, without weight norm and each with a layer norm
            behind it (family "data2vec-audio" alone, otherwise None).
        buckets: relative positions told apart (family "wavlm" alone, otherwise None).
        max_distance: frames beyond which all positions are one (likewise).
    """

    kind: ClassVar[str] = "speech"
    kinds: ClassVar[tuple[str, ...]] = prunable.KINDS
    libraries: ClassVar[tuple[str, ...]] = ()

    name: str = CUSTOM
    family: Family
    normalize_waveform: bool
    conv_layers: tuple[ConvLayer, ...] = _RELEASED_FRONT_END
    conv_norm: Literal["group", "layer"]
    conv_bias: bool
    conv_norm_channels: tuple[int, ...] | None = None
    width: int
    layers: int
    heads: int | tuple[int, ...]
    head_size: int | None = None
    kept_heads: tuple[tuple[int, ...], ...] | None = None
    feed_forward: int | tuple[int, ...]
    norm_first: bool
    positional_kernel: int = 128
    positional_groups: int = 16
    positional_layers: int | None = None
    buckets: int | None = None
    max_distance: int | None = None

    def __post_init__(self) -> None:
        """Bring equal architectures to the same form, and refuse what cannot be built.

        Raises:
            ValueError: an unknown family or norm, or sizes that are not positive or don't divide.
        """
        for key, known in (("family", get_args(Family)), ("conv_norm", ("group", "layer"))):
            if getattr(self, key) not in known:
                raise ValueError(f"{key}: {getattr(self, key)!r} is none of {', '.join(known)}")
        for key in ("conv_bias", "norm_first", "normalize_waveform"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"{key}: {getattr(self, key)!r} is neither true nor false")
        object.__setattr__(self, "conv_layers", _conv_layers(self.conv_layers))
        self._check_channels()
        for key, value in self._sizes():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{key}: {value!r} is no positive number")
        for key in ("heads", "feed_forward"):
            values = getattr(self, key)
            if isinstance(values, tuple):
                if len(values) != self.layers:
                    raise ValueError(f"{key}: {len(values)} sizes for {self.layers} layers")
                object.__setattr__(self, key, values[0] if len(set(values)) == 1 else values)
        if self.width % self.positional_groups:
            raise ValueError(f"positional_groups: {self.positional_groups} does not divide the width, {self.width}")
        if self.head_size is None and (isinstance(self.heads, tuple) or not self.heads or self.width % self.heads):
            raise ValueError(f"heads: {self.heads} does not divide the width, {self.width}, and head_size is not given")
        if isinstance(self.heads, int) and self.heads * (self.head_size or 0) == self.width:
            object.__setattr__(self, "head_size", None)
        self._check_kept_heads()

    def _sizes(self) -> Iterator[tuple[str, Any]]:
        """All that has to be a positive number, by name: only a layer's heads and units may be none."""
        yield from ((key, getattr(self, key)) for key in _SIZES)
        for key, family in OF_FAMILY.items():
            if self.family == family:
                yield key, getattr(self, key)
            elif getattr(self, key) is not None:
                raise ValueError(f"{key}: a {self.family} has none")
        for key in ("heads", "feed_forward"):
            values = getattr(self, key)
            of_layers = values if isinstance(values, tuple) else [values]
            yield from ((f"{key}[{i}]", size) for i, size in enumerate(of_layers) if size != 0 or size is False)
        yield from ((f"conv_layers[{i}]", size) for i, layer in enumerate(self.conv_layers) for size in layer)
        if self.head_size is not None:
            yield "head_size", self.head_size

    def _check_channels(self) -> None:
        """Refuse norms over fewer channels than there are."""
        if (counted := self.conv_norm_channels) is None:
            return
        channels = tuple(layer[0] for layer in self.conv_layers)
        if len(counted) != len(channels) or any(all_ < own for all_, own in zip(counted, channels, strict=True)):
            raise ValueError(f"conv_norm_channels: {counted} is less than the channels, {channels}")
        if counted == channels:
            object.__setattr__(self, "conv_norm_channels", None)

    def _check_kept_heads(self) -> None:
        """Refuse heads of WavLM that are not told apart, or are told apart where that means nothing."""
        if self.kept_heads is None:
            if self.family == "wavlm" and self.head_size is not None:
                raise ValueError("kept_heads: missing, for a WavLM without some of its heads")
            return
        counts = [self.sizes_of_layer(index)[0] for index in range(self.layers)]
        full, rest = divmod(self.width, self.sizes_of_layer(0)[1])
        if self.family != "wavlm" or rest or [len(kept) for kept in self.kept_heads] != counts:
            raise ValueError("kept_heads: not as many in each layer as heads, or of another family than WavLM")
        if any(list(kept) != sorted(set(kept) & set(range(full))) for kept in self.kept_heads):
            raise ValueError(f"kept_heads: not ascending numbers below {full}")
        if self.head_size is None:
            object.__setattr__(self, "kept_heads", None)

    def sizes_of_layer(self, index: int) -> tuple[int, int, int]:
        """Heads, features of a head, and features inside the feed-forward block of a Transformer layer."""
        heads, inner = (size[index] if isinstance(size, tuple) else size for size in (self.heads, self.feed_forward))
        return heads, self.head_size or self.width // heads, inner

    @property
    def norm_channels(self) -> tuple[int, ...]:
        """The channels that the norm after each layer of the feature encoder counts."""
        return self.conv_norm_channels or tuple(channels for channels, _, _ in self.conv_layers)

    def structures_of(self, names: Iterable[str]) -> list[prunable.Structure]:
        """As `prunable.channels_of` and `prunable.structures_of`."""
        names = list(names)
        counts = [channels for channels, _, _ in self.conv_layers]
        norms = [self.conv_norm == "layer" or layer == 0 for layer in range(len(counts))]
        channels = prunable.channels_of(names, counts, bias=self.conv_bias, norms=norms)
        return [*channels, *prunable.structures_of(names, self.sizes_of_layer)]

    def without_empty_groups(self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Small:
        """As `small.without_empty_groups`."""
        from parp_cli.models.speech.small import without_empty_groups

        return without_empty_groups(self, weights, masks)

    @property
    def channels(self) -> int:
        """Of all convolutions of the feature encoder."""
        return sum(channels for channels, _, _ in self.conv_layers)

    def same_network(self, other: object) -> bool:
        """Whether the other's weights are these: of a network of the same family and sizes, whatever its name."""
        return isinstance(other, Architecture) and self._unnamed() == other._unnamed()

    def _unnamed(self) -> Architecture:
        return replace(self, name=CUSTOM, normalize_waveform=False)

    def build(self, *, outputs: int | None = None, **regularisers: float) -> SpeechNetwork:
        """As the function `build`."""
        return build(self, vocabulary_size=outputs, **regularisers)

    def fit(self, weights: Mapping[str, Tensor], *, source: str, outputs: int | None = None) -> dict[str, Tensor]:
        """As `models.sources.names.fit`."""
        from parp_cli.models.sources.names import fit

        return fit(weights, self, source=source, vocabulary_size=outputs)

    layer_of = staticmethod(prunable.layer_of)
    layers_of = staticmethod(prunable.layers_of)
    kind_of = staticmethod(prunable.kind_of)
    is_head = staticmethod(prunable.is_head)
    is_feature_encoder = staticmethod(prunable.is_feature_encoder)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, without what is None; `from_json` reads them back to an equal architecture."""
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        fields["conv_layers"] = [list(layer) for layer in self.conv_layers]
        for key in ("heads", "feed_forward", "conv_norm_channels"):
            if isinstance(fields.get(key), tuple):
                fields[key] = list(fields[key])
        if self.kept_heads is not None:
            fields["kept_heads"] = [list(kept) for kept in self.kept_heads]
        return {"kind": self.kind, **fields}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Architecture:
        """Read what `to_json` wrote, today or in files of format 1.

        Raises:
            CheckpointError: keys are missing, unknown, or hold values of another kind.
        """
        try:
            values = dict(fields)
            if values.pop("kind", cls.kind) != cls.kind:
                raise ValueError(f"kind: {fields['kind']!r} is not {cls.kind!r}")
            if "builder" in values:
                values |= _of_format_1(values.pop("builder"))
            known = {field.name: field.default for field in dataclass_fields(cls)}
            details = [f"{key}: missing" for key, default in known.items() if key not in values and default is MISSING]
            details += [f"{key}: unknown" for key in values if key not in known]
            if details:
                raise CheckpointError("an architecture cannot be read", details=details)
            for key in ("heads", "feed_forward", "conv_norm_channels"):
                if isinstance(values.get(key), list):
                    values[key] = tuple(values[key])
            if values.get("kept_heads") is not None:
                values["kept_heads"] = tuple(tuple(kept) for kept in values["kept_heads"])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise CheckpointError("an architecture cannot be read", details=[str(error)]) from error


def _of_format_1(builder: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a builder's arguments of format 1 stand for; unknown ones as they are."""
    values = {_FORMAT_1.get(key, key): value for key, value in builder.items() if key not in _FORMAT_1_DROPOUTS}
    mode = str(values.pop("extractor_mode", ""))
    return values | {"conv_norm": mode.removesuffix("_norm")}


def with_known_name(architecture: Architecture) -> Architecture:
    """The architecture under the name of the registered one of the same family and sizes, or as it is."""
    name = next((known.name for known in ARCHITECTURES.values() if known.same_network(architecture)), architecture.name)
    return replace(architecture, name=name)


def _conv_layers(layers: Iterable[Iterable[int]]) -> tuple[ConvLayer, ...]:
    result = []
    for layer in layers:
        channels, kernel, stride = (int(value) for value in layer)
        result.append((channels, kernel, stride))
    return tuple(result)


def _base(name: str, family: Family) -> Architecture:
    return Architecture(
        name=name,
        family=family,
        normalize_waveform=False,
        conv_norm="group",
        conv_bias=False,
        width=768,
        layers=12,
        heads=12,
        feed_forward=3072,
        norm_first=False,
        **_RELATIVE if family == "wavlm" else {},
    )


def _large(name: str, family: Family, *, conv_bias: bool, width: int = 1024, layers: int = 24) -> Architecture:
    return Architecture(
        name=name,
        family=family,
        normalize_waveform=True,
        conv_norm="layer",
        conv_bias=conv_bias,
        width=width,
        layers=layers,
        heads=16,
        feed_forward=4 * width,
        norm_first=True,
        **_RELATIVE if family == "wavlm" else {},
    )


_RELATIVE: dict[str, Any] = {"buckets": 320, "max_distance": 800}

_ALL = (
    _base("wav2vec2-base", "wav2vec2"),
    # The one large model that keeps base's group norm and its layer norm after each block.
    replace(_base("wav2vec2-large", "wav2vec2"), width=1024, layers=24, heads=16, feed_forward=4096),
    _large("wav2vec2-large-lv60k", "wav2vec2", conv_bias=True),
    _large("xlsr-53", "wav2vec2", conv_bias=True),
    _large("xls-r-300m", "wav2vec2", conv_bias=True),
    _large("xls-r-1b", "wav2vec2", conv_bias=True, width=1280, layers=48),
    _large("xls-r-2b", "wav2vec2", conv_bias=True, width=1920, layers=48),
    _base("hubert-base", "hubert"),
    _large("hubert-large", "hubert", conv_bias=False),
    _large("hubert-xlarge", "hubert", conv_bias=False, width=1280, layers=48),
    _base("wavlm-base", "wavlm"),
    _base("wavlm-base-plus", "wavlm"),
    _large("wavlm-large", "wavlm", conv_bias=False),
    replace(
        _large("mini", "hubert", conv_bias=False, width=256, layers=6),
        conv_layers=_MINI_FRONT_END,
        heads=4,
        positional_kernel=64,
    ),
)

ARCHITECTURES: dict[str, Architecture] = {architecture.name: architecture for architecture in _ALL}
"""Every architecture with a name, by that name."""


def build(
    architecture: Architecture,
    *,
    vocabulary_size: int | None = None,
    layer_drop: float = 0.0,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    activation_dropout: float = 0.0,
) -> SpeechNetwork:
    """A freshly initialised model.

    Args:
        architecture: what to build.
        vocabulary_size: V, outputs of the linear CTC head `aux`; None for no head.
        layer_drop: probability to skip a Transformer layer, in training.
        dropout: after the front end's projection, each attention and each feed-forward block, in training.
        attention_dropout: on attention weights, in training.
        activation_dropout: inside the feed-forward blocks, in training.

    Returns:
        From waveforms (B, S) to logits (B, T, V), or to hidden states (B, T, D) without a head.
    """
    from torch import nn

    from parp_cli.models.speech import encoder, linear, wavlm

    width = architecture.width
    counted = architecture.norm_channels
    extractor = encoder.FeatureExtractor(
        architecture.conv_layers,
        bias=architecture.conv_bias,
        group_norm=architecture.conv_norm == "group",
        counted=counted,
    )
    projection = encoder.FeatureProjection(architecture.conv_layers[-1][0], width, dropout, counted=counted[-1])
    of_positions = width, architecture.positional_kernel, architecture.positional_groups
    positions: nn.Module = encoder.PositionalConvolution(*of_positions)
    if architecture.positional_layers is not None:
        positions = encoder.PositionalStack(*of_positions, architecture.positional_layers)
    layers = []
    sizes = [architecture.sizes_of_layer(index) for index in range(architecture.layers)]
    first = next((index for index, (heads, _, _) in enumerate(sizes) if heads), None)
    for index, (heads, head_size, inner) in enumerate(sizes):
        attention: nn.Module
        if not heads:
            attention = encoder.NoHeads(width)
        elif architecture.buckets is None or architecture.max_distance is None:
            attention = encoder.SelfAttention(width, heads, head_size, attention_dropout)
        else:
            attention = wavlm.RelativeAttention(
                width,
                width // head_size,
                attention_dropout,
                kept=None if architecture.kept_heads is None else architecture.kept_heads[index],
                buckets=architecture.buckets,
                max_distance=architecture.max_distance,
                makes_position_bias=index == first,
            )
        block = encoder.FeedForward(width, inner, activation_dropout, dropout) if inner else encoder.NoUnits(width)
        layers.append(encoder.Layer(width, attention, block, dropout, norm_first=architecture.norm_first))
    transformer = encoder.Transformer(
        positions, layers, features=width, dropout=dropout, layer_drop=layer_drop, norm_first=architecture.norm_first
    )
    aux = None if vocabulary_size is None else linear.Linear(width, vocabulary_size)
    return encoder.SpeechNetwork(architecture, extractor, encoder.Encoder(projection, transformer), aux)


def frames(architecture: Architecture, samples: int) -> int:
    """T, the frames the front end makes of S = `samples` samples (0 if too short for one).

    A frame is 20 ms (320 samples at 16 kHz) with every registered front end.
    """
    for _, kernel, stride in architecture.conv_layers:
        samples = max(0, (samples - kernel) // stride + 1)
    return samples
