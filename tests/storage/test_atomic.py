import errno
import os
import stat
from pathlib import Path
from unittest import mock

import pytest
import torch

from parp_cli.errors import ResourceError, UsageError
from parp_cli.storage.atomic import forget_temporaries, refuse_same, replacing, require_writable, write_text
from parp_cli.storage.tensors import write_tensors


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


@pytest.mark.parametrize("length", [241, 255, 300, 5000])
def test_a_name_is_too_long_before_anything_is_written(tmp_path: Path, length: int) -> None:
    most = tmp_path / ("é" * 120 + "n")
    require_writable(most, "--out")
    write_text(most, "it can be written")
    for path in (tmp_path / ("n" * (length + 1)), tmp_path / ("n" * 300) / "file"):
        with pytest.raises(UsageError, match=r"cannot write .*too long") as caught:
            require_writable(path, "--html")
        assert "--html" in (caught.value.hint or "")


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


@pytest.mark.parametrize("folder", [".", "..", "below"])
def test_a_folder_is_refused_before_the_work(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="Is a directory"), replacing(Path(folder)):
        pytest.fail("it may be written")
    assert [path.name for path in tmp_path.iterdir()] == ["below"]


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


def test_the_umask_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to the whole process: files that other threads create meanwhile would be writable for everybody."""

    def refuse(_: int) -> int:
        raise AssertionError("the umask was changed")

    monkeypatch.setattr(os, "umask", refuse)
    write_text(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "text")
        write_tensors(tmp_path / "tensors", {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "tensors")] == [0o640, 0o640]


def test_files_that_would_overwrite_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("")
    (tmp_path / "link").symlink_to("text.txt")
    (tmp_path / "folder").symlink_to(".")
    out, text = Path("x.arpa"), Path("text.txt")
    refuse_same({"--out": out, "--lexicon": Path("y")}, {"the text": text, "--recipe": text})
    refuse_same({})
    for outputs, inputs, message in (
        ({"--out": out, "--lexicon": out}, {}, "--lexicon x.arpa would overwrite --out x.arpa"),
        ({"--out": out, "--html": tmp_path / "a" / ".." / "x.arpa"}, {}, "x.arpa would overwrite --out x.arpa"),
        ({"--out": [out, Path("folder") / out]}, {}, "--out folder/x.arpa would overwrite --out x.arpa"),
        ({"--trn": [out, out]}, {}, "--trn x.arpa would overwrite --trn x.arpa"),
        ({"--out": text}, {"the text": text}, "--out text.txt would overwrite the text text.txt"),
        ({"--out": Path("link")}, {"--lm": [out, text]}, "--out link would overwrite --lm text.txt"),
    ):
        with pytest.raises(UsageError) as caught:
            refuse_same(outputs, inputs)
        assert caught.value.message.endswith(message)
        assert caught.value.hint
    assert (tmp_path / "text.txt").read_text() == ""


def test_links_that_lead_in_a_circle_are_no_bug(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    refuse_same({"--out": tmp_path / "a"}, {"the text": tmp_path / "c"})


def test_what_cannot_be_written_is_known_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    require_writable(tmp_path / "new" / "folder" / "a.json", "--out")
    assert not (tmp_path / "new").exists()
    for path, why in ((tmp_path, "it is a folder"), (tmp_path / "file" / "a.json", "file is not a folder")):
        with pytest.raises(UsageError, match=why) as caught:
            require_writable(path, "--html")
        assert caught.value.hint == "choose another place with --html"
    with (
        mock.patch("os.access", return_value=False),
        pytest.raises(UsageError, match="cannot be written to"),
    ):
        require_writable(tmp_path / "a.json", "--html")


def test_what_a_killed_safetensors_left_is_forgotten_with_all_others(tmp_path: Path) -> None:
    for name in (".tmpdb2ifR", ".tmpother-file", "kept"):
        (tmp_path / name).touch()
    forget_temporaries(tmp_path, "kept")
    assert len(list(tmp_path.iterdir())) == 3
    forget_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmpother-file", "kept"]
