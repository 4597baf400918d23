"""Text encoders from folders of transformers, with their tokenizer, and a head for classification if there is one."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from parp_cli.errors import CheckpointError
from parp_cli.models.sources.huggingface import CONFIG
from parp_cli.models.sources.names import Encoder
from parp_cli.models.transformers.architecture import TOKENIZER, TextArchitecture
from parp_cli.models.transformers.library import library
from parp_cli.models.transformers.tokenizer import pack, read_tokenizer
from parp_cli.runtime.progress import Notify, Progress, silent

_VOLATILE = (
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "finetuning_task",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
    "_name_or_path",
    "gradient_checkpointing",
    "attn_implementation",
    "_attn_implementation",
)
"""Keys of a config that do not describe a network."""

_HEAD = "ForSequenceClassification"
_PRE_TRAINED = ("Model", "ForMaskedLM", "ForPreTraining", "LMHeadModel")
"""Ends of the classes whose heads are those of pre-training, which no one misses."""


def is_text_model(folder: Path) -> bool:
    """Whether transformers can classify texts with the model of a folder, by the type that its config has."""
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


def read_folder(folder: Path, notify: Notify = silent) -> Encoder:
    """Read a text encoder; a head is kept where it is one for the classification of sequences, with its label names.

    Raises CheckpointError: files are missing or broken, the model has no list of Transformer layers, or its tokenizer
    does not fit.
    """
    transformers = library()
    tokenizer = read_tokenizer(folder)
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        has_head = any(name.endswith(_HEAD) for name in config.architectures or ())
        reader = transformers.AutoModelForSequenceClassification if has_head else transformers.AutoModel
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of what is not in the file
            found, report = reader.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    except Exception as error:  # of several libraries
        raise CheckpointError(
            f"transformers cannot read the model in {folder}", details=str(error).strip().splitlines()[:3]
        ) from error
    missing = sorted(report["missing_keys"])
    new = [name for name in missing if "pooler." in name]  # which pre-training on masked tokens has no use for
    if len(missing) > len(new):
        raise CheckpointError(f"{folder} lacks weights of its model", details=[f"{name}: missing" for name in missing])
    if (kind := _other_head(config, report["unexpected_keys"])) is not None:
        what = f"the head of {folder} ({kind}) is left out, as parp has heads for whole texts alone"
        notify(Progress("reading the model", 0, 1, warning=f"{what}: fine-tuning begins with a new one"))
    if new:
        warning = f"{folder} has no weights for {', '.join(new)}: they begin at random"
        notify(Progress("reading the model", 0, 1, warning=warning))
    if len(tokenizer) > config.get_text_config().vocab_size:
        raise CheckpointError(
            f"the tokenizer of {folder} does not fit its model",
            details=[f"{len(tokenizer):,} tokens, {config.vocab_size:,} embeddings"],
            hint="copy the tokenizer there that the model was trained with, or give the model more embeddings",
        )
    architecture = architecture_of(config, source=str(folder))
    prefix = "" if has_head else f"{architecture.body}."
    weights = {prefix + name: weight for name, weight in found.state_dict().items()}
    task = _task_of(config) if has_head else None
    with torch.device("meta"):
        expected = architecture.build(outputs=None if task is None else task["outputs"]).state_dict()
    # Some families classify without the pooler that the body alone has.
    weights = {name: w for name, w in weights.items() if name in expected or ".pooler." not in name}
    fitting = architecture.fit(weights, source=str(folder), outputs=None if task is None else task["outputs"])
    return Encoder(architecture, {**fitting, TOKENIZER: pack(tokenizer)}, task)


def architecture_of(config: Any, *, source: str) -> TextArchitecture:
    """The architecture that a `PretrainedConfig` describes.

    Raises CheckpointError where its Transformer layers are not one list of modules.
    """
    transformers = library()
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) == config.num_hidden_layers
        and name.startswith(f"{model.base_model_prefix}.")
        and any(isinstance(part, torch.nn.Linear) for part in module.modules())
    ]
    if len(stacks) != 1:
        raise CheckpointError(
            f"{source} is a {config.model_type}, whose Transformer layers are not one list of modules",
            hint="models such as BERT, RoBERTa, DistilBERT, ELECTRA, DeBERTa and XLNet are known to work",
        )
    plain = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}
    return TextArchitecture(
        config=json.loads(json.dumps(plain)),
        stack=stacks[0],
        layers=config.num_hidden_layers,
        width=config.hidden_size,
    )


def _other_head(config: Any, left_over: Collection[str]) -> str | None:
    """The class of a model whose head was trained for a task that parp does not have, and has weights that are left
    over; None for others."""
    kinds = [name for name in config.architectures or () if not name.endswith((*_PRE_TRAINED, _HEAD))]
    return kinds[0] if kinds and left_over else None


def _task_of(config: Any) -> dict[str, Any]:
    """What a head of transformers is for, as a checkpoint of parp says it."""
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    numbers = config.num_labels == 1
    return {
        "kind": "classification",
        "target": "number" if numbers else "class",
        "outputs": config.num_labels,
        "names": [] if numbers else names,
    }
