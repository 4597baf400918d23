import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parp_cli.errors import ResourceError, UsageError
from parp_cli.storage.lock import LOCK, only_one

fcntl = pytest.importorskip("fcntl")


def test_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with only_one(folder, "sweep"):
        with (
            pytest.raises(UsageError, match=f"another sweep is running in {folder}") as caught,
            only_one(folder, "sweep"),
        ):
            raise AssertionError("two hold it")
        assert "--run" in (caught.value.hint or "")
        with only_one(tmp_path, "sweep"):
            pass
    with only_one(folder, "sweep"):
        pass


def test_an_error_lets_go(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), only_one(tmp_path, "sweep"):
            raise KeyError


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    script = f"""
import pathlib, time
from parp_cli.storage.lock import only_one
with only_one(pathlib.Path({str(tmp_path)!r}), "sweep"):
    print("held", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError), only_one(tmp_path, "sweep"):
            pass
        process.kill()
        assert process.wait() == -signal.SIGKILL
    with only_one(tmp_path, "sweep"):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_one(tmp_path, "sweep"), only_one(tmp_path, "sweep"):
        pass


def test_a_place_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"), only_one(tmp_path / "file", "sweep"):
        pass

    opened = os.open

    def full(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).name == LOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(ResourceError, match="no space left"), only_one(tmp_path, "sweep"):
        pass
