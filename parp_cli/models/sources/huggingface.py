"""Models of Hugging Face transformers: folders, hub names, and both directions of config and names."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from parp_cli.errors import CheckpointError
from parp_cli.models.sources import torch_files, torch_prune
from parp_cli.models.sources.names import (
    MASK_EMBEDDING,
    Encoder,
    check_equal_layers,
    fit,
    fit_masks,
    head_note,
    refuse_unsupported,
    renamed,
    unpack_attention,
    without,
)
from parp_cli.models.sources.tokenizer import SETTINGS, VOCABULARY, read_json, read_vocabulary
from parp_cli.models.speech.config import OF_FAMILY, Architecture, Family, with_known_name
from parp_cli.storage.conventions import SAMPLE_RATE

if TYPE_CHECKING:
    from torch import Tensor

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""OWNER/NAME of a repository on the hub."""

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"

# In order of preference; an index lists the parts of a model that is cut up.
_WEIGHT_FILES = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

# What transformers calls our sizes.
_TO_CONFIG = {
    "conv_bias": "conv_bias",
    "width": "hidden_size",
    "positional_kernel": "num_conv_pos_embeddings",
    "positional_groups": "num_conv_pos_embedding_groups",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "norm_first": "do_stable_layer_norm",
    "buckets": "num_buckets",
    "max_distance": "max_bucket_distance",
}
_TO_CONFIG_OF = {
    "data2vec-audio": {"positional_kernel": "conv_pos_kernel_size", "positional_layers": "num_conv_pos_embeddings"}
}
"""Where a family has other names."""

_NO_DROPOUT = dict.fromkeys(
    ("feat_proj_dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "layerdrop"), 0.0
)

# Sizes that a config may leave out.
_CONFIG_DEFAULTS: dict[str, Any] = {
    "feat_extract_norm": "group",
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "hidden_size": 768,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "do_stable_layer_norm": False,
    "num_buckets": 320,
    "max_bucket_distance": 800,
}
_CONFIG_DEFAULTS_OF: dict[str, dict[str, Any]] = {
    # It has no choice of norms: layer norm in the feature encoder, and behind each half of a Transformer layer.
    "data2vec-audio": {"feat_extract_norm": "layer", "conv_pos_kernel_size": 19, "num_conv_pos_embeddings": 5}
}

# Options that would make another network, and the one value (also the default) that ours has built in.
_SUPPORTED: dict[str, Any] = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "add_adapter": False,
    "adapter_attn_dim": None,
}

# Parts of pre-training that no fine-tuned model needs.
_DROPPED = ("quantizer.", "project_q.", "project_hid.")
_HEAD = "lm_head."
_MASK_EMBEDDING = "masked_spec_embed"

NAMES = (
    (r"feature_projection\.", "encoder.feature_projection."),
    (r"encoder\.", "encoder.transformer."),
    (r"lm_head\.", "aux."),
    (_MASK_EMBEDDING, MASK_EMBEDDING),
)


def is_speech_model(directory: Path) -> bool:
    """Whether a folder's config is that of an encoder which `read_directory` reads."""
    try:
        return read_json(directory / CONFIG).get("model_type") in get_args(Family)
    except CheckpointError:
        return False


def read_directory(directory: Path) -> Encoder:
    """Read a model from a folder that transformers wrote, or one in its form.

    A CTC head is read with its vocabulary; one without `vocab.json` is left out with a note, since its outputs would
    have no names.

    Raises CheckpointError: files are missing, broken, or of a model that parp does not know.
    """
    config = read_json(directory / CONFIG)
    architecture = architecture_of(config, _preprocessor(directory), source=str(directory))
    weights = _read_weights(directory)
    weights, masks = torch_prune.split(stripped(torch_files.unwrapped(weights)), source=str(directory))
    size = task = None
    notes: tuple[str, ...] = ()
    if (head := weights.get(f"{_HEAD}weight")) is None or not (directory / VOCABULARY).exists():
        weights = without(weights, (_HEAD,))
        remedy = f"put the {VOCABULARY} and {SETTINGS} of its tokenizer there"
        notes = () if head is None else (head_note(str(directory), len(head), remedy),)
    else:
        vocabulary, order = read_vocabulary(directory, config, size=len(head))
        for some in (weights, masks):
            some |= {name: tensor[order] for name, tensor in some.items() if name.startswith(_HEAD)}
        size, task = len(vocabulary), vocabulary.to_json()
    weights = fit(weights, architecture, source=str(directory), vocabulary_size=size, rules=NAMES)
    masks = fit_masks(masks, weights, source=str(directory), rules=NAMES)
    return Encoder(architecture, weights, task, masks=masks, notes=notes)


def stripped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the prefix of their family and without parts of pre-training."""
    families = re.compile(rf"^({'|'.join(re.escape(_prefix_of(family)) for family in get_args(Family))})")
    return without({families.sub("", name): tensor for name, tensor in weights.items()}, _DROPPED)


def download(name: str) -> Path:
    """Fetch a model of the Hugging Face hub into its cache; the folder it is in.

    Raises CheckpointError: huggingface_hub is not installed, or the hub or the model cannot be reached.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise CheckpointError(
            f"{name} is a model of the Hugging Face hub, and huggingface_hub is not installed",
            hint="pip install huggingface_hub, or give the folder of a downloaded model",
        )
    import huggingface_hub

    try:
        folder = Path(
            huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"])
        )
        if not list(folder.glob("*.safetensors")):
            huggingface_hub.snapshot_download(name, allow_patterns=["pytorch_model*.bin"])
    except Exception as error:  # the client's own errors, its HTTP library's, the operating system's
        raise CheckpointError(
            f"{name} cannot be downloaded from the Hugging Face hub",
            details=[torch_files.one_line(error)],
            hint="check the name and the network, or give the folder of a downloaded model",
        ) from error
    return folder


def architecture_of(config: Mapping[str, Any], preprocessor: Mapping[str, Any], *, source: str) -> Architecture:
    """The architecture a config describes, named after the registered one of its sizes, or "custom".

    Args:
        config: `config.json`.
        preprocessor: the feature extractor's settings, empty if there are none.
        source: whose they are, for the message.

    Raises CheckpointError: another kind of model, or options that parp does not support.
    """
    family = config.get("model_type")
    if family not in get_args(Family):
        known = ", ".join(get_args(Family))
        raise CheckpointError(
            f"{source} holds a model of type {family!r}",
            hint=f"parp reads {known}, and with the extra nlp text encoders",
        )
    rate = preprocessor.get("sampling_rate", SAMPLE_RATE)
    others = [] if rate == SAMPLE_RATE else [f"sampling_rate: {rate} Hz, supported is {SAMPLE_RATE} Hz"]
    refuse_unsupported(config, _SUPPORTED, source=source, details=others)
    settings = _CONFIG_DEFAULTS | _CONFIG_DEFAULTS_OF.get(str(family), {}) | dict(config)
    try:
        sizes = {ours: settings[theirs] for ours, theirs in _keys_of(str(family)).items()}
        architecture = Architecture(
            family=cast("Family", family),
            # Released layer-norm front ends were all trained on normalised waveforms, the others on raw ones.
            normalize_waveform=bool(preprocessor.get("do_normalize", settings["feat_extract_norm"] == "layer")),
            conv_layers=tuple(zip(settings["conv_dim"], settings["conv_kernel"], settings["conv_stride"], strict=True)),
            conv_norm="layer" if settings["feat_extract_norm"] == "layer" else "group",
            **sizes,
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the sizes in {source}'s {CONFIG} cannot be read", details=[str(error)]) from error
    return with_known_name(architecture)


def config_of(architecture: Architecture) -> dict[str, Any]:
    """The inverse of `architecture_of`: what describes the network in `config.json`.

    Raises CheckpointError: sizes differ from layer to layer, which transformers' models cannot.
    """
    check_equal_layers(architecture)
    channels, kernels, strides = zip(*architecture.conv_layers, strict=True)
    sizes = {theirs: getattr(architecture, ours) for ours, theirs in _keys_of(architecture.family).items()}
    in_every_family = ("hidden_act", "feat_extract_activation", "layer_norm_eps")
    return {
        "model_type": architecture.family,
        "feat_extract_norm": architecture.conv_norm,
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "num_feat_extract_layers": len(channels),
        **{key: size for key, size in sizes.items() if size is not None},
        **_NO_DROPOUT,
        **{key: _SUPPORTED[key] for key in in_every_family},
    }


def _keys_of(family: str) -> dict[str, str]:
    """What transformers calls the sizes that a family has."""
    every = _TO_CONFIG | _TO_CONFIG_OF.get(family, {})
    return {ours: theirs for ours, theirs in every.items() if OF_FAMILY.get(ours, family) == family}


def _prefix_of(family: str) -> str:
    """What stands before the names of a bare model's weights in one with a head."""
    return f"{family.replace('-', '_')}."


def names_of(weights: Mapping[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Our weights under transformers' names: of its CTC model if there is a head, of its bare model if not.

    Its models have a mask embedding unless `mask_time_prob` and `mask_feature_prob` of the config are zero.
    """
    if architecture.family == "wavlm":
        weights = unpack_attention(weights)
    prefix = _prefix_of(architecture.family) if "aux.weight" in weights else ""
    rules = (
        (r"aux\.", _HEAD),
        (MASK_EMBEDDING, f"{prefix}{_MASK_EMBEDDING}"),
        (r"encoder\.feature_projection\.", f"{prefix}feature_projection."),
        (r"encoder\.transformer\.", f"{prefix}encoder."),
        (r"feature_extractor\.", f"{prefix}feature_extractor."),
    )
    return {renamed(name, rules): tensor for name, tensor in weights.items()}


def _preprocessor(directory: Path) -> dict[str, Any]:
    """The feature extractor's settings, from its own file or from the processor's, where newer versions put them."""
    for name in (PREPROCESSOR, "processor_config.json"):
        if (directory / name).exists():
            settings = read_json(directory / name)
            nested = settings.get("feature_extractor", settings)
            if isinstance(nested, dict):
                return nested
    return {}


def _read_weights(directory: Path) -> dict[str, Tensor]:
    """Every tensor of the model, under transformers' names."""
    found = next((directory / name for name in _WEIGHT_FILES if (directory / name).exists()), None)
    if found is None:
        raise CheckpointError(
            f"{directory} has no weights", details=[f"{name}: missing" for name in _WEIGHT_FILES], hint="copy it again"
        )
    parts = [found]
    if found.suffix == ".json":
        index = read_json(found).get("weight_map")
        if not isinstance(index, dict):
            raise CheckpointError(f"{found} lists no weights")
        parts = [directory / Path(str(part)).name for part in sorted(set(index.values()))]
    weights: dict[str, Tensor] = {}
    for part in parts:
        weights |= read_part(part)
    return weights


def read_part(path: Path) -> dict[str, Tensor]:
    """The tensors of one file of a model; raises a CheckpointError where it cannot be read."""
    if path.suffix != ".safetensors":
        weights = torch_files.state_dict(torch_files.load(path))
        if weights is None:
            raise CheckpointError(f"{path} holds no state dict")
        return weights
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors",
            details=[str(error)],
            hint="it may be missing or truncated; download or copy it again",
        ) from error
