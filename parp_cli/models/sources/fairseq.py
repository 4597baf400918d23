"""Checkpoints of fairseq (wav2vec 2.0, XLSR, XLS-R, HuBERT) and of WavLM's release, which took its form after it.

Such a file is a dictionary with the weights under "model" and the training configuration under "cfg", or "args"
before 2021. The sizes that weights alone don't show (heads, strides, where layer norms are) are in the configuration.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parp_cli.data.labels import Vocabulary
from parp_cli.errors import CheckpointError
from parp_cli.models.sources.names import (
    MASK_EMBEDDING,
    Encoder,
    fit,
    fit_masks,
    head_note,
    refuse_unsupported,
    without,
)
from parp_cli.models.sources.torch_files import Inert, tensors, unwrapped
from parp_cli.models.sources.torch_prune import split
from parp_cli.models.speech.config import Architecture, Family, with_known_name
from parp_cli.storage.conventions import BLANK

if TYPE_CHECKING:
    from torch import Tensor

# Parts of pre-training.
_DROPPED = (
    *("quantizer.", "input_quantizer.", "project_q.", "project_inp."),
    *("target_glu.", "final_proj.", "label_embs_concat"),
)
_HEAD = "proj."

_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")  # before those of a dictionary; the first is CTC's blank

_ROLES = {"<pad>": "extra", "</s>": "eos", "<unk>": "unk"}

_ATTENTION = r"encoder\.layers\.(\d+)\.self_attn"
_OURS = r"encoder.transformer.layers.\1"
NAMES = (
    (r"proj\.", "aux."),
    (r"mask_emb$", MASK_EMBEDDING),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"post_extract_proj\.", "encoder.feature_projection.projection."),
    (r"layer_norm\.", "encoder.feature_projection.layer_norm."),
    (r"encoder\.pos_conv\.0\.", "encoder.transformer.pos_conv_embed.conv."),
    (r"encoder\.layer_norm\.", "encoder.transformer.layer_norm."),
    (_ATTENTION + r"_layer_norm\.", _OURS + ".layer_norm."),
    (_ATTENTION + r"\.grep_linear\.", _OURS + ".attention.gru_rel_pos_linear."),
    (_ATTENTION + r"\.grep_a$", _OURS + ".attention.gru_rel_pos_const"),
    (_ATTENTION + r"\.relative_attention_bias\.", _OURS + ".attention.rel_attn_embed."),
    (_ATTENTION + r"\.", _OURS + ".attention."),
    (r"encoder\.layers\.(\d+)\.fc1\.", _OURS + ".feed_forward.intermediate_dense."),
    (r"encoder\.layers\.(\d+)\.fc2\.", _OURS + ".feed_forward.output_dense."),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.", _OURS + ".final_layer_norm."),
)

# Options that would make another network, and the one value (also the default) that ours has built in.
_SUPPORTED: dict[str, Any] = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "pos_conv_depth": 1,
    "conv_pos_batch_norm": False,
}
_DEFAULT_CONV_LAYERS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"
_MOST_CONV_LAYERS = 100


def is_checkpoint(content: Any) -> bool:
    """Whether what a file holds has the form of a fairseq checkpoint."""
    return isinstance(content, Mapping) and tensors(content.get("model")) is not None


def read(content: Mapping[str, Any], path: Path, *, architecture: Architecture | None = None) -> Encoder:
    """The encoder of a checkpoint, with its CTC head where the labels are in it, or in a dict.ltr.txt beside it.

    Args:
        content: what the file holds (`torch_files.load`).
        path: the file.
        architecture: takes the configuration's place.

    Raises CheckpointError: weights are missing or left over, or the configuration is, or has unknown options.
    """
    weights, masks = split(stripped(unwrapped(tensors(content["model"]) or {})), source=str(path))
    config = _plain(content.get("cfg") or content.get("args"))
    if architecture is None:
        architecture = _architecture(config, weights, source=str(path))
    vocabulary: Vocabulary | None = None
    notes: tuple[str, ...] = ()
    if (head := weights.get(f"{_HEAD}weight")) is not None:
        vocabulary = _vocabulary(content, config, path, size=len(head))
        if vocabulary is None:
            remedy = "put the dict.ltr.txt that it was trained with beside it"
            weights, notes = without(weights, (_HEAD,)), (head_note(str(path), len(head), remedy),)
    size, task = (None, None) if vocabulary is None else (len(vocabulary), vocabulary.to_json())
    weights = fit(weights, architecture, source=str(path), vocabulary_size=size, rules=NAMES)
    masks = fit_masks(masks, weights, source=str(path), rules=NAMES)
    return Encoder(architecture, weights, task, masks=masks, notes=notes)


def stripped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the prefixes of fine-tuned models and without parts of pre-training."""
    bare = {name.removeprefix("w2v_encoder.").removeprefix("w2v_model."): tensor for name, tensor in weights.items()}
    return without(bare, _DROPPED)


def _vocabulary(content: Mapping[str, Any], config: Any, path: Path, *, size: int) -> Vocabulary | None:
    """The labels of a head with `size` rows, from the dictionary in the checkpoint or beside it; None without one."""
    _, task = _sections(config, pretraining=False)
    labels = str(task.get("labels") or "ltr")
    state = _plain(content.get("task_state"))
    dictionary = state.get("target_dictionary") if isinstance(state, dict) else None
    symbols = dictionary.get("symbols") if isinstance(dictionary, dict) else None
    beside = path.parent / f"dict.{labels}.txt"
    if symbols is None and beside.is_file():
        lines = beside.read_text(encoding="utf-8").splitlines()
        symbols = [*_SYMBOLS, *(line.rpartition(" ")[0] or line for line in lines if line.strip())]
    if not isinstance(symbols, list) or len(symbols) != size or tuple(symbols[:4]) != _SYMBOLS:
        return None
    return Vocabulary(
        (BLANK, *map(str, symbols[1:])),
        "phones" if labels == "phn" else "letters",
        special=_ROLES | {symbol: "extra" for symbol in symbols if str(symbol).startswith("madeupword")},
        padding=_SYMBOLS[0],
    )


def _architecture(config: Any, weights: Iterable[str], *, source: str) -> Architecture:
    model, task = _sections(config)
    if not model:
        raise CheckpointError(
            f"{source} does not say what its network looks like", hint="name it: `parp mask --architecture NAME`"
        )
    refuse_unsupported(model, _SUPPORTED, source=source)
    try:
        family = _family(model, weights)
        relative: dict[str, Any] = {}
        if family == "wavlm":
            relative["buckets"] = int(model.get("num_buckets", 320))
            relative["max_distance"] = int(model.get("max_distance", 800))
        architecture = Architecture(
            family=family,
            normalize_waveform=bool(task.get("normalize", False)),
            conv_layers=_conv_layers(str(model.get("conv_feature_layers", _DEFAULT_CONV_LAYERS))),
            conv_norm="layer" if model.get("extractor_mode") == "layer_norm" else "group",
            conv_bias=bool(model.get("conv_bias", False)),
            width=int(model.get("encoder_embed_dim", 768)),
            layers=int(model.get("encoder_layers", 12)),
            heads=int(model.get("encoder_attention_heads", 12)),
            feed_forward=int(model.get("encoder_ffn_embed_dim", 3072)),
            norm_first=bool(model.get("layer_norm_first", False)),
            positional_kernel=int(model.get("conv_pos", 128)),
            positional_groups=int(model.get("conv_pos_groups", 16)),
            **relative,
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the configuration in {source} cannot be read", details=[str(error)]) from error
    return with_known_name(architecture)


def _sections(config: Any, *, pretraining: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's and the task's settings. "args" and WavLM's "cfg" have them all in one; a fine-tuned model carries
    those of its `pretraining` too, where what its network looks like is."""
    if not isinstance(config, dict):
        return {}, {}
    model = config["model"] if isinstance(config.get("model"), dict) else config
    task = config["task"] if isinstance(config.get("task"), dict) else config
    if pretraining and isinstance(model.get("w2v_args"), dict):
        return _sections(model["w2v_args"])
    return model, task


def _family(model: Mapping[str, Any], weights: Iterable[str]) -> Family:
    if any("grep_linear" in name for name in weights):
        return "wavlm"
    # The model's registered name is in _name since 2021, in arch before.
    kind = str(model.get("_name") or model.get("arch") or "")
    return "hubert" if kind.startswith("hubert") or "label_embs_concat" in set(weights) else "wav2vec2"


def _plain(value: Any) -> Any:
    """A configuration as plain dictionaries: argparse's namespaces and omegaconf's nodes come as `Inert`."""
    if isinstance(value, Inert):
        if not isinstance(value.state, Mapping):
            return _plain(value.arguments[0]) if value.arguments else None
        for content in ("_content", "_val"):  # omegaconf's containers and leaves
            if content in value.state:
                return _plain(value.state[content])
        return _plain(value.state)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _conv_layers(expression: str) -> tuple[Any, ...]:
    """Layers from a Python expression of tuples, lists, + and *, which fairseq evaluates and this reads.

    Raises ValueError: anything else is in it.
    """
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, RecursionError) as error:
        raise ValueError(f"conv_feature_layers: {expression!r}") from error
    if not isinstance(value, list) or not all(isinstance(layer, tuple) for layer in value):
        raise ValueError(f"conv_feature_layers: {expression!r}")
    return tuple(value)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Tuple(elts=elements):
            return tuple(_value(element) for element in elements)
        case ast.List(elts=elements):
            return [_value(element) for element in elements]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [*_value(left), *_value(right)]
        case ast.BinOp(left=ast.List() as layers, op=ast.Mult(), right=ast.Constant(value=int(times))):
            return _value(layers) * min(times, _MOST_CONV_LAYERS)
    raise ValueError(f"conv_feature_layers: {ast.unparse(node)!r}")
