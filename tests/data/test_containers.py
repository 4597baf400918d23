"""Videos get the command line that takes out their sound."""

from pathlib import Path

import pytest

from parp_cli.data.audio import read_audio
from parp_cli.data.containers import foreign
from parp_cli.errors import DataError

HEADS = {
    "MPEG-4 video": b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41",
    "MPEG-4 audio (AAC)": b"\x00\x00\x00\x20ftypM4A \x00\x00\x02\x00",
    "QuickTime video": b"\x00\x00\x00\x14ftypqt  \x00\x00\x02\x00",
    "Matroska video": b"\x1a\x45\xdf\xa3\xa3\x42\x86\x81\x01\x42\xf7\x81\x01\x42\x82\x88matroska",
    "WebM video": b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\xf7\x81\x01\x42\x82\x84webm",
    "AVI video": b"RIFF\x00\x10\x00\x00AVI LIST",
    "AAC audio": b"\xff\xf1\x50\x80\x02\x1f\xfc",
}


@pytest.mark.parametrize("kind", HEADS)
def test_videos_are_known_by_their_first_bytes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "my film.dat"
    path.write_bytes(HEADS[kind] + bytes(5000))
    found = foreign(path)
    assert found is not None
    assert found.what == f"it is {kind}, which libsndfile does not read"
    assert found.remedy.endswith(f"ffmpeg -i '{path}' -vn -ac 1 -ar 16000 '{tmp_path}/my film.flac'")


@pytest.mark.parametrize("name", ["talk.flac", "talk.FLAC"])
def test_the_remedy_does_not_overwrite_its_own_input(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(HEADS["MPEG-4 video"] + bytes(100))
    found = foreign(path)
    assert found is not None
    assert found.remedy.endswith(f"ffmpeg -i {path} -vn -ac 1 -ar 16000 {tmp_path}/talk-sound.flac")


@pytest.mark.parametrize("kind", HEADS)
def test_reading_one_says_so(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(HEADS[kind] + bytes(5000))
    with pytest.raises(DataError, match=str(path)) as caught:
        read_audio(path)
    assert caught.value.hint is not None
    assert "ffmpeg -i" in caught.value.hint


@pytest.mark.parametrize("head", [b"", b"fLaC", b"RIFF\x00\x10\x00\x00WAVEfmt ", b"\xff\xfb\x90\x64", b"hello"])
def test_others_are_not_taken_for_one(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(head)
    assert foreign(tmp_path / "a") is None
