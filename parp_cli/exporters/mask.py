"""The mask of a checkpoint alone, with the hash of the weights that it keeps."""

from dataclasses import replace

from parp_cli.exporters.target import ExportResult, Job, Target
from parp_cli.pruning.masks import backbone_hash
from parp_cli.storage import checkpoint


def _write(job: Job) -> ExportResult:
    job.require_mask()
    metadata = replace(job.descended, task=None)  # masks are of no task
    hashed = backbone_hash(job.content.masks, job.encoder.weights)
    checkpoint.write_masks(job.out, replace(job.content, metadata=metadata, kernels={}), hashed)
    return job.result()


MASK = Target(name="mask", title="without weights", write=_write, of_texts=True, benched=False)
