"""What an encoder expects of its input: samples at 16 kHz, normalised if the model was trained so."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from parp_cli.models.speech.config import Architecture

# transformers' value. fairseq and torchaudio take layer_norm's 1e-5, which differs for near silence alone; with
# this one a model and its Hugging Face export agree from the waveform on.
EPSILON = 1e-7


def normalize(waveform: Tensor, architecture: Architecture) -> Tensor:
    """Bring each utterance to zero mean and unit variance, if the architecture wants it.

    Args:
        waveform: one utterance (S,), or utterances of equal length (B, S). Padding counts as audio, so
            normalise before padding.
        architecture: says whether to.

    Returns:
        The same shape; the same tensor where nothing is to be done.
    """
    if not architecture.normalize_waveform:
        return waveform
    centred = waveform - waveform.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + EPSILON).sqrt()
