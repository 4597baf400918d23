"""Cluster targets for masked prediction: acoustic or learnt features, and k-means over them.

T frames of 20 ms, D features, K clusters.
"""

import torch
from torch import Tensor

_FRAME_MS, _SHIFT_MS = 25.0, 20.0
"""The receptive field and stride of wav2vec 2.0's front end at 16 kHz: one MFCC frame a front-end frame."""


def mfcc_features(waveform: Tensor, sample_rate: int) -> Tensor:
    """13 MFCCs with first and second differences, normalised over the waveform.

    Normalising over a speaker's speech leaves less of the voice and more of the sounds in the clusters.

    Args:
        waveform: (S,) floats in [-1, 1].
        sample_rate: Hz.

    Returns:
        (T, 39) with T = floor((S - 400) / 320) + 1 at 16 kHz, the front end's own frame count.
    """
    from torchaudio.compliance import kaldi
    from torchaudio.functional import compute_deltas

    cepstra = kaldi.mfcc(
        waveform[None] * 32768,
        sample_frequency=sample_rate,
        frame_length=_FRAME_MS,
        frame_shift=_SHIFT_MS,
        dither=0.0,
        use_energy=False,
    ).T
    first = compute_deltas(cepstra)
    features = torch.cat([cepstra, first, compute_deltas(first)]).T
    return (features - features.mean(0)) / features.std(0, correction=0).clamp_min(1e-5)


def nearest(features: Tensor, centroids: Tensor) -> Tensor:
    """Index (T,) of the nearest of `centroids` (K, D) for each of `features` (T, D)."""
    # |f - c|² without |f|², which is the same for every c.
    return torch.addmm(centroids.square().sum(1), features, centroids.T, alpha=-2.0).argmin(1)


def kmeans(features: Tensor, clusters: int, *, seed: int, iterations: int = 30) -> Tensor:
    """Centroids (K, D) by Lloyd's algorithm over `features` (T, D), starting from random frames.

    A cluster that loses all its frames starts again at a random frame.
    """
    generator = torch.Generator().manual_seed(seed)
    centroids = features[torch.randperm(len(features), generator=generator)[:clusters]].clone()
    for _ in range(iterations):
        owner = nearest(features, centroids)
        counts = torch.bincount(owner, minlength=clusters)
        sums = torch.zeros_like(centroids).index_add_(0, owner, features)
        centroids = sums / counts.clamp_min(1)[:, None]
        empty = counts == 0
        if empty.any():
            fresh = torch.randint(len(features), (int(empty.sum()),), generator=generator)
            centroids[empty] = features[fresh]
    return centroids
