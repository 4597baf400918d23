"""A folder of transformers with a text encoder and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parp_cli.models.network import outputs_of
from parp_cli.models.small import uneven_layers
from parp_cli.models.sources import huggingface
from parp_cli.models.transformers.architecture import TOKENIZER, TextArchitecture
from parp_cli.models.transformers.tokenizer import files_of
from parp_cli.storage.atomic import write_text
from parp_cli.storage.tensors import write_tensors

if TYPE_CHECKING:
    from torch import Tensor


def export_text(
    architecture: TextArchitecture, weights: Mapping[str, Tensor], task: Mapping[str, Any] | None, directory: Path
) -> None:
    """Write a model for `AutoModelForSequenceClassification` with the names of its classes, or for `AutoModel`.

    Its logits are ours. Files of the same names are replaced, config.json last, so that what is half written does not
    load. Raises CheckpointError where heads or units were removed, ResourceError where no space is left, UsageError
    where the folder cannot be written to.
    """
    if architecture.is_uneven:
        raise uneven_layers(architecture.name, {"heads": architecture.heads, "feed_forward": architecture.feed_forward})
    outputs = outputs_of(task)
    network = architecture.build(outputs=outputs)
    own = network if task is not None else network.get_submodule(architecture.body)
    prefix = "" if task is not None else f"{architecture.body}."
    state = {name: weights[prefix + name] for name in own.state_dict() if name != TOKENIZER}
    write_tensors(directory / huggingface.WEIGHTS, state, {"format": "pt"})
    for name, content in files_of(weights[TOKENIZER]).items():
        write_text(directory / name, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    config = {**architecture.config, "architectures": [network.class_name], "dtype": "float32"}
    if task is not None and task["names"]:
        config["id2label"] = {str(index): name for index, name in enumerate(task["names"])}
        config["label2id"] = {name: index for index, name in enumerate(task["names"])}
    elif task is not None:
        config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
    write_text(directory / huggingface.CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
