"""What `parp export` writes. Each target is one `Target` in one file of this folder, which says what it writes, for
what, and by which options; `targets` lists them."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from parp_cli.errors import MaskError
from parp_cli.exporters.check import Check
from parp_cli.exporters.text_check import TextCheck
from parp_cli.models.sources.names import Encoder
from parp_cli.pruning.masks import count_zeros
from parp_cli.runtime.device import versions
from parp_cli.runtime.progress import Notify
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import replacing, write_error
from parp_cli.storage.checkpoint import Checkpoint, Metadata
from parp_cli.storage.packed import Values


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a model: bytes of its file, parameters, attention heads, feed-forward units, blocks with any of these, and
    channels of the feature encoder."""

    bytes: int
    parameters: int
    heads: int
    units: int
    blocks: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What `parp export` wrote.

    Attributes:
        target: its name.
        size: bytes of the folder (hf, sherpa) or file in all.
        zeros: pruned weights that are zero in it.
        before, after: the checkpoint and the export, of targets that were compared; None for others.
        check: how they compare.
        integer_products: matrix products of 8-bit integers, of a quantised export.
        card: the model card that was written; None for other targets, or where a card of one's own was kept.
        kernels: how many matrix products are computed dense, from compressed rows (csr), in 8-bit integers (int8) and
            as 2:4, of a sparse export.
        measured_on: "cpu" or "cuda", of a sparse export.
    """

    path: Path
    target: str
    source: Path
    size: int
    zeros: int
    before: Size | None = None
    after: Size | None = None
    check: Check | TextCheck | None = None
    integer_products: int | None = None
    card: Path | None = None
    kernels: Mapping[str, int] | None = None
    measured_on: str | None = None


@dataclass(frozen=True)
class Trial:
    """How exports of one kind of network are run, and compared on the same inputs.

    Attributes:
        network: from architecture and weights (and kernels, of speech), as parp runs it.
        compared: two of them; `exact` where their outputs are to be equal.
        write_onnx: writes one in ONNX, from architecture and weights.
        onnx: one from such a file, as onnxruntime runs it.
    """

    network: Callable[..., Any]
    compared: Callable[..., Check | TextCheck]
    write_onnx: Callable[..., None]
    onnx: Callable[[Path], Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checkpoint that is to be exported.

    Attributes:
        target: its name.
        content, encoder: of the checkpoint `source`, whose weights are zero where its mask prunes.
        out: the directory or file to write.
        int8, values, device: as of `stages.export.export`.
        trial: how it is compared, on data of the corpus that it was fine-tuned on.
        speech: such waveforms (S,), sorted by length.
        notify: takes progress.
    """

    target: str
    source: Path
    content: Checkpoint
    encoder: Encoder
    out: Path
    int8: bool
    values: Values | None
    device: torch.device | None
    trial: Callable[[], Trial]
    speech: Callable[[], Sequence[Tensor]]
    notify: Notify

    @property
    def descended(self) -> Metadata:
        """The metadata of a checkpoint that is made of this one."""
        metadata = self.content.metadata
        lineage = checkpoint.lineage(self.source, metadata)
        return replace(metadata, stage="export", parents=lineage, versions=versions())

    @property
    def properties(self) -> dict[str, str]:
        """What a file for another runtime says of where it is from."""
        return {**versions(), "source_sha256": checkpoint.file_hash(self.source)}

    def require_mask(self) -> None:
        """Raises MaskError where there is none."""
        if not self.content.masks:
            raise MaskError(f"{self.source} has no mask", hint="make one with `parp mask` or `parp finetune`")

    @contextmanager
    def made(self) -> Iterator[Path]:
        """A temporary path that stands for `out`: once the block has written and checked a file there, with its
        `weights_beside`, or a directory, they are copied. Raises ResourceError where a disk is full, UsageError where
        they cannot be written."""
        with TemporaryDirectory() as folder:
            own = self.out if self.out.name not in ("", "..") else self.out.resolve()
            made = Path(folder) / own.name
            try:
                yield made
            except OSError as error:
                raise write_error(self.out, error) from error
            files = filter(Path.is_file, Path(folder).rglob("*"))
            for file in sorted(files, reverse=True):  # a model after its weights
                if made.is_dir():
                    place = self.out / file.relative_to(made)
                else:
                    place = self.out if file == made else weights_beside(self.out)
                with replacing(place) as temporary:
                    shutil.copyfile(file, temporary)

    def result(self, *, size: int | None = None, zeros: int | None = None, **found: Any) -> ExportResult:
        """What was written; by default with the size of `out`, and the zeros of the checkpoint."""
        return ExportResult(
            path=self.out,
            target=self.target,
            source=self.source,
            size=bytes_of(self.out) if size is None else size,
            zeros=count_zeros(self.encoder.weights, self.content.masks) if zeros is None else zeros,
            **found,
        )

    def for_runtime(self, check: Check | TextCheck, products: int | None, *names: str) -> ExportResult:
        """What was written for another runtime, of the same network: `out`, or files of these names in it."""
        before = size_of(self.encoder.architecture, self.encoder.weights, self.source)
        size = sum(map(bytes_of, [self.out / name for name in names] or [self.out]))
        after = replace(before, bytes=size)
        return self.result(size=size, before=before, after=after, check=check, integer_products=products)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A target of `parp export`.

    Attributes:
        name: the value of `--to`.
        title: what it is, as in "exported model.safetensors for transformers".
        write: writes it. Raises as `stages.export.export`.
        of_texts: whether text encoders have it too.
        int8, values: whether it takes these options.
        benched: whether `parp bench` takes what it writes of speech.
        with_zeros: whether pruned weights are in it, zeros among other numbers.
        require: raises UsageError where a package that it needs is not installed.
    """

    name: str
    title: str
    write: Callable[[Job], ExportResult]
    of_texts: bool = False
    int8: bool = False
    values: bool = False
    benched: bool = True
    with_zeros: bool = False
    require: Callable[[], None] = lambda: None


def weights_beside(path: Path) -> Path:
    """Where the weights of an ONNX file are that is too large to hold them."""
    return path.with_name(f"{path.name}.data")


def bytes_of(path: Path) -> int:
    """Bytes of a file, with its `weights_beside`, or of all files in a folder."""
    files = [path, weights_beside(path)] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def size_of(architecture: Any, weights: Mapping[str, Tensor], path: Path) -> Size:
    """The size of a network whose file is at `path`."""
    sizes = [architecture.sizes_of_layer(index) for index in range(architecture.layers)]
    return Size(
        bytes=path.stat().st_size,
        parameters=sum(weight.numel() for weight in weights.values() if weight.is_floating_point()),
        heads=sum(heads for heads, _, _ in sizes),
        units=sum(units for _, _, units in sizes),
        blocks=sum(bool(count) for heads, _, units in sizes for count in (heads, units)),
        channels=architecture.channels,
    )
