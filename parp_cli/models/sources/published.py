"""The pre-trained weights that torchaudio publishes, downloaded into torch's hub folder."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from parp_cli.errors import CheckpointError, DataError
from parp_cli.models.sources import torch_files
from parp_cli.models.sources.names import Encoder, fit
from parp_cli.models.speech.config import ARCHITECTURES
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage.download import download

# Where torchaudio.pipelines' bundles are downloaded from.
BASE_URL = "https://download.pytorch.org/torchaudio/models"

FILES = {
    "wav2vec2-base": "wav2vec2_fairseq_base_ls960.pth",
    "wav2vec2-large": "wav2vec2_fairseq_large_ls960.pth",
    "wav2vec2-large-lv60k": "wav2vec2_fairseq_large_lv60k.pth",
    "xlsr-53": "wav2vec2_fairseq_large_xlsr53.pth",
    "xls-r-300m": "wav2vec2_xlsr_300m.pth",
    "xls-r-1b": "wav2vec2_xlsr_1b.pth",
    "xls-r-2b": "wav2vec2_xlsr_2b.pth",
    "hubert-base": "hubert_fairseq_base_ls960.pth",
    "hubert-large": "hubert_fairseq_large_ll60k.pth",
    "hubert-xlarge": "hubert_fairseq_xlarge_ll60k.pth",
    "wavlm-base": "wavlm_base.pth",
    "wavlm-base-plus": "wavlm_base_plus.pth",
    "wavlm-large": "wavlm_large.pth",
}
"""Every published pre-trained encoder, by architecture."""


def load(name: str, notify: Notify = silent) -> Encoder:
    """The published encoder of an architecture, downloaded first if it is not in torch's hub folder.

    Raises:
        CheckpointError: it cannot be downloaded, or came broken.
        ResourceError: no space is left for it.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILES[name]
    if not path.exists():
        _download(f"{BASE_URL}/{FILES[name]}", path, notify)
    weights = torch_files.tensors(torch_files.load(path))
    if weights is None:
        raise CheckpointError(f"{path} holds no state dict", hint="delete it, and it is downloaded again")
    architecture = ARCHITECTURES[name]
    return Encoder(architecture, fit(weights, architecture, source=str(path)), None)


def _download(url: str, path: Path, notify: Notify) -> None:
    def progress(done: int, total: int) -> None:
        notify(Progress(f"downloading {path.name}", done, total, "bytes"))

    try:
        download(url, path, verify=_verify, progress=progress)
    except DataError as error:
        hint = f"try again later, or put the file at {path} by hand"
        raise CheckpointError(error.message, details=error.details, hint=hint) from error


def _verify(path: Path) -> None:
    """Check the CRC-32 of every record; torch's own reader does not, and the publisher gives no other checksum.

    Raises DataError: a record differs, or the file is no zip archive of records.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is no PyTorch file", details=[str(error)]) from error
    if broken is not None:
        raise DataError(f"{path} came broken", details=[f"{broken}: wrong checksum"])
