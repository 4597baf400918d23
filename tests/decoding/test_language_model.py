import gzip
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torchaudio.models.decoder

from parp_cli.decoding.kneser_ney import estimate, write_arpa
from parp_cli.decoding.language_model import PUBLISHED, flashlight, open_language_model, quiet_loading, words_of
from parp_cli.errors import DataError, UsageError


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    with (tmp_path / "lm.arpa").open("w") as file:
        write_arpa(estimate(["B A", "ÉTÉ"], 2), file)
    return tmp_path / "lm.arpa"


def test_plain_and_gzipped(arpa: Path) -> None:
    zipped = arpa.with_name("other.arpa.gz")
    zipped.write_bytes(gzip.compress(arpa.read_bytes()))
    for path in (arpa, zipped):
        model = open_language_model(str(path))
        assert (model.path, model.kind, model.lexicon) == (path, "arpa", None)
        assert words_of(model) == ["B", "A", "ÉTÉ"]


def test_binaries_do_not_list_their_words(tmp_path: Path) -> None:
    path = tmp_path / "lm.bin"
    path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(100))
    model = open_language_model(str(path))
    assert model.kind == "binary"
    with pytest.raises(UsageError, match="does not list its words") as caught:
        words_of(model)
    assert "--lexicon" in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\xff\xfe\x00", gzip.compress(b"hello\n"), b"\x1f\x8b\x08\x00"])
def test_what_is_no_language_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_bytes(content)
    with pytest.raises(DataError, match="language model"):
        open_language_model(str(path))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no language model") as caught:
        open_language_model(str(tmp_path / "none.arpa"))
    assert "librispeech-4gram" in str(caught.value.hint)


@pytest.mark.parametrize(("name", "theirs"), PUBLISHED.items())
def test_published_models_are_downloaded_by_torchaudio(
    name: str, theirs: str, arpa: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(model: str) -> SimpleNamespace:
        asked.append(model)
        return SimpleNamespace(lm=str(arpa), lexicon=str(arpa.with_name("lexicon.txt")), tokens="tokens.txt")

    monkeypatch.setattr(torchaudio.models.decoder, "download_pretrained_files", download)
    model = open_language_model(name)
    assert (model.path, model.lexicon) == (arpa, arpa.with_name("lexicon.txt"))
    assert asked == [theirs]


@pytest.mark.parametrize("name", PUBLISHED.values())
def test_torchaudio_knows_the_published_names(name: str) -> None:
    pytest.importorskip("flashlight.lib.text")
    from torchaudio.models.decoder import _ctc_decoder

    files = _ctc_decoder._get_filenames(name)
    assert files.lm.endswith("lm.bin")
    assert files.lexicon.endswith("lexicon.txt")


def test_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(model: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchaudio.models.decoder, "download_pretrained_files", download)
    with pytest.raises(DataError, match="cannot download the language model librispeech-4gram") as caught:
        open_language_model("librispeech-4gram")
    assert caught.value.details == ("no route to host",)


def test_a_file_of_a_published_name_is_that_file(arpa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(arpa.parent)
    arpa.rename("librispeech-4gram")
    assert open_language_model("librispeech-4gram").path == Path("librispeech-4gram")


def test_without_flashlight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchaudio.models.decoder._ctc_decoder", raising=False)
    monkeypatch.delattr(torchaudio.models.decoder, "_ctc_decoder", raising=False)
    monkeypatch.delitem(vars(torchaudio.models.decoder), "download_pretrained_files", raising=False)
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder", None)
    for needs_it in (lambda: flashlight("decoder"), lambda: open_language_model("librispeech-4gram")):
        with pytest.raises(UsageError, match="flashlight-text") as caught:
            needs_it()
        assert "parp-cli[lm]" in str(caught.value.hint)


def test_kenlm_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_loading():
        os.write(2, b"Loading the LM\n")
    print("said afterwards", file=sys.stderr)
    assert capfd.readouterr().err == "said afterwards\n"
