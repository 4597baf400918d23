import errno
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file

from parp_cli.errors import CheckpointError, MaskError, ParpError, ResourceError
from parp_cli.storage import checkpoint
from parp_cli.storage import tensors as tensor_files
from parp_cli.storage.checkpoint import Checkpoint, Metadata, Parent, Sparsity
from parp_cli.storage.run_folder import newest_checkpoint

METADATA = Metadata(
    stage="finetune",
    architecture={"kind": "any", "layers": [[1, 2], [3, 4]]},
    task={"kind": "ctc", "labels": "letters", "vocabulary": ["<blank>", "|", "Ä"]},
    prunable=("odd", "matrix"),
    sparsity=Sparsity(target=0.5, pruned=17, total=34),
    recipe={"training": {"learning_rate": 2e-5}},
    seed=3,
    parents=(Parent(stage="mask", sha256="ab" * 32, file="mask.safetensors"),),
    metrics={"word": 0.25},
    versions={"parp": "0"},
)


def content(metadata: Metadata = METADATA) -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    masks = {"odd": torch.rand(13, generator=generator) < 0.5, "matrix": torch.rand(3, 7, generator=generator) < 0.5}
    return Checkpoint(
        weights={
            "odd": torch.randn(13, generator=generator),
            "matrix": torch.randn(7, 3, generator=generator).T,  # not contiguous
            "half": torch.randn(2, 2, generator=generator).half(),
            "brain": torch.randn(5, generator=generator).bfloat16(),
            "double": torch.randn(2, generator=generator).double(),
            "count": torch.tensor(7),
            "flag": torch.tensor([True, False]),
            "empty": torch.zeros(0, 4),
        },
        masks={**masks, "scalar": torch.tensor(True)},
        metadata=metadata,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    checkpoint.write(tmp_path / "file.safetensors", content())
    return tmp_path / "file.safetensors"


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    for mine, theirs in ((one.weights, other.weights), (one.masks, other.masks)):
        assert set(mine) == set(theirs)
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name
    assert one.metadata == other.metadata


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a checkpoint, as another program might that knows how to sign it."""
    with safe_open(path, framework="pt") as opened:
        header = json.loads(opened.metadata()["parp"])
    del header["header_sha256"]
    change(header)
    header["header_sha256"] = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    save_file(load_file(path), path, metadata={"parp": json.dumps(header)})


class TestRoundTrip:
    def test_everything_comes_back(self, file: Path) -> None:
        assert_same(content(), checkpoint.read(file))
        assert checkpoint.read_metadata(file) == METADATA
        assert checkpoint.is_checkpoint(file)

    def test_little_comes_back_too(self, tmp_path: Path) -> None:
        little = Checkpoint(weights={}, masks={}, metadata=Metadata(stage="mask", architecture={}))
        checkpoint.write(tmp_path / "file", little)
        assert_same(little, checkpoint.read(tmp_path / "file"))

    def test_the_same_content_gives_the_same_bytes(self, tmp_path: Path) -> None:
        one = content()
        other = Checkpoint(
            weights=dict(reversed(one.weights.items())),
            masks=dict(reversed(one.masks.items())),
            metadata=replace(METADATA, architecture=dict(reversed(METADATA.architecture.items()))),
        )
        for name, value in (("a", one), ("b", other), ("c", one)):
            checkpoint.write(tmp_path / name, value)
        assert len({checkpoint.file_hash(tmp_path / name) for name in "abc"}) == 1

    def test_other_content_gives_other_bytes(self, tmp_path: Path) -> None:
        one, other = content(), content()
        other.masks["odd"][0] = ~other.masks["odd"][0]
        checkpoint.write(tmp_path / "a", one)
        checkpoint.write(tmp_path / "b", other)
        assert checkpoint.file_hash(tmp_path / "a") != checkpoint.file_hash(tmp_path / "b")

    def test_parameters_are_written_as_they_are_now(self, tmp_path: Path) -> None:
        layer = torch.nn.Linear(2, 2)
        checkpoint.write(tmp_path / "a", replace(content(), weights=layer.state_dict(), masks={}))
        assert torch.equal(checkpoint.read(tmp_path / "a").weights["weight"], layer.weight)

    def test_any_reader_finds_the_weights_under_their_names(self, file: Path) -> None:
        tensors = load_file(file)
        for name, weight in content().weights.items():
            assert torch.equal(tensors.pop(name), weight)
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
            "mask/odd": (2,),
            "mask/matrix": (3,),
            "mask/scalar": (1,),
        }
        rewritten = file.with_name("plain")
        save_file({name: tensor for name, tensor in load_file(file).items() if name != "brain"}, rewritten)
        assert load_numpy(rewritten)["matrix"].shape == (3, 7)  # numpy alone has no bfloat16


def test_masks_are_read_without_weights(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    class Recording:
        def __init__(self, path: Path, framework: str) -> None:
            self._opened = safe_open(path, framework=framework)

        def __enter__(self) -> "Recording":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self._opened.get_tensor(name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._opened, name)

    monkeypatch.setattr(checkpoint, "safe_open", Recording)
    masks = checkpoint.read_masks(file)
    assert set(read) == {"mask/odd", "mask/matrix", "mask/scalar"}
    assert all(torch.equal(masks[name], mask) for name, mask in content().masks.items())
    read.clear()
    checkpoint.read_metadata(file)
    assert not read


def test_lineage_grows_by_the_file_itself(file: Path) -> None:
    parents = checkpoint.lineage(file, checkpoint.read_metadata(file))
    assert parents[:-1] == METADATA.parents
    assert parents[-1] == Parent(stage="finetune", sha256=checkpoint.file_hash(file), file="file.safetensors")


def test_sparsity_is_exact() -> None:
    assert Sparsity(target=0.3, pruned=1, total=3).exact == 1 / 3
    assert Sparsity(target=0.0, pruned=0, total=0).exact == 0.0


class TestTiedWeights:
    """safetensors refuses tensors that share memory; here they are stored once, and share memory again when read."""

    def test_one_tensor_under_two_names_is_stored_once(self, tmp_path: Path) -> None:
        table = torch.nn.Embedding(50, 8)
        head = torch.nn.Linear(8, 50)
        head.weight = table.weight
        weights = {"head." + name: weight for name, weight in head.state_dict().items()} | {"a.table": table.weight}
        checkpoint.write(tmp_path / "file", replace(content(), weights=weights, masks={}))
        assert set(load_file(tmp_path / "file")) == {"a.table", "head.bias"}
        found = checkpoint.read(tmp_path / "file").weights
        assert set(found) == {"a.table", "head.weight", "head.bias"}
        assert torch.equal(found["head.weight"], table.weight)
        assert found["head.weight"].data_ptr() == found["a.table"].data_ptr()

    def test_views_of_one_tensor_are_copied(self, tmp_path: Path) -> None:
        whole = torch.arange(24.0).reshape(4, 6)
        weights = {"all": whole, "first": whole[:2], "last": whole[2:], "turned": whole.T, "flat": whole.reshape(-1)}
        checkpoint.write(tmp_path / "file", replace(content(), weights=weights, masks={}))
        found = checkpoint.read(tmp_path / "file").weights
        assert all(torch.equal(found[name], weight) for name, weight in weights.items())
        assert len({weight.data_ptr() for weight in found.values()}) == 5

    def test_the_order_of_names_does_not_matter(self, tmp_path: Path) -> None:
        table = torch.randn(5, 3)
        for name, names in (("a", ("x", "y")), ("b", ("y", "x"))):
            checkpoint.write(tmp_path / name, replace(content(), weights=dict.fromkeys(names, table), masks={}))
        assert checkpoint.file_hash(tmp_path / "a") == checkpoint.file_hash(tmp_path / "b")


class TestBadFiles:
    READERS = (checkpoint.read, checkpoint.read_metadata, checkpoint.read_masks)

    def refused(self, path: Path, match: str) -> None:
        for reader in self.READERS:
            with pytest.raises(CheckpointError, match=match) as caught:
                reader(path)
            assert str(path) in caught.value.message
            assert caught.value.hint
        assert not checkpoint.is_checkpoint(path)

    def test_missing(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "none", "no checkpoint")

    def test_a_folder(self, tmp_path: Path) -> None:
        self.refused(tmp_path, "is a folder, not a checkpoint")

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
    def test_truncated(self, file: Path, share: float) -> None:
        whole = file.read_bytes()
        file.write_bytes(whole[: int(share * len(whole))])
        self.refused(file, "not a whole safetensors file")

    def test_of_another_format(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(3)}, tmp_path / "file.pt")
        self.refused(tmp_path / "file.pt", "not a whole safetensors file")

    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"parp": "no JSON"}, {"parp": "[1]"}, {"parp": "{}"}])
    def test_not_ours(self, tmp_path: Path, metadata: dict[str, str] | None) -> None:
        save_file({"a": torch.zeros(3)}, tmp_path / "file", metadata=metadata)
        self.refused(tmp_path / "file", "was not written by parp")

    def test_of_the_future(self, file: Path) -> None:
        rewrite(file, lambda header: header.update(format=4))
        self.refused(file, "has format 4; this parp reads formats up to 3")

    @pytest.mark.parametrize("key", ["content_sha256", "masks"])
    def test_a_header_without_what_verifies_the_rest(self, file: Path, key: str) -> None:
        rewrite(file, lambda header: header.pop(key))
        self.refused(file, "changed or damaged")

    def test_a_header_without_its_hash(self, file: Path) -> None:
        with safe_open(file, framework="pt") as opened:
            header = json.loads(opened.metadata()["parp"])
        del header["header_sha256"]
        save_file(load_file(file), file, metadata={"parp": json.dumps(header)})
        self.refused(file, "changed or damaged")

    @pytest.mark.parametrize("change", [{"stage": None}, {"sparsity": {"pruned": 1}}, {"parents": [{}]}])
    def test_an_incomplete_header(self, file: Path, change: dict[str, Any]) -> None:
        def edit(header: dict[str, Any]) -> None:
            header.update(change)
            if change == {"stage": None}:
                del header["stage"]

        rewrite(file, edit)
        with pytest.raises(CheckpointError, match="incomplete header"):
            checkpoint.read_metadata(file)

    def test_a_mask_that_the_header_does_not_know(self, file: Path) -> None:
        rewrite(file, lambda header: header["masks"].pop("odd"))
        self.refused(file, "changed or damaged")

    def test_a_mask_of_another_size(self, file: Path) -> None:
        rewrite(file, lambda header: header["masks"]["odd"].update(shape=[130]))
        with pytest.raises(MaskError):
            checkpoint.read_masks(file)

    @pytest.mark.parametrize("from_end", [1, 20, 60, 100])
    def test_one_bit_in_the_tensors(self, file: Path, from_end: int) -> None:
        damaged = bytearray(file.read_bytes())
        damaged[-from_end] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="changed or damaged") as caught:
            checkpoint.read(file)
        assert caught.value.hint

    @pytest.mark.parametrize("name", ["odd", "matrix", "scalar"])
    def test_one_bit_of_a_mask(self, file: Path, name: str) -> None:
        """Masks are verified on their own, as `compare`, `eval --mask` and `mask --union` read nothing else."""
        tensors = load_file(file)
        tensors[f"mask/{name}"][0] ^= 1
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata()
        save_file(tensors, file, metadata=header)
        for reader in (checkpoint.read_masks, checkpoint.read):
            with pytest.raises(CheckpointError, match="changed or damaged"):
                reader(file)

    def test_one_bit_anywhere_is_noticed_or_does_no_harm(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        small = Checkpoint(
            weights={"w": torch.tensor([1.0, 2.0])}, masks={"w": torch.tensor([True, False])}, metadata=METADATA
        )
        checkpoint.write(path, small)
        whole = path.read_bytes()
        unnoticed = 0
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            try:
                found = checkpoint.read(path)
            except CheckpointError:
                continue
            assert_same(small, found)
            unnoticed += 1
        assert unnoticed < 30  # in the header's own key and its padding, where nothing is lost


class TestUnfinishedWrites:
    """A write that fails leaves the file that was there, and nothing beside it."""

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), ResourceError),
            (SafetensorError("Error while serializing: I/O error: No space left (os error 28)"), ResourceError),
            (SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)"), ParpError),
            (SafetensorError("something else"), ParpError),
            (RuntimeError("anything"), RuntimeError),
            (KeyboardInterrupt(), KeyboardInterrupt),
        ],
    )
    def test_errors(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, expected: type[BaseException]
    ) -> None:
        before = file.read_bytes()

        def save_half(_: object, path: Path, metadata: object) -> None:
            path.write_bytes(before[: len(before) // 2])
            raise error

        monkeypatch.setattr(tensor_files, "save_file", save_half)
        with pytest.raises(expected):
            checkpoint.write(file, replace(content(), masks={}))
        assert file.read_bytes() == before
        assert list(file.parent.iterdir()) == [file]

    def test_a_kill(self, file: Path) -> None:
        """Nobody can tidy up after SIGKILL, but the run folder does not take the leftover for a checkpoint."""
        before = file.read_bytes()
        script = """
import os, pathlib, signal, sys
import torch
from parp_cli.storage import checkpoint, tensors as tensor_files

def save_half(tensors, path, metadata):
    pathlib.Path(path).write_bytes(b"half a file")
    os.kill(os.getpid(), signal.SIGKILL)

tensor_files.save_file = save_half
metadata = checkpoint.Metadata(stage="mask", architecture={})
checkpoint.write(pathlib.Path(sys.argv[1]), checkpoint.Checkpoint(weights={}, masks={}, metadata=metadata))
"""
        run = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, check=False)
        assert run.returncode == -9, run.stderr.decode()
        assert file.read_bytes() == before
        assert newest_checkpoint(file.parent) == file
        checkpoint.write(file, content())
        assert_same(content(), checkpoint.read(file))
