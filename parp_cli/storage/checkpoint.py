"""The checkpoint-plus-mask file: weights and masks in one safetensors file, so that they cannot part.

    <name>          a weight under its own state-dict name, readable by any safetensors reader
    mask/<name>     the weight's mask, one bit a weight (`bits.pack`), 1 = kept
    metadata["parp"]  sorted JSON: everything that rebuilds and explains the file (`Metadata`)

The mask is explicit, never inferred from zeros: PARP lets pruned weights grow back. Nothing here knows what kind of
model the weights are of. The same content gives the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from parp_cli.errors import CheckpointError
from parp_cli.storage.bits import pack, unpack
from parp_cli.storage.tensors import write_tensors

FORMAT_VERSION = 1

_KEY = "parp"
_MASK = "mask/"


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A file that this one was made from."""

    stage: str
    sha256: str
    file: str


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """What the masks of a file amount to: `pruned` of `total` weights; `target` is what was asked for."""

    target: float
    pruned: int
    total: int

    @property
    def exact(self) -> float:
        return self.pruned / self.total if self.total else 0.0


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Everything in a file but its tensors.

    Attributes:
        stage: which stage wrote it ("mask", "finetune", …).
        architecture: what rebuilds the model; its meaning is the model package's.
        vocabulary: output symbols by label number, or None without an output head.
        labels: what the symbols are ("letters", "phones", …), or None.
        prunable: names of the weights that may be pruned.
        sparsity: of the masks, or None without masks.
        recipe: the resolved recipe of the run that wrote it, or None.
        seed: of that run.
        parents: the files it descends from, oldest first.
        metrics: figures of that run, such as the error rate it was chosen by.
        versions: of the software that wrote it.
    """

    stage: str
    architecture: Mapping[str, Any]
    vocabulary: tuple[str, ...] | None = None
    labels: str | None = None
    prunable: tuple[str, ...] = ()
    sparsity: Sparsity | None = None
    recipe: Mapping[str, Any] | None = None
    seed: int | None = None
    parents: tuple[Parent, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file's content.

    Attributes:
        weights: by state-dict name.
        masks: by the name of the weight they belong to; boolean, of its shape, True = kept.
        metadata: the rest.
    """

    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    metadata: Metadata


def write(path: Path, checkpoint: Checkpoint) -> str:
    """Write the file, whole or not at all, and return its SHA-256.

    Raises:
        ResourceError: no space is left on the disk.
        UsageError: the place cannot be written to.
    """
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in checkpoint.weights.items()}
    reserved = [name for name in tensors if name.startswith(_MASK)]
    assert not reserved, f"weights may not be called {reserved}"
    tensors |= {_MASK + name: pack(mask) for name, mask in checkpoint.masks.items()}
    header = {
        "format": FORMAT_VERSION,
        **asdict(checkpoint.metadata),
        "mask_shapes": {name: list(mask.shape) for name, mask in checkpoint.masks.items()},
        "content_sha256": _content_hash(tensors),
    }
    header["header_sha256"] = _header_hash(header)
    write_tensors(path, tensors, {_KEY: json.dumps(header, sort_keys=True)})
    return file_hash(path)


def read(path: Path) -> Checkpoint:
    """Read and verify a whole file.

    Raises:
        CheckpointError: missing, truncated, changed since it was written, or not written by parp.
        MaskError: a mask's bytes do not fit its shape.
    """
    with _opened(path) as file:
        header = _header(path, file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if _content_hash(tensors) != header["content_sha256"]:
        raise _damaged(path)
    return Checkpoint(
        weights={name: tensor for name, tensor in tensors.items() if not name.startswith(_MASK)},
        masks=_unpack_all(header, tensors),
        metadata=_metadata(path, header),
    )


def read_metadata(path: Path) -> Metadata:
    """Everything but the tensors, without reading them. Raises as `read`."""
    with _opened(path) as file:
        return _metadata(path, _header(path, file))


def read_masks(path: Path) -> dict[str, Tensor]:
    """The masks alone, without reading the weights. Raises as `read`."""
    with _opened(path) as file:
        header = _header(path, file)
        return _unpack_all(header, {_MASK + n: file.get_tensor(_MASK + n) for n in header["mask_shapes"]})


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a readable file of this format."""
    try:
        read_metadata(path)
    except CheckpointError:
        return False
    return True


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lineage(path: Path, metadata: Metadata) -> tuple[Parent, ...]:
    """The parents of whatever is made from the file at `path`: its own, then itself."""
    return (*metadata.parents, Parent(stage=metadata.stage, sha256=file_hash(path), file=path.name))


def _opened(path: Path) -> Any:
    if not path.exists():
        raise CheckpointError(f"no checkpoint {path}", hint="make one with `parp mask`, or check the path")
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, not a checkpoint", hint=f"name a file in it, or make it the run folder: --run {path}"
        )
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file",
            details=[str(error)],
            hint="it is truncated or of another format; make it again",
        ) from error


def _header(path: Path, file: Any) -> dict[str, Any]:
    try:
        header = dict(json.loads((file.metadata() or {})[_KEY]))
        version = header["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} was not written by parp",
            hint="to start from a foreign model, give it to `parp mask --model`",
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}; this parp reads {FORMAT_VERSION}", hint="update parp to read it"
        )
    masked = header.get("mask_shapes")
    stored = {name.removeprefix(_MASK) for name in file.keys() if name.startswith(_MASK)}  # noqa: SIM118 (no mapping)
    if not isinstance(masked, dict) or set(masked) != stored or "content_sha256" not in header:
        raise _damaged(path)
    if header.pop("header_sha256", None) not in (None, _header_hash(header)):  # the first files had none
        raise _damaged(path)
    return header


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} was changed or damaged after it was written", hint="make it again, or copy it again"
    )


def _metadata(path: Path, header: Mapping[str, Any]) -> Metadata:
    values = {f.name: header[f.name] for f in fields(Metadata) if f.name in header}
    try:
        values["parents"] = tuple(Parent(**parent) for parent in values["parents"])
        values["prunable"] = tuple(values["prunable"])
        values["vocabulary"] = None if values["vocabulary"] is None else tuple(values["vocabulary"])
        values["sparsity"] = None if values["sparsity"] is None else Sparsity(**values["sparsity"])
        return Metadata(**values)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} has an incomplete header", details=[str(error)], hint="make it again, or copy it again"
        ) from error


def _unpack_all(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: unpack(tensors[_MASK + name], tuple(shape)) for name, shape in header["mask_shapes"].items()}


def _header_hash(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _content_hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
