"""A full disk stops a run with its last good files intact; with space it goes on, and ends in the same bytes."""

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parp_cli.config.finetune import Recipe
from parp_cli.errors import ResourceError
from parp_cli.runtime.progress import Progress
from parp_cli.stages.finetune import finetune
from tests.stages.processes import outcome, started
from tests.tiny import World

SETTINGS = ("training.updates=4", "training.validate_every=2", "pruning.interval=3")


@pytest.fixture(scope="module")
def recipe(world: World) -> Recipe:
    return world.recipe(*SETTINGS)


@pytest.fixture(scope="module")
def whole(recipe: Recipe, masked: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed run comes to."""
    run = tmp_path_factory.mktemp("whole")
    finetune(recipe, run=run, init=masked)
    return outcome(run)


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


class Disk:
    """No space is left when a file is flushed for the `full_at`-th time, and ever after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
        self.full_at: float = 1
        self._flushed = 0
        self.before: dict[str, bytes] = {}
        self._run = run
        monkeypatch.setattr(os, "fsync", self._flush)

    def _flush(self, handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            return
        self._flushed += 1
        if self._flushed >= self.full_at:
            self.before = {name: text for name, text in contents(self._run).items() if not name.endswith(".tmp")}
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_space_for_each_file(
    recipe: Recipe, masked: Path, tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at = []
    for full_at in range(1, 99):
        run = tmp_path / str(full_at)
        with monkeypatch.context() as patch:
            disk = Disk(patch, run)
            disk.full_at = full_at
            try:
                finetune(recipe, run=run, init=masked)
            except ResourceError as error:
                stopped_at.append(error.message.removeprefix(f"no space left to write {run}/"))
            else:
                break
            assert contents(run) == disk.before, "what was whole stays, and nothing is left over"
            if (run / "state" / "finetune.safetensors").exists():
                disk.full_at = 0
                with pytest.raises(ResourceError, match="no space left to write"):
                    finetune(recipe, run=run, init=masked, resume=True)
                assert contents(run) == disk.before
        finetune(recipe, run=run, init=masked, resume=True)
        assert outcome(run) == whole, stopped_at[-1]
    state = "state/finetune.safetensors"
    assert stopped_at[:2] == ["finetune.safetensors", state]
    assert stopped_at[-3:] == [state, "finetune-last.safetensors", "finetune-finished.json"]


def test_no_space_for_a_line_of_the_log(recipe: Recipe, masked: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    log, aside = tmp_path / "finetune.jsonl", tmp_path / "aside"

    def fill(step: Progress) -> None:
        if step.task.startswith("fine-tuning") and step.done == 3:
            log.rename(aside)
            log.symlink_to("/dev/full")

    with pytest.raises(ResourceError, match=f"no space left to write {log}"):
        finetune(recipe, run=tmp_path, init=masked, notify=fill)
    log.unlink()
    log.write_bytes(aside.read_bytes() + '{"event": "update", "update": 4, "note": "ž'.encode()[:-1])  # what fitted
    aside.unlink()
    finetune(recipe, run=tmp_path, init=masked, resume=True)
    assert outcome(tmp_path) == whole


# ----------------------------------------------------------------------------------------- really full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, free: int) -> None:
    """Leave so many bytes, in whole blocks."""
    space = os.statvfs(disk)
    (disk / "filler").write_bytes(b"x" * max(0, space.f_bavail * space.f_frsize - free))


@pytest.mark.slow
def test_a_full_file_system(
    recipe: Recipe, world: World, masked: Path, small_disk: Path, whole: dict[str, Any]
) -> None:
    run = small_disk / "run"
    stopped_at = []
    for free in range(0, 2 << 20, 32 << 10):
        fill(small_disk, free)
        try:
            finetune(recipe, run=run, init=masked)
        except ResourceError as error:
            stopped_at.append(error.message.removeprefix(f"no space left to write {run}/"))
        else:
            stopped_at.append("")
        assert not list(run.rglob("*.tmp"))
        (small_disk / "filler").unlink()
        finetune(recipe, run=run, init=masked, resume=True)
        assert outcome(run) == whole, stopped_at[-1]
        for path in sorted(run.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        run.rmdir()
        if not stopped_at[-1]:
            break
    # Where the state has space, all that comes after it has.
    assert {*stopped_at, ""} == {"finetune.jsonl", "finetune.safetensors", "state/finetune.safetensors", ""}


@pytest.mark.slow
def test_what_the_command_says(world: World, masked: Path, small_disk: Path, whole: dict[str, Any]) -> None:
    run, settings = small_disk / "run", (*world.settings, *SETTINGS)
    fill(small_disk, 200 << 10)  # for the best checkpoint, not for the state
    process = started(run, settings, "--init", str(masked))
    out, err = process.communicate()
    assert (process.returncode, out) == (5, "")
    assert err.splitlines() == [
        f"parp: error: no space left to write {run}/state/finetune.safetensors",
        "  hint: free some space, or write elsewhere with --out or --run",
    ]
    (small_disk / "filler").unlink()
    process = started(run, settings, "--init", str(masked), "--resume")
    assert process.communicate()[0]
    assert process.returncode == 0
    assert outcome(run) == whole
