"""A checkpoint with only the weights that its mask keeps, which every stage takes."""

from dataclasses import replace
from typing import Any

import torch

from parp_cli.exporters.check import refuse_different
from parp_cli.exporters.target import ExportResult, Job, Target, size_of
from parp_cli.models.recognizer import encoder_of
from parp_cli.models.speech.kernels import INT8, SEMI_STRUCTURED
from parp_cli.pruning.masks import count_zeros
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Checkpoint


def write_packed(job: Job, content: Checkpoint, device: torch.device) -> ExportResult:
    """Write `content`, of the checkpoint's weights, once what is read of it computes the same, on the device if its
    kernels round."""
    architecture, weights, values = job.encoder.architecture, job.encoder.weights, job.values or "float32"
    exact = values == "float32" and not {INT8, SEMI_STRUCTURED} & set(content.kernels.values())
    device = torch.device("cpu") if exact else device
    with job.made() as made:
        checkpoint.write_packed(made, content, values)
        written = checkpoint.read(made)
        read = encoder_of(written, source=str(job.out)).weights
        trial = job.trial()
        where: dict[str, Any] = {"device": device} if written.kernels else {}
        computed = {**where, "kernels": written.kernels} if written.kernels else {}
        ours, theirs = (
            trial.network(architecture, weights, **where),
            trial.network(architecture, read, **computed),
        )
        check = trial.compared(ours, theirs, exact=exact)
        refuse_different(check.largest_difference, str(job.source), exact=exact)
    return job.result(
        zeros=count_zeros(read, content.masks),
        before=size_of(architecture, weights, job.source),
        after=size_of(architecture, weights, job.out),
        check=check,
    )


def _write(job: Job) -> ExportResult:
    job.require_mask()
    return write_packed(job, replace(job.content, metadata=job.descended, kernels={}), torch.device("cpu"))


PACKED = Target(name="packed", title="without pruned weights", write=_write, of_texts=True, values=True)
