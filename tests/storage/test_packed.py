"""Files with only what masks keep."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from parp_cli.errors import CheckpointError, MaskError
from parp_cli.storage import checkpoint
from parp_cli.storage.bits import lengthened, pack, shortened
from parp_cli.storage.checkpoint import Checkpoint, Metadata
from parp_cli.storage.packed import Values

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
ERROR = {"float32": 0.0, "float16": 1e-3, "bfloat16": 8e-3, "int8": 8e-3}
"""Relative to the largest value of a row."""


def content(sparsity: float, rows: int = 768, columns: int = 768) -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "a.weight": torch.randn(rows, columns, generator=generator) * torch.logspace(-4, 0, rows)[:, None],
        "a.bias": torch.randn(rows, generator=generator),
        "conv": torch.randn(8, 4, 3, generator=generator),
        "norm": torch.ones(rows),
        "empty": torch.randn(4, 6, generator=generator),
    }
    masks = {name: torch.rand(weights[name].shape, generator=generator) >= sparsity for name in ("a.weight", "a.bias")}
    masks["conv"] = torch.rand(8, 4, 3, generator=generator) >= sparsity
    masks["empty"] = torch.zeros(4, 6, dtype=torch.bool)
    for name, mask in masks.items():
        weights[name] *= mask
    architecture = {"kind": "speech", "name": "x"}
    return Checkpoint(weights=weights, masks=masks, metadata=Metadata(stage="mask", architecture=architecture))


def rows_of(weight: Tensor) -> Tensor:
    return weight.reshape(len(weight), -1) if weight.dim() > 1 else weight.reshape(1, -1)


@pytest.mark.parametrize("values", get_args(Values))
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_what_is_packed_is_read_as_any_checkpoint(tmp_path: Path, values: Values, sparsity: float) -> None:
    written = content(sparsity)
    checkpoint.write_packed(tmp_path / "a", written, values)
    read = checkpoint.read(tmp_path / "a")
    assert read.metadata == written.metadata
    assert read.weights.keys() == written.weights.keys()
    assert all(torch.equal(read.masks[name], mask) for name, mask in written.masks.items())
    assert all(torch.equal(mask, written.masks[name]) for name, mask in checkpoint.read_masks(tmp_path / "a").items())
    for name, mask in written.masks.items():
        ours, theirs = (rows_of(each.weights[name]) for each in (read, written))
        assert not (ours[~rows_of(mask)]).any()
        assert bool(((ours - theirs).abs() <= ERROR[values] * theirs.abs().amax(1, keepdim=True)).all())
    assert torch.equal(read.weights["norm"].float(), written.weights["norm"])


@pytest.mark.parametrize("values", get_args(Values))
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("columns", [256, 768])
def test_the_size_is_that_of_bits_and_kept_values(
    tmp_path: Path, values: Values, sparsity: float, columns: int
) -> None:
    whole = content(sparsity, 256, columns)
    packed = Checkpoint(
        weights={"a": whole.weights["a.weight"]}, masks={"a": whole.masks["a.weight"]}, metadata=whole.metadata
    )
    checkpoint.write_packed(tmp_path / "a", packed, values)
    checkpoint.write_packed(tmp_path / "b", Checkpoint(weights={}, masks={}, metadata=whole.metadata), values)
    size = (tmp_path / "a").stat().st_size - (tmp_path / "b").stat().st_size
    mask = packed.masks["a"]
    header = 500  # names, shapes and hashes
    assert size - header <= 1.02 * (mask.numel() / 8 + int(mask.count_nonzero()) * BYTES[values])


def test_bits_of_sparse_masks_take_less() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = []
    for sparsity in (0.5, 0.9, 0.99):
        bits = pack(torch.rand(300, 301, generator=generator) >= sparsity)
        sizes.append(len(shortened(bits)) / len(bits))
        assert torch.equal(lengthened(shortened(bits), (300, 301)), bits)
    assert sizes[0] == 1
    assert sizes[1] < 0.6
    assert sizes[2] < 0.15


def test_masks_alone_are_no_checkpoint(tmp_path: Path) -> None:
    written = content(0.9)
    checkpoint.write_masks(tmp_path / "mask", written, "a hash")
    assert checkpoint.backbone_of(tmp_path / "mask") == "a hash"
    assert checkpoint.read_metadata(tmp_path / "mask") == written.metadata
    masks = checkpoint.read_masks(tmp_path / "mask")
    assert all(torch.equal(masks[name], mask) for name, mask in written.masks.items())
    assert (tmp_path / "mask").stat().st_size < 0.7 * sum(mask.numel() for mask in masks.values()) / 8
    with pytest.raises(CheckpointError, match="holds masks alone"):
        checkpoint.read(tmp_path / "mask")
    checkpoint.write(tmp_path / "whole", written)
    assert checkpoint.backbone_of(tmp_path / "whole") is None


@pytest.mark.parametrize("packed", [True, False])
def test_every_changed_byte_is_noticed(tmp_path: Path, packed: bool) -> None:
    path, written = tmp_path / "a", content(0.9, 16, 16)
    if packed:
        checkpoint.write_packed(path, written, "int8")
    else:
        checkpoint.write_masks(path, written, "a hash")
    good = path.read_bytes()
    read = checkpoint.read if packed else checkpoint.read_masks
    for place in range(0, len(good), max(1, len(good) // 150)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises((CheckpointError, MaskError)):
            read(path)
        path.write_bytes(good[:place])
        with pytest.raises((CheckpointError, MaskError)):
            read(path)
