import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from parp_cli.errors import CheckpointError, ResourceError
from parp_cli.storage import tensors as tensor_files
from parp_cli.training.state import load_state, read_position, save_state

POSITION = {"update": 3, "losses": [0.1, 1e-9], "validations": [{"word": 0.5, "character": None}]}


def made(seed: int = 0, width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    groups = [{"params": model[2].parameters(), "peak": 0.1}, {"params": model[0].parameters(), "peak": 0.2}]
    return model, torch.optim.AdamW(groups, lr=0.1, weight_decay=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, updates: range) -> None:
    for number in updates:
        generator = torch.Generator().manual_seed(number)
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=generator)).square().sum().backward()
        optimizer.step()


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_going_on_from_a_state_is_going_on(tmp_path: Path) -> None:
    model, optimizer = made()
    train(model, optimizer, range(3))
    mask = {"a": torch.tensor([[True, False]]), "b": torch.tensor(True)}
    save_state(tmp_path / "state" / "run", model, optimizer, POSITION, mask)
    train(model, optimizer, range(3, 6))

    other, its_optimizer = made(seed=1)
    position, extra = load_state(tmp_path / "state" / "run", other, its_optimizer)
    assert position == POSITION == read_position(tmp_path / "state" / "run")
    assert_same(extra, mask)
    train(other, its_optimizer, range(3, 6))
    assert_same(other.state_dict(), model.state_dict())
    theirs, ours = optimizer.state_dict(), its_optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for index, moments in theirs["state"].items():
        assert_same(ours["state"][index], moments)


def test_before_the_first_update_there_are_no_moments(tmp_path: Path) -> None:
    model, optimizer = made()
    save_state(tmp_path / "run", model, optimizer, {})
    assert load_state(tmp_path / "run", *made(seed=1)) == ({}, {})


def test_a_buffer_used_twice(tmp_path: Path) -> None:
    """safetensors refuses tensors that share memory; here they are copied."""
    model, optimizer = made()
    shared: dict[str, Tensor] = {"one": torch.ones(4)}
    shared["other"] = shared["one"]
    save_state(tmp_path / "run", model, optimizer, {}, shared)
    assert_same(load_state(tmp_path / "run", model, optimizer)[1], shared)


def test_the_state_of_another_model(tmp_path: Path) -> None:
    model, optimizer = made(width=5)
    save_state(tmp_path / "run", model, optimizer, {})
    with pytest.raises(CheckpointError, match="is the state of another model") as caught:
        load_state(tmp_path / "run", *made())
    assert any("0.weight" in detail for detail in caught.value.details)
    assert caught.value.hint


def test_files_that_are_no_state(tmp_path: Path) -> None:
    save_state(tmp_path / "cut", *made(), {})
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-5])
    (tmp_path / "text").write_text("no state")
    save_file({"a": torch.ones(1)}, tmp_path / "plain")
    for name in ("cut", "text", "plain", "missing"):
        with pytest.raises(CheckpointError, match="is not the state of a run") as caught:
            load_state(tmp_path / name, *made())
        assert caught.value.hint


def test_a_full_disk_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    save_state(path, *made(), POSITION)
    before = path.read_bytes()
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ):

        def save_half(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(tensor_files, "save_file", save_half)
        with pytest.raises(ResourceError, match="no space left"):
            save_state(path, *made(), {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
