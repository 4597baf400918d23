import gzip
import os
import shutil
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from parp_cli.data.labels import letters_vocabulary
from parp_cli.decoding import lm
from parp_cli.decoding.choose import Decoding, choose
from parp_cli.decoding.kneser_ney import estimate, write_arpa
from parp_cli.decoding.lm import PUBLISHED, arpa_words, flashlight, open_language_model, quiet_loading
from parp_cli.errors import DataError, UsageError
from parp_cli.runtime.progress import Progress


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    with (tmp_path / "lm.arpa").open("w") as file:
        write_arpa(estimate(["B A", "ÉTÉ"], 2), file)
    return tmp_path / "lm.arpa"


def test_plain_and_gzipped_and_with_comments(arpa: Path) -> None:
    zipped, commented = arpa.with_name("other.arpa.gz"), arpa.with_name("commented.arpa")
    zipped.write_bytes(gzip.compress(arpa.read_bytes()))
    commented.write_text(f"# counted by hand\n\n#\n{arpa.read_text()}")
    for path in (arpa, zipped, commented):
        model = open_language_model(str(path))
        assert (model.path, model.kind, model.lexicon) == (path, "arpa", None)
        assert arpa_words(model) == ["B", "A", "ÉTÉ"]


def test_binaries_do_not_list_their_words(tmp_path: Path) -> None:
    path = tmp_path / "lm.bin"
    path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(100))
    model = open_language_model(str(path))
    assert model.kind == "binary"
    with pytest.raises(UsageError, match="does not list its words") as caught:
        arpa_words(model)
    assert "--lexicon" in str(caught.value.hint)


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"\xff\xfe\x00", gzip.compress(b"hello\n", mtime=0), b"\x1f\x8b\x08\x00"]
)
def test_what_is_no_language_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_bytes(content)
    with pytest.raises(DataError, match="language model"):
        open_language_model(str(path))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no language model") as caught:
        open_language_model(str(tmp_path / "none.arpa"))
    assert "librispeech-4gram" in str(caught.value.hint)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's hub folder, empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize(("name", "folder"), PUBLISHED.items())
def test_published_models_are_downloaded_once(
    name: str, folder: str, arpa: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tmp_path / "server"
    (server / folder).mkdir(parents=True)
    (server / folder / "lexicon.txt").write_text("B B |\n")
    arpa.rename(server / folder / "lm.bin")
    monkeypatch.setattr(lm, "BASE_URL", server.as_uri())
    steps: list[Progress] = []
    model = open_language_model(name, steps.append)
    assert model.path == hub / "torchaudio" / "decoder-assets" / folder / "lm.bin"
    assert model.lexicon == model.path.with_name("lexicon.txt")
    assert model.lexicon.read_text() == "B B |\n"
    assert arpa_words(model) == ["B", "A", "ÉTÉ"]
    assert steps[-1].done == steps[-1].total == model.path.stat().st_size
    shutil.rmtree(server)
    assert open_language_model(name) == model


@pytest.mark.parametrize("name", PUBLISHED.values())
def test_they_are_found_where_torchaudio_keeps_them(name: str, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchaudio's names and folders, so that nobody downloads gigabytes twice."""
    pytest.importorskip("flashlight.lib.text")
    from torchaudio.models.decoder import _ctc_decoder
    from torchaudio.utils import download

    files = _ctc_decoder._get_filenames(name)
    assert (files.lm, files.lexicon) == (f"decoder-assets/{name}/lm.bin", f"decoder-assets/{name}/lexicon.txt")
    assert Path(download._get_local_path(files.lm)) == hub / "torchaudio" / "decoder-assets" / name / "lm.bin"
    asked = []
    monkeypatch.setattr(download, "download_url_to_file", lambda url, *_, **__: asked.append(url))
    download._download(files.lm, "lm.bin", False)
    assert asked == [f"{lm.BASE_URL}/{name}/lm.bin"]


def test_no_connection(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "BASE_URL", (tmp_path / "nowhere").as_uri())
    with pytest.raises(DataError, match="cannot download the language model librispeech-4gram") as caught:
        open_language_model("librispeech-4gram")
    assert "No such file" in " ".join(caught.value.details)
    assert "--lm" in str(caught.value.hint)


def test_a_file_of_a_published_name_is_that_file(arpa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(arpa.parent)
    arpa.rename("librispeech-4gram")
    assert open_language_model("librispeech-4gram").path == Path("librispeech-4gram")


@pytest.mark.parametrize("decoder", ["lexicon", "beam"])
def test_missing_packages_show_before_a_download(
    decoder: Literal["lexicon", "beam"], hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("gigabytes would be downloaded")

    monkeypatch.setattr(lm, "download", refuse)
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder", None)
    monkeypatch.setitem(sys.modules, "kenlm", None)
    package = {"lexicon": "flashlight-text", "beam": "kenlm"}[decoder]
    with pytest.raises(UsageError, match=package) as caught:
        choose(Decoding(decoder=decoder, lm="librispeech-4gram"), letters_vocabulary())
    assert "parp-cli[lm]" in str(caught.value.hint)


def test_without_flashlight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder", None)
    with pytest.raises(UsageError, match="flashlight-text") as caught:
        flashlight("decoder")
    assert "parp-cli[lm]" in str(caught.value.hint)


def test_kenlm_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_loading():
        os.write(2, b"Loading the LM\n")
    print("said afterwards", file=sys.stderr)
    assert capfd.readouterr().err == "said afterwards\n"
