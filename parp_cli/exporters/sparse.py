"""A packed checkpoint that also names the fastest way to compute with each of its matrices, which is measured."""

from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from parp_cli.errors import MaskError, UsageError
from parp_cli.exporters.packed import write_packed
from parp_cli.exporters.target import ExportResult, Job, Target
from parp_cli.models.recognizer import rebuild
from parp_cli.models.speech.kernels import choose, is_semi_structured
from parp_cli.runtime.device import select_device
from parp_cli.runtime.progress import Progress


def _write(job: Job) -> ExportResult:
    if not job.int8:
        job.require_mask()
    content = replace(job.content, metadata=job.descended, kernels={})
    _, model = rebuild(content, _measured_on(job), source=str(job.source))
    where = next(model.parameters()).device
    content = replace(content, kernels=_fastest(job, model))
    del model
    counts = dict(Counter(content.kernels.values()))
    return replace(write_packed(job, content, where), kernels=counts, measured_on=where.type)


def _measured_on(job: Job) -> torch.device:
    """The device that it is for."""
    device = job.device
    if job.int8:
        if device is not None and device.type != "cpu":
            raise UsageError("8-bit integers are for CPUs alone", hint="leave out --int8, or use --device cpu")
        return torch.device("cpu")
    if device is not None and device.type == "cpu":
        return device
    weights = job.encoder.weights
    if any(is_semi_structured(weights[name]) for name, mask in job.content.masks.items() if mask.dim() == 2):
        return device or select_device("auto")
    if device is None:
        return torch.device("cpu")
    raise MaskError(
        f"{job.source} has no matrix that sparse tensor cores take",
        hint="they take 2:4 ones: prune with pruning.pattern=2:4; or measure what a CPU gains, with --device cpu",
    )


def _fastest(job: Job, model: Any) -> dict[str, str]:
    """The fastest kernel for each matrix of the checkpoint, by weight name, where the model is."""
    pruned = {name for name, mask in job.content.masks.items() if not bool(mask.all())}
    return choose(
        model, pruned, int8=job.int8, each=lambda done, total: job.notify(Progress("measuring matrices", done, total))
    )


SPARSE = Target(name="sparse", title="with the fastest kernels", write=_write, int8=True)
