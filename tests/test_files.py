import errno
import os
import stat
from pathlib import Path

import pytest

from parp_cli.errors import ResourceError, UsageError
from parp_cli.files import forget_temporaries, replacing, write_text


def test_a_new_file_in_a_new_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "file.txt", "žluť\n")
    assert (tmp_path / "a" / "b" / "file.txt").read_bytes() == "žluť\n".encode()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file.txt"]


def test_the_old_file_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert not temporary.exists()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_whatever_goes_wrong_the_old_file_stays_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_lack_of_resources(tmp_path: Path, code: int) -> None:
    path = tmp_path / "file"
    with pytest.raises(ResourceError, match="no space left to write") as caught, replacing(path):
        raise OSError(code, os.strerror(code))
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_when_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ResourceError):
        write_text(tmp_path / "file", "text")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "below", tmp_path / "folder"):
        with pytest.raises(UsageError, match="cannot write") as caught:
            write_text(path, "text")
        assert caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def killed_while_writing(path: Path) -> Path:
    """What a kill leaves."""
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        raise KeyboardInterrupt
    temporary.write_text("half")
    return temporary


def test_what_killed_processes_were_writing_is_forgotten(tmp_path: Path) -> None:
    mine = [tmp_path / name for name in ("a.json", ".a.json-short.tmp", ".b-abcdefgh", "a-abcdefgh.tmp", ".tmp")]
    for path in mine:
        path.write_text("mine")
    (tmp_path / ".folder-abcdefgh.tmp").mkdir()
    (tmp_path / ".link-abcdefgh.tmp").symlink_to(tmp_path / "a.json")
    one, other, deeper = (killed_while_writing(tmp_path / name) for name in ("a.json", "b", "below/a.json"))
    kept = {path for path in tmp_path.rglob("*") if path not in (one, other)}
    forget_temporaries(tmp_path, "a.json", "c")
    assert (one.exists(), other.exists()) == (False, True)
    forget_temporaries(tmp_path)
    assert set(tmp_path.rglob("*")) == kept
    assert deeper in kept
    forget_temporaries(tmp_path / "absent")


def test_a_folder_that_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on network file systems: the file is there all the same."""
    flush = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
