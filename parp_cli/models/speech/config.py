"""The encoders `parp` knows, as arguments of torchaudio's builders.

Sizes follow the bundles of `torchaudio.pipelines`, and those follow the released checkpoints. They are
written out here because importing this module must stay cheap: torch is imported when a model is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from parp_cli.errors import CheckpointError

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

Family = Literal["wav2vec2", "hubert", "wavlm"]
ConvLayer = tuple[int, int, int]  # channels, kernel, stride, the latter two in samples of the layer's input

# Name of an architecture whose sizes are those of no registered one.
CUSTOM = "custom"

_RELEASED_FRONT_END: tuple[ConvLayer, ...] = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)
_MINI_FRONT_END: tuple[ConvLayer, ...] = ((64, 10, 5), *[(64, 3, 2)] * 4, *[(64, 2, 2)] * 2)

# The builder's arguments that are positive whole numbers.
_SIZES = (
    "encoder_embed_dim",
    "encoder_pos_conv_kernel",
    "encoder_pos_conv_groups",
    "encoder_num_layers",
    "encoder_num_heads",
    "encoder_ff_interm_features",
    "encoder_num_buckets",
    "encoder_max_distance",
)

# The builder's arguments that regularise training: no property of an architecture, so zero in every one.
_REGULARISERS = (
    "encoder_projection_dropout",
    "encoder_attention_dropout",
    "encoder_ff_interm_dropout",
    "encoder_dropout",
    "encoder_layer_drop",
)


_OTHERS = ("extractor_mode", "extractor_conv_layer_config", "extractor_conv_bias", "encoder_layer_norm_first")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An encoder without its weights.

    Attributes:
        name: a key of `ARCHITECTURES`, or "custom".
        family: which paper's model it is; "wavlm" has another builder, the others share theirs.
        builder: keyword arguments of `torchaudio.models.wavlm_model` (family "wavlm") or
            `torchaudio.models.wav2vec2_model`, all but `aux_num_out`; every dropout and layer drop is 0.
        normalize_waveform: whether an utterance is brought to zero mean and unit variance before the
            front end (`parp_cli.models.speech.waveform.normalize`).
    """

    name: str
    family: Family
    builder: Mapping[str, Any]
    normalize_waveform: bool

    def __post_init__(self) -> None:
        """Refuse what no builder could build.

        Raises:
            ValueError: an unknown family, or sizes that are not positive or don't divide.
        """
        if self.family not in get_args(Family):
            raise ValueError(f"family: {self.family!r} is none of {', '.join(get_args(Family))}")
        sizes = {key: value for key, value in self.builder.items() if key in _SIZES}
        sizes |= {
            f"extractor_conv_layer_config[{i}]": size for i, layer in enumerate(self.conv_layers) for size in layer
        }
        for key, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{key}: {value!r} is no positive number")
        for key in ("encoder_num_heads", "encoder_pos_conv_groups"):
            if sizes.get("encoder_embed_dim", 0) % sizes.get(key, 1):
                raise ValueError(f"{key}: {sizes[key]} does not divide encoder_embed_dim, {sizes['encoder_embed_dim']}")

    @property
    def conv_layers(self) -> tuple[ConvLayer, ...]:
        """The convolutional front end: (channels, kernel, stride) of each layer."""
        return cast("tuple[ConvLayer, ...]", self.builder["extractor_conv_layer_config"])

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; `from_json` reads them back to an equal architecture."""
        builder = dict(self.builder) | {"extractor_conv_layer_config": [list(layer) for layer in self.conv_layers]}
        return {
            "kind": "speech",
            "name": self.name,
            "family": self.family,
            "builder": builder,
            "normalize_waveform": self.normalize_waveform,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Architecture:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: keys are missing, unknown, or hold values of another kind.
        """
        try:
            name, family, normalize = fields["name"], fields["family"], fields["normalize_waveform"]
            builder = dict(fields["builder"])
            conv_layers = builder["extractor_conv_layer_config"]
            builder["extractor_conv_layer_config"] = _conv_layers(conv_layers)
            return cls(name=str(name), family=family, builder=builder, normalize_waveform=bool(normalize))
        except KeyError as error:
            raise CheckpointError("an architecture lacks a part", details=[f"{error.args[0]}: missing"]) from error
        except (TypeError, ValueError) as error:
            raise CheckpointError("an architecture cannot be read", details=[str(error)]) from error


def encoder_architecture(
    *,
    name: str | None = None,
    family: Family,
    normalize_waveform: bool,
    conv_layers: Iterable[Iterable[int]] = _RELEASED_FRONT_END,
    extractor_mode: Literal["group_norm", "layer_norm"],
    conv_bias: bool,
    embed: int,
    layers: int,
    heads: int,
    feed_forward: int,
    layer_norm_first: bool,
    pos_conv_kernel: int = 128,
    pos_conv_groups: int = 16,
    buckets: int = 320,
    max_distance: int = 800,
) -> Architecture:
    """An architecture of given sizes.

    Args:
        name: without one, the registered architecture of the same family and sizes lends its name, or it
            is called "custom".
        family: as in `Architecture`.
        normalize_waveform: as in `Architecture`.
        conv_layers: channels, kernel, stride of each layer of the front end.
        extractor_mode: group norm after the first convolution only, or layer norm after each.
        conv_bias: whether the front end's convolutions have biases.
        embed: dimensions of the Transformer.
        layers: Transformer layers.
        heads: attention heads.
        feed_forward: dimensions inside the feed-forward blocks.
        layer_norm_first: whether layer norm comes before attention and feed-forward.
        pos_conv_kernel: kernel of the positional convolution, in frames.
        pos_conv_groups: its groups.
        buckets: relative positions told apart (family "wavlm" alone).
        max_distance: frames beyond which all positions are one (family "wavlm" alone).
    """
    builder: dict[str, Any] = {
        "extractor_mode": extractor_mode,
        "extractor_conv_layer_config": _conv_layers(conv_layers),
        "extractor_conv_bias": conv_bias,
        "encoder_embed_dim": embed,
        "encoder_pos_conv_kernel": pos_conv_kernel,
        "encoder_pos_conv_groups": pos_conv_groups,
        "encoder_num_layers": layers,
        "encoder_num_heads": heads,
        "encoder_ff_interm_features": feed_forward,
        "encoder_layer_norm_first": layer_norm_first,
    } | dict.fromkeys(_REGULARISERS, 0.0)
    if family == "wavlm":
        builder |= {"encoder_num_buckets": buckets, "encoder_max_distance": max_distance}
    if name is None:
        name = next(
            (known.name for known in ARCHITECTURES.values() if (known.family, known.builder) == (family, builder)),
            CUSTOM,
        )
    return Architecture(name=name, family=family, builder=builder, normalize_waveform=normalize_waveform)


def _conv_layers(layers: Iterable[Iterable[int]]) -> tuple[ConvLayer, ...]:
    result = []
    for layer in layers:
        channels, kernel, stride = (int(value) for value in layer)
        result.append((channels, kernel, stride))
    return tuple(result)


def _base(name: str, family: Family) -> Architecture:
    return encoder_architecture(
        name=name,
        family=family,
        normalize_waveform=False,
        extractor_mode="group_norm",
        conv_bias=False,
        embed=768,
        layers=12,
        heads=12,
        feed_forward=3072,
        layer_norm_first=False,
    )


def _large(
    name: str,
    family: Family,
    *,
    conv_bias: bool,
    embed: int = 1024,
    layers: int = 24,
) -> Architecture:
    return encoder_architecture(
        name=name,
        family=family,
        normalize_waveform=True,
        extractor_mode="layer_norm",
        conv_bias=conv_bias,
        embed=embed,
        layers=layers,
        heads=16,
        feed_forward=4 * embed,
        layer_norm_first=True,
    )


_ALL = (
    _base("wav2vec2-base", "wav2vec2"),
    # The one large model that keeps base's group norm and its layer norm after each block.
    encoder_architecture(
        name="wav2vec2-large",
        family="wav2vec2",
        normalize_waveform=False,
        extractor_mode="group_norm",
        conv_bias=False,
        embed=1024,
        layers=24,
        heads=16,
        feed_forward=4096,
        layer_norm_first=False,
    ),
    _large("wav2vec2-large-lv60k", "wav2vec2", conv_bias=True),
    _large("xlsr-53", "wav2vec2", conv_bias=True),
    _large("xls-r-300m", "wav2vec2", conv_bias=True),
    _large("xls-r-1b", "wav2vec2", conv_bias=True, embed=1280, layers=48),
    _large("xls-r-2b", "wav2vec2", conv_bias=True, embed=1920, layers=48),
    _base("hubert-base", "hubert"),
    _large("hubert-large", "hubert", conv_bias=False),
    _large("hubert-xlarge", "hubert", conv_bias=False, embed=1280, layers=48),
    _base("wavlm-base", "wavlm"),
    _base("wavlm-base-plus", "wavlm"),
    _large("wavlm-large", "wavlm", conv_bias=False),
    encoder_architecture(
        name="mini",
        family="hubert",
        normalize_waveform=True,
        conv_layers=_MINI_FRONT_END,
        extractor_mode="layer_norm",
        conv_bias=False,
        embed=256,
        layers=6,
        heads=4,
        feed_forward=1024,
        layer_norm_first=True,
        pos_conv_kernel=64,
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

    Raises:
        CheckpointError: the architecture's arguments fit no builder.
    """
    from torch import nn

    from parp_cli.models.speech import encoder, wavlm

    sizes = dict(architecture.builder)
    expected = set(_SIZES if architecture.family == "wavlm" else _SIZES[:-2]) | {*_REGULARISERS, *_OTHERS}
    wrong = sorted(expected.symmetric_difference(sizes))
    if wrong:
        details = [f"{key}: {'missing' if key in expected else 'unknown'}" for key in wrong]
        raise CheckpointError(f"architecture {architecture.name} does not fit its builder", details=details)
    features, heads = sizes["encoder_embed_dim"], sizes["encoder_num_heads"]
    norm_first = sizes["encoder_layer_norm_first"]
    extractor = encoder.FeatureExtractor(
        architecture.conv_layers,
        bias=sizes["extractor_conv_bias"],
        group_norm=sizes["extractor_mode"] == "group_norm",
    )
    projection = encoder.FeatureProjection(architecture.conv_layers[-1][0], features, dropout)
    positions = encoder.PositionalConvolution(
        features, sizes["encoder_pos_conv_kernel"], sizes["encoder_pos_conv_groups"]
    )
    layers = []
    for index in range(sizes["encoder_num_layers"]):
        attention: nn.Module
        if architecture.family == "wavlm":
            attention = wavlm.RelativeAttention(
                features,
                heads,
                attention_dropout,
                buckets=sizes["encoder_num_buckets"],
                max_distance=sizes["encoder_max_distance"],
                makes_position_bias=index == 0,
            )
        else:
            attention = encoder.SelfAttention(features, heads, features // heads, attention_dropout)
        block = encoder.FeedForward(features, sizes["encoder_ff_interm_features"], activation_dropout, dropout)
        layers.append(encoder.Layer(attention, block, dropout, norm_first=norm_first))
    transformer = encoder.Transformer(
        positions, layers, features=features, dropout=dropout, layer_drop=layer_drop, norm_first=norm_first
    )
    aux = None if vocabulary_size is None else nn.Linear(features, vocabulary_size)
    return encoder.SpeechNetwork(extractor, encoder.Encoder(projection, transformer), aux)


def frames(architecture: Architecture, samples: int) -> int:
    """T, the frames the front end makes of S = `samples` samples (0 if too short for one).

    A frame is 20 ms (320 samples at 16 kHz) with every registered front end.
    """
    for _, kernel, stride in architecture.conv_layers:
        samples = max(0, (samples - kernel) // stride + 1)
    return samples
