import builtins
import os
import pickle
import subprocess
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from parp_cli.errors import CheckpointError
from parp_cli.models.sources import torch_files
from parp_cli.models.sources.torch_files import Inert
from tests.models.small import save_legacy

FORMATS = pytest.mark.parametrize("save", [torch.save, save_legacy], ids=["zip", "legacy"])
Save = Callable[[object, Path], None]


class Call:
    """Pickles as a call of a function, which unpickling carelessly would make."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.function, self.arguments


@FORMATS
def test_tensors_and_containers_come_as_they_are(save: Save, tmp_path: Path) -> None:
    content = {"model": {"a": torch.arange(3.0), "b": torch.ones(2, 2).half().T}, "list": [1, 2.5, "x", None, (True,)]}
    save(content, tmp_path / "file.pt")
    found = torch_files.load(tmp_path / "file.pt")
    assert found["list"] == content["list"]
    assert torch_files.tensors(found["model"]) is not None
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in content["model"].items())  # type: ignore


@FORMATS
def test_foreign_objects_are_inert(save: Save, tmp_path: Path) -> None:
    save({"cfg": Namespace(layers=3), "path": Path("x"), "n": Call(int, "7")}, tmp_path / "file.pt")
    found = torch_files.load(tmp_path / "file.pt")
    assert all(isinstance(value, Inert) for value in found.values())
    assert found["cfg"].state == {"layers": 3}
    assert found["n"].arguments == ("7",)


@FORMATS
@pytest.mark.parametrize(
    "attack",
    [
        lambda path: Call(os.system, f"touch {path}"),
        lambda path: Call(builtins.exec, f"open({str(path)!r}, 'w')"),
        lambda path: Call(builtins.eval, f"open({str(path)!r}, 'w')"),
        lambda path: Call(subprocess.Popen, ["touch", str(path)]),
        lambda path: Call(builtins.open, str(path), "w"),
        lambda path: Call(torch.save, 1, str(path)),
        lambda path: Call(getattr, Call(__import__, "os"), "system"),
    ],
    ids=["system", "exec", "eval", "popen", "open", "torch", "getattr"],
)
def test_a_malicious_file_does_nothing(
    attack: Callable[[Path], object], save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save({"model": {"w": torch.zeros(1)}, "cfg": attack(tmp_path / "victim")}, tmp_path / "file.pt")
    if "posix" in pickle.dumps(attack(tmp_path)).decode("latin-1"):  # refused as a whole
        with pytest.raises(CheckpointError, match="calls into the operating system"):
            torch_files.load(tmp_path / "file.pt")
    else:
        assert isinstance(torch_files.load(tmp_path / "file.pt")["cfg"], Inert)
    assert [file.name for file in tmp_path.iterdir()] == ["file.pt"]


def test_the_attacks_would_work(tmp_path: Path) -> None:
    torch.save(Call(os.system, f"touch {tmp_path / 'victim'}"), tmp_path / "file.pt")
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "victim").exists()


def test_nothing_stays_allowed(tmp_path: Path) -> None:
    torch.save(Namespace(a=1), tmp_path / "file.pt")
    before = torch.serialization.get_safe_globals()
    torch_files.load(tmp_path / "file.pt")
    assert torch.serialization.get_safe_globals() == before


@FORMATS
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_truncated_files_are_named(part: float, save: Save, tmp_path: Path) -> None:
    save({"a": torch.zeros(1000)}, tmp_path / "file.pt")
    content = (tmp_path / "file.pt").read_bytes()
    (tmp_path / "file.pt").write_bytes(content[: int(part * len(content))])
    with pytest.raises(CheckpointError, match=r"file\.pt cannot be read"):
        torch_files.load(tmp_path / "file.pt")


@pytest.mark.parametrize("sums", [True, False])
def test_a_flipped_bit_of_a_tensor_is_noticed(tmp_path: Path, sums: bool) -> None:
    """By the checksums of zip files; torch does not verify them, and can save without."""
    value = {"a": torch.arange(1000.0)}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(sums)
    torch.save(value, tmp_path / "file.pt")
    torch.serialization.set_crc32_options(before)
    assert torch.equal(torch_files.load(tmp_path / "file.pt")["a"], value["a"])
    content = bytearray((tmp_path / "file.pt").read_bytes())
    content[bytes(content).index(value["a"][500:502].numpy().tobytes())] ^= 1
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"file\.pt cannot be read") if sums else nullcontext():
        torch_files.load(tmp_path / "file.pt")


@pytest.mark.parametrize("content", [b"hello, world\n" * 100, b"PK\x03\x04", b"\x80\x02.", b"{}"])
def test_foreign_files_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"file\.pt cannot be read"):
        torch_files.load(tmp_path / "file.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file .*file\.pt"):
        torch_files.load(tmp_path / "file.pt")


@pytest.mark.parametrize("value", [None, {}, [], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(1)])
def test_what_is_no_state_dict(value: object) -> None:
    assert torch_files.tensors(value) is None
