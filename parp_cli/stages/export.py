"""Write a checkpoint in the formats of other tools, or without what its mask has emptied."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from parp_cli.config.finetune import Data
from parp_cli.config.load import recipe_from_dict
from parp_cli.data.audio import SAMPLE_RATE
from parp_cli.data.labels import vocabulary_of
from parp_cli.data.probe import some_speech
from parp_cli.errors import CheckpointError
from parp_cli.exporters.huggingface import export_huggingface
from parp_cli.exporters.small import export_small, shrink
from parp_cli.exporters.torchaudio import export_torchaudio
from parp_cli.models.recognizer import encoder_of
from parp_cli.models.sources.names import MASK_EMBEDDING, without
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.forward import encode, front_end, pad
from parp_cli.pruning.masks import apply_, check_fit
from parp_cli.runtime.device import versions
from parp_cli.runtime.progress import Notify, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Metadata

Target = Literal["hf", "torchaudio", "small"]

TOLERANCE = 1e-4
"""Largest difference of a logit by which an export in float32 may differ from the checkpoint, by rounding."""

Run = Callable[[Tensor], Tensor]
"""A network: logits (T, V) of a waveform (S,), or hidden states (T, D) of one without a head."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a model: bytes of its file or files, parameters, attention heads, feed-forward units, and blocks with any."""

    bytes: int
    parameters: int
    heads: int
    units: int
    blocks: int


@dataclass(frozen=True, kw_only=True)
class Check:
    """What an export made of speech, beside what the masked checkpoint makes of it.

    Attributes:
        seconds: lengths of what the logits were compared on and both were timed on.
        largest_difference: of a logit.
        real_time_factors: seconds of work per second of speech: of the masked checkpoint, and of the export.
    """

    seconds: tuple[float, ...]
    largest_difference: float
    real_time_factors: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What `parp export` wrote.

    Attributes:
        size: bytes of the folder (hf) or file in all.
        zeros: pruned weights that are zero in it.
        before, after, check: of a small checkpoint; None for the formats of other tools.
    """

    path: Path
    target: Target
    source: Path
    size: int
    zeros: int
    before: Size | None = None
    after: Size | None = None
    check: Check | None = None


def export(source: Path, *, to: Target, out: Path, notify: Notify = silent) -> ExportResult:
    """Export a checkpoint; every weight that its mask prunes is zero in what is written, or not there.

    Args:
        to: "hf", a directory that transformers loads; "torchaudio", a state dict for its builders; "small", a
            checkpoint without the heads and units that the mask has emptied, which is compared with the masked one
            before it is written.
        out: the directory or file to write.

    Raises:
        CheckpointError: the source cannot be read, the target has no such networks, or the comparison failed.
        MaskError: the mask does not fit, or has emptied nothing.
        ResourceError: no space is left on the disk.
    """
    content = checkpoint.read(source)
    architecture, weights, task, *_ = encoder_of(content, source=str(source))
    check_fit(content.masks, weights, what=str(source))
    weights |= {name: weights[name].clone() for name in content.masks}
    apply_(content.masks, weights)
    zeros = sum(int((weights[name] == 0).sum()) for name in content.masks)
    if to == "hf":
        vocabulary = None if content.metadata.vocabulary is None else vocabulary_of(source, task)
        export_huggingface(architecture, weights, vocabulary, out)
    elif to == "torchaudio":
        export_torchaudio(architecture, weights, out)
    else:
        small = shrink(architecture, weights, content.masks, source=str(source))
        masked, made = network(architecture, weights), network(small.architecture, small.weights)
        check = compared(masked, made, some_speech(_data(content.metadata), notify))
        _refuse_different(check, source)
        metadata = replace(content.metadata, parents=checkpoint.lineage(source, content.metadata), versions=versions())
        export_small(small, metadata, out)
        before, after = (
            Size(
                bytes=path.stat().st_size,
                parameters=sum(weight.numel() for weight in tensors.values()),
                heads=small.heads[index],
                units=small.units[index],
                blocks=small.blocks[index],
            )
            for index, (path, tensors) in enumerate(((source, weights), (out, small.weights)))
        )
        return ExportResult(
            path=out, target=to, source=source, size=after.bytes, zeros=0, before=before, after=after, check=check
        )
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return ExportResult(
        path=out, target=to, source=source, size=sum(path.stat().st_size for path in files), zeros=zeros
    )


def network(architecture: Architecture, weights: Mapping[str, Tensor]) -> Run:
    """The network of these weights, for one waveform at a time."""
    model = build(architecture, vocabulary_size=len(weights["aux.weight"]) if "aux.weight" in weights else None)
    model.load_state_dict(without(weights, [MASK_EMBEDDING]))
    model.eval()

    def run(waveform: Tensor) -> Tensor:
        with torch.inference_mode():
            return encode(model, *pad([front_end(model, architecture, waveform)]))[0]

    return run


def compared(ours: Run, theirs: Run, speech: Sequence[Tensor]) -> Check:
    """The two networks on the shortest, the middle and the longest of some waveforms."""
    chosen = [speech[0], speech[len(speech) // 2], speech[-1]]
    seconds = tuple(len(waveform) / SAMPLE_RATE for waveform in chosen)
    spent, outputs = [], []
    for run in (ours, theirs):
        run(chosen[0])  # what is made once is not timed
        began = time.perf_counter()
        outputs.append([run(waveform) for waveform in chosen])
        spent.append((time.perf_counter() - began) / sum(seconds))
    differences = [float((a - b).abs().max()) for a, b in zip(*outputs, strict=True)]
    return Check(seconds=seconds, largest_difference=max(differences), real_time_factors=(spent[0], spent[1]))


def _refuse_different(check: Check, source: Path) -> None:
    if not check.largest_difference <= TOLERANCE:  # nor NaN
        raise CheckpointError(
            f"what was made of {source} gives other logits, and is not written",
            details=[
                f"largest difference {check.largest_difference:.2g}, by rounding up to {TOLERANCE:g} are expected"
            ],
            hint="please report this",
        )


def _data(metadata: Metadata) -> Data | None:
    """The corpus that a checkpoint was fine-tuned on."""
    recipe = metadata.recipe
    return recipe_from_dict(recipe).data if recipe is not None and "data" in recipe else None
