"""Write a checkpoint in the formats of other tools, or without what its mask has emptied."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from parp_cli.config.load import recipe_from_dict
from parp_cli.data.probe import some_speech
from parp_cli.errors import CheckpointError, UsageError
from parp_cli.exporters.check import compared, network
from parp_cli.exporters.onnx import OnnxNetwork, export_onnx
from parp_cli.exporters.target import ExportResult, Job, Trial
from parp_cli.exporters.targets import TARGETS, target_of
from parp_cli.exporters.text_check import compared_texts, text_network
from parp_cli.exporters.text_onnx import TextOnnxNetwork, export_text_onnx
from parp_cli.models.recognizer import encoder_of
from parp_cli.models.sources.names import Encoder
from parp_cli.pruning.masks import check_fit, under
from parp_cli.runtime.progress import Notify, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Metadata
from parp_cli.storage.packed import Values
from parp_cli.tasks.texts.probe import some_texts


def export(
    source: Path,
    *,
    to: str,
    out: Path,
    int8: bool = False,
    values: Values | None = None,
    device: torch.device | None = None,
    notify: Notify = silent,
) -> ExportResult:
    """Export a checkpoint; every weight that its mask prunes is zero in what is written, or not there.

    Args:
        to: "hf", a directory that transformers loads; "torchaudio", a state dict for its builders (both with a model
            card, which lists what `parp eval` measured in the checkpoint's folder); "small", a checkpoint without the
            heads, units and channels that the mask has emptied; "onnx", a file for onnxruntime; "sherpa", a folder for
            sherpa-onnx; "gguf", a file for crispasr; "packed", a checkpoint with only the weights that are kept;
            "sparse", such a one that also names the fastest way to compute with each of its matrices, which is
            measured; "mask", the mask alone. Small, onnx, sherpa, gguf, packed and sparse ones are compared with the
            checkpoint before they are written.
        out: the directory or file to write.
        int8: matrix products with 8-bit integers; for "onnx", "sherpa" and "gguf", and for "sparse", where they are
            the fastest.
        values: number type of the kept weights, by default float32; for "packed" alone.
        device: what a "sparse" one is for; by default the GPU if there is one and the mask has 2:4 matrices, else the
            CPU.

    Raises:
        CheckpointError: the source cannot be read, the target has no such networks, or the comparison failed.
        MaskError: the mask does not fit, or has emptied nothing, or has nothing for sparse tensor cores.
        UsageError: there is no such target, an option does not go with it, or the extra that it needs is not installed.
        ResourceError: no space is left on the disk.
    """
    target = target_of(to)
    for option, given in (("int8", int8), ("values", values is not None)):
        if given and not getattr(target, option):
            raise UsageError(f"--{option} goes with --to {_those(option)}, not with --to {to}")
    target.require()
    content = checkpoint.read(source)
    encoder = encoder_of(content, source=str(source))
    check_fit(content.masks, encoder.weights, what=str(source))
    if encoder.architecture.kind == "text" and not target.of_texts:
        raise CheckpointError(
            f"{encoder.architecture.name} has no form for {to}",
            hint=f"text encoders are written with --to {_those('of_texts')}",
        )
    weights = under(content.masks, encoder.weights)
    content, encoder = replace(content, weights=weights), encoder._replace(weights=weights)
    return target.write(
        Job(
            target=to,
            source=source,
            content=content,
            encoder=encoder,
            out=out,
            int8=int8,
            values=values,
            device=device,
            trial=partial(_trial, source, encoder, content.metadata, notify),
            speech=lambda: some_speech(_data(content.metadata), notify),
            notify=notify,
        )
    )


def _those(attribute: str) -> str:
    """The targets that take an option, or that are `of_texts`, in words."""
    *most, last = (name for name, target in TARGETS.items() if getattr(target, attribute))
    return f"{', '.join(most)} or {last}" if most else last


def _trial(source: Path, encoder: Encoder, metadata: Metadata, notify: Notify) -> Trial:
    """On data of the corpus that a checkpoint was fine-tuned on, if it can be read."""
    data, task = _data(metadata), encoder.task
    if encoder.architecture.kind == "text":
        length = (metadata.task or {}).get("max_length")
        texts = some_texts(data, encoder.architecture, encoder.weights, max_length=length, source=str(source))
        return Trial(
            network=partial(text_network, task=task),
            compared=partial(compared_texts, alone=texts.alone, together=texts.together),
            write_onnx=partial(export_text_onnx, task=task),
            onnx=TextOnnxNetwork,
        )
    recognises = metadata.vocabulary is not None
    return Trial(
        network=network,
        compared=partial(compared, speech=some_speech(data, notify), recognises=recognises),
        write_onnx=partial(export_onnx, vocabulary=metadata.vocabulary),
        onnx=OnnxNetwork,
    )


def _data(metadata: Metadata) -> Any:
    """Of the recipe that a checkpoint was made by; None where there is none."""
    recipe = metadata.recipe
    return recipe_from_dict(recipe).data if recipe is not None and "data" in recipe else None
