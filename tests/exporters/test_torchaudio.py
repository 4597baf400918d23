from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torchaudio.models import wav2vec2_model, wavlm_model

from parp_cli.errors import CheckpointError, ResourceError, UsageError
from parp_cli.exporters import torchaudio as exporter
from parp_cli.exporters.torchaudio import export_torchaudio
from parp_cli.models.sources.names import MASK_EMBEDDING
from parp_cli.models.speech.config import build
from parp_cli.storage.atomic import write_error
from tests.models.oracle import builder_of
from tests.models.small import OF_TORCHAUDIO, SMALL, randomise, waveform


@pytest.mark.parametrize("size", [None, 6], ids=["bare", "ctc"])
@pytest.mark.parametrize("name", OF_TORCHAUDIO)
def test_torchaudios_builder_loads_it(name: str, size: int | None, tmp_path: Path) -> None:
    ours = randomise(build(SMALL[name], vocabulary_size=size))
    mask_embedding = torch.rand(SMALL[name].width)  # their models have no place for it
    weights = {**ours.state_dict(), MASK_EMBEDDING: mask_embedding}
    export_torchaudio(SMALL[name], weights, tmp_path / "deep" / "model.pt")
    builder = wavlm_model if SMALL[name].family == "wavlm" else wav2vec2_model
    theirs = builder(**builder_of(SMALL[name]), aux_num_out=size).eval()
    theirs.load_state_dict(torch.load(tmp_path / "deep" / "model.pt", weights_only=True))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(waveform())[0], ours(waveform())[0], atol=1e-4, rtol=1e-4)
    assert all(torch.equal(weight, weights[name]) for name, weight in theirs.state_dict().items())
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["model.pt"]


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        export_torchaudio(SMALL["hubert-base"], {}, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def on_a_full_disk(path: Path) -> Iterator[Path]:
        try:
            yield Path("/dev/full")
        except OSError as error:
            raise write_error(path, error) from error

    monkeypatch.setattr(exporter, "replacing", on_a_full_disk)
    with pytest.raises(ResourceError, match="no space left"):
        export_torchaudio(SMALL["hubert-base"], build(SMALL["hubert-base"]).state_dict(), tmp_path / "model.pt")


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError):
        export_torchaudio(SMALL["hubert-base"], build(SMALL["hubert-base"]).state_dict(), tmp_path / "out" / "model.pt")


def test_a_network_that_torchaudio_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="torchaudio has no data2vec-audio"):
        export_torchaudio(SMALL["data2vec"], build(SMALL["data2vec"]).state_dict(), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())
