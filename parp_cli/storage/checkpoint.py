"""The checkpoint-plus-mask file: weights and masks in one safetensors file, so that they cannot be separated.

    <name>            a weight under its own state-dict name, readable by any safetensors reader
    mask/<name>       the weight's mask, one bit per weight (`bits.pack`), 1 = kept
    metadata["parp"]  sorted JSON: everything that rebuilds and explains the file (`Metadata`), and what verifies it

The mask is explicit, never inferred from zeros: PARP lets pruned weights grow back. The same content gives the same
bytes. Format 2 names architecture and task by kind, has a hash for each mask, and stores tied weights once; format 1
is read as well. Format 3, which only `parp export` writes, has compressed masks, and

    kept/<name>       instead of a weight only what its mask keeps (`packed`),
    or no weights     but the hash of those that the masks are for ("backbone_sha256"),
    and may name the kernel that computes each matrix product the fastest where it was made ("kernels").
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from parp_cli.errors import CheckpointError
from parp_cli.storage import packed
from parp_cli.storage.bits import lengthened, pack, shortened, unpack
from parp_cli.storage.tensors import write_tensors

FORMAT_VERSION = 3
_WHOLE = 2  # the format of files with whole weights

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
        architecture: what rebuilds the model, with its "kind" (format 1 has none); `models` reads it.
        task: what the output head was trained for, with its "kind"; None without an output head.
        prunable: names of the weights that may be pruned.
        recipe, seed, metrics: of the run that wrote it; the recipe is resolved.
        parents: the files it descends from, oldest first.
        versions: of the software that wrote it.
    """

    stage: str
    architecture: Mapping[str, Any]
    task: Mapping[str, Any] | None = None
    prunable: tuple[str, ...] = ()
    sparsity: Sparsity | None = None
    recipe: Mapping[str, Any] | None = None
    seed: int | None = None
    parents: tuple[Parent, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """Output symbols of a CTC head by label id; None for another task or without a head."""
        symbols = (self.task or {}).get("vocabulary")
        return None if symbols is None else tuple(symbols)

    @property
    def labels(self) -> str | None:
        """What the symbols of a CTC head are: "letters", "phones", or None where nothing is recorded."""
        return (self.task or {}).get("labels")


def ctc_task(vocabulary: Sequence[str], labels: str | None) -> dict[str, Any]:
    """`Metadata.task` of a CTC head: its output symbols by label id, and what they are ("letters" or "phones")."""
    return {"kind": "ctc", "labels": labels, "vocabulary": list(vocabulary)}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of a file.

    Attributes:
        weights: by state-dict name.
        masks: boolean, True = kept, by the name of their weight.
        kernels: that compute with weights, by the name of the weight, where they are not torch's own.
    """

    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    metadata: Metadata
    kernels: Mapping[str, str] = field(default_factory=dict)


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, completely or not at all. Weights that are one tensor (tied weights) are stored once.

    Raises:
        ResourceError: no space is left on the disk.
        UsageError: the path cannot be written to.
    """
    weights, aliases = _without_tied(checkpoint.weights)
    _write(path, checkpoint, weights, {"format": _WHOLE, "aliases": aliases})


def write_packed(path: Path, checkpoint: Checkpoint, values: packed.Values) -> None:
    """Write a file that is read as any other, but has only what masks keep, as these `values`, and the kernels if there
    are any. Raises as `write`."""
    weights, aliases = _without_tied(checkpoint.weights)
    stored = packed.pack(weights, checkpoint.masks, values)
    kernels = {"kernels": dict(checkpoint.kernels)} if checkpoint.kernels else {}
    _write(path, checkpoint, stored, {"format": FORMAT_VERSION, "aliases": aliases, "values": values, **kernels})


def write_masks(path: Path, checkpoint: Checkpoint, backbone: str) -> None:
    """Write the masks without the weights, which the hash `backbone` names. Raises as `write`."""
    _write(path, checkpoint, {}, {"format": FORMAT_VERSION, "aliases": {}, "backbone_sha256": backbone})


def _write(path: Path, checkpoint: Checkpoint, weights: Mapping[str, Tensor], more: Mapping[str, Any]) -> None:
    assert not any(name.startswith(_MASK) for name in weights), f"{_MASK} is the name of masks"
    masks = {name: pack(mask) for name, mask in checkpoint.masks.items()}
    if more["format"] > _WHOLE:
        masks = {name: shortened(bits) for name, bits in masks.items()}
    header = {
        **asdict(checkpoint.metadata),
        **more,
        "masks": {
            name: {"shape": list(mask.shape), "sha256": _hash(masks[name])} for name, mask in checkpoint.masks.items()
        },
        "content_sha256": content_hash(weights),
    }
    header["header_sha256"] = _hash(header)
    tensors = {**weights, **{_MASK + name: mask for name, mask in masks.items()}}
    write_tensors(path, tensors, {_KEY: json.dumps(header, sort_keys=True)})


def read(path: Path) -> Checkpoint:
    """Read and verify a whole file.

    Raises:
        CheckpointError: missing, truncated, changed since it was written, or not written by parp; or masks alone.
        MaskError: a mask's bytes do not fit its shape.
    """
    with _opened(path) as file:
        header = _header(path, file)
        _require_weights(path, header)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(_MASK)}
    if content_hash(tensors if header["format"] == 1 else weights) != header["content_sha256"]:
        raise _damaged(path)
    masks = _verified_masks(path, header, tensors)
    if "values" in header:
        weights = packed.unpack(weights, masks)
    weights |= {alias: weights[name] for alias, name in header["aliases"].items()}
    kernels = header.get("kernels", {})
    return Checkpoint(weights=weights, masks=masks, metadata=_metadata(path, header), kernels=kernels)


def _require_weights(path: Path, header: Mapping[str, Any]) -> None:
    if "backbone_sha256" in header:
        raise CheckpointError(
            f"{path} holds masks alone",
            hint=f"give it to --mask beside their checkpoint, or lay them over a model: `parp mask --from {path} "
            "--apply MODEL`",
        )


def read_metadata(path: Path, *, with_weights: bool = False) -> Metadata:
    """Everything but the tensors, without reading them; of a file that must have weights, if so asked. Raises as
    `read`."""
    with _opened(path) as file:
        header = _header(path, file)
        if with_weights:
            _require_weights(path, header)
        return _metadata(path, header)


def backbone_of(path: Path) -> str | None:
    """The hash of the weights that masks from `write_masks` are for; None of a file with weights. Raises as `read`."""
    with _opened(path) as file:
        return _header(path, file).get("backbone_sha256")


def read_masks(path: Path) -> dict[str, Tensor]:
    """The masks alone, verified, without reading the weights. Raises as `read`.

    Format 1 has one hash for everything, so that its files are read whole.
    """
    with _opened(path) as file:
        header = _header(path, file)
        if header["format"] > 1:
            return _verified_masks(path, header, {_MASK + n: file.get_tensor(_MASK + n) for n in header["masks"]})
    return dict(read(path).masks)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a readable file of this format."""
    with suppress(CheckpointError):
        read_metadata(path)
        return True
    return False


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
            hint="it is truncated or of another format; make it again (`parp mask --from` reads others' masks)",
        ) from error


def _header(path: Path, file: Any) -> dict[str, Any]:
    try:
        header = dict(json.loads((file.metadata() or {})[_KEY]))
        version = header["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} was not written by parp",
            hint="to start from a model of transformers, give `parp mask --model` its folder, with config.json",
        ) from error
    if version not in range(1, FORMAT_VERSION + 1):
        raise CheckpointError(
            f"{path} has format {version}; this parp reads formats up to {FORMAT_VERSION}",
            hint="update parp to read it",
        )
    # The first files of format 1 had no hash of the header.
    if header.pop("header_sha256", None) not in ((None,) if version == 1 else ()) + (_hash(header),):
        raise _damaged(path)
    if version == 1:
        header = _upgraded(header)
    stored = {name.removeprefix(_MASK) for name in file.keys() if name.startswith(_MASK)}  # noqa: SIM118 (no mapping)
    if not isinstance(header.get("masks"), dict) or set(header["masks"]) != stored or "content_sha256" not in header:
        raise _damaged(path)
    return header


def _upgraded(header: Mapping[str, Any]) -> dict[str, Any]:
    """A header of format 1 with the keys of format 2; it stays marked as format 1."""
    new = {key: value for key, value in header.items() if key not in ("vocabulary", "labels", "mask_shapes")}
    vocabulary, shapes = header.get("vocabulary"), header.get("mask_shapes")
    new["task"] = None if vocabulary is None else ctc_task(vocabulary, header.get("labels"))
    new["masks"] = {name: {"shape": shape} for name, shape in shapes.items()} if isinstance(shapes, dict) else None
    return {**new, "aliases": {}}


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} was changed or damaged after it was written", hint="make it again, or copy it again"
    )


def _metadata(path: Path, header: Mapping[str, Any]) -> Metadata:
    values = {f.name: header[f.name] for f in fields(Metadata) if f.name in header}
    try:
        values["parents"] = tuple(Parent(**parent) for parent in values["parents"])
        values["prunable"] = tuple(values["prunable"])
        values["sparsity"] = values["sparsity"] and Sparsity(**values["sparsity"])
        return Metadata(**values)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} has an incomplete header", details=[str(error)], hint="make it again, or copy it again"
        ) from error


def _verified_masks(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, mask in header["masks"].items():
        if header["format"] > 1 and _hash(tensors[_MASK + name]) != mask["sha256"]:
            raise _damaged(path)
    bits = {name: (tensors[_MASK + name], tuple(mask["shape"])) for name, mask in header["masks"].items()}
    if header["format"] > _WHOLE:
        bits = {name: (lengthened(coded, shape), shape) for name, (coded, shape) in bits.items()}
    return {name: unpack(*given) for name, given in bits.items()}


def _without_tied(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights as they are stored, and for each name that is left out, the name its tensor is stored under.

    safetensors refuses tensors that share memory. Those that are the same view are stored under the first name; others,
    such as two slices of one tensor, are copied.
    """
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[object, str] = {}
    storages: set[int] = set()
    for name in sorted(weights):
        weight = weights[name].detach()
        storage = weight.untyped_storage().data_ptr()
        view = (storage, weight.storage_offset(), weight.shape, weight.stride(), weight.dtype, weight.device)
        if weight.numel() and names.setdefault(view, name) != name:
            aliases[name] = names[view]
            continue
        stored = weight.cpu().contiguous()
        kept[name] = stored.clone() if stored.data_ptr() == weight.data_ptr() and storage in storages else stored
        storages.add(storage)
    return kept, aliases


def _hash(content: Tensor | Mapping[str, Any]) -> str:
    """SHA-256 of a packed mask, or of a header."""
    if isinstance(content, Tensor):
        return hashlib.sha256(content.numpy().data).hexdigest()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
