"""A plain state dict that torchaudio's builders load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from parp_cli.errors import CheckpointError
from parp_cli.exporters.card import card_beside
from parp_cli.exporters.target import ExportResult, Job, Target
from parp_cli.models.sources.names import MASK_EMBEDDING, check_equal_layers, fit, without
from parp_cli.models.speech.config import Architecture
from parp_cli.storage.atomic import replacing, write_error

if TYPE_CHECKING:
    from torch import Tensor


def export_torchaudio(architecture: Architecture, weights: Mapping[str, Tensor], path: Path) -> None:
    """Write the weights to `path` for `torch.load(path, weights_only=True)`.

    The model they fit is `torchaudio.models.wavlm_model` (family "wavlm") or `wav2vec2_model` of the architecture's
    sizes, with `aux_num_out` rows of `aux.weight` where there is a head. It has no place for a mask embedding, which
    is left out.

    Raises:
        CheckpointError: the weights are not the architecture's, its sizes differ from layer to layer, or torchaudio has
            no such network.
        ResourceError: no space is left on the disk.
        UsageError: the folder cannot be written to.
    """
    check_equal_layers(architecture)
    if architecture.positional_layers is not None:
        raise CheckpointError(f"torchaudio has no {architecture.family}", hint="--to hf writes one for transformers")
    size = len(weights["aux.weight"]) if "aux.weight" in weights else None
    state = without(fit(weights, architecture, source="the checkpoint", vocabulary_size=size), [MASK_EMBEDDING])
    # An open file, not a name: torch's own writer hides a full disk behind a RuntimeError.
    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise write_error(path, error.__context__) from error
            raise


def _write(job: Job) -> ExportResult:
    export_torchaudio(job.encoder.architecture, job.encoder.weights, job.out)
    return job.result(card=card_beside(job))


TORCHAUDIO = Target(name="torchaudio", title="for torchaudio", write=_write, benched=False, with_zeros=True)
