"""Cluster targets for masked prediction: acoustic or learned features, and k-means over them.

S samples, T frames of 20 ms, D features, K clusters.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from parp_cli.data.audio import SAMPLE_RATE
from parp_cli.data.streams import Stream
from parp_cli.errors import CheckpointError, DataError
from parp_cli.models.sources.names import MASK_EMBEDDING, without
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.forward import encode
from parp_cli.models.speech.waveform import normalize
from parp_cli.runtime.device import autocast
from parp_cli.runtime.progress import Notify, Progress
from parp_cli.storage.tensors import write_tensors

_KMEANS_FRAMES = 150_000
"""Frames that the clusters are found on, drawn from all speech; 50 minutes settle a hundred clusters."""

_FEATURE_CROP = 1000  # frames (20 s) at a time when learned features are computed for clustering

_FRAME_MS, _SHIFT_MS = 25.0, 20.0
"""The receptive field and stride of wav2vec 2.0's feature encoder at 16 kHz: one MFCC frame per frame of it."""


def mfcc_features(waveform: Tensor, sample_rate: int) -> Tensor:
    """13 MFCCs with first and second differences, normalised over the waveform.

    Normalising over a speaker's speech leaves less of the voice, and more of the phones, in the clusters. From floats
    (S,) in [-1, 1] to (T, 39) with T = floor((S - 400) / 320) + 1 at 16 kHz, the feature encoder's own frame count.
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


def stage_targets(
    path: Path,
    kind: str,
    clusters: int,
    streams: Sequence[Stream],
    architecture: Architecture,
    encoder: Mapping[str, Tensor] | None,
    *,
    seed: int,
    device: torch.device,
    precision: str,
    notify: Notify,
) -> list[Tensor]:
    """Clusters (T,) of every stream: read if they were kept at `path`, else computed and kept.

    What is clustered, the `kind`, is "mfcc", or "layer-N" for the output of Transformer layer N, from 1, with the
    weights of the encoder as the stage before left them. Raises DataError where there are fewer frames than clusters,
    and CheckpointError where the file is broken.
    """
    content = [[stream.name, stream.frames] for stream in streams]
    key = json.dumps([kind, clusters, seed, content]).encode()
    if path.exists():
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read", details=[str(error)], hint="start over without --resume"
            ) from error
        if bytes(tensors["key"].tolist()) == key:
            return [tensors[str(number)] for number in range(len(streams))]
    features = []
    for done, part in enumerate(_features(kind, streams, architecture, encoder, device, precision), start=1):
        features.append(part)
        notify(Progress(f"{kind} features", done, len(streams)))
    pool = torch.cat(features)
    if len(pool) < clusters:
        raise DataError(
            f"{len(pool)} frames of speech are too few for {clusters} clusters",
            hint="add speech, or ask for fewer clusters",
        )
    chosen = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:_KMEANS_FRAMES]
    centroids = kmeans(pool[chosen].float(), clusters, seed=seed)
    labels = [nearest(part.float(), centroids).to(torch.int16) for part in features]
    kept = {str(number): label for number, label in enumerate(labels)}
    write_tensors(path, {**kept, "key": torch.tensor(list(key), dtype=torch.uint8)})
    return labels


def _features(
    kind: str,
    streams: Sequence[Stream],
    architecture: Architecture,
    encoder: Mapping[str, Tensor] | None,
    device: torch.device,
    precision: str,
) -> Iterator[Tensor]:
    """What is clustered of each stream, (T, D)."""
    if kind == "mfcc":
        yield from (mfcc_features(stream.cut(0, stream.frames), SAMPLE_RATE).half() for stream in streams)
        return
    assert encoder is not None, "the first stage clusters MFCCs"
    model: Any = build(architecture)
    model.load_state_dict(without(dict(encoder), [MASK_EMBEDDING]))
    model.to(device).eval()
    for stream in streams:
        with torch.inference_mode(), autocast(precision, device):
            parts = []
            for first in range(0, stream.frames, _FEATURE_CROP):
                waveform = stream.cut(first, min(_FEATURE_CROP, stream.frames - first)).to(device)
                outputs = layer_output(model, normalize(waveform, architecture), int(kind.removeprefix("layer-")))
                parts.append(outputs.half().cpu())
        yield torch.cat(parts)


def layer_output(model: Any, waveform: Tensor, number: int) -> Tensor:
    """What Transformer layer `number`, from 1, makes (T, D) of a normalised waveform (S,)."""
    outputs: list[Tensor] = []
    hook = model.layers[number - 1].register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0]))
    try:
        features, _ = model.feature_extractor(waveform[None], None)
        encode(model, features, torch.tensor([features.shape[1]]), skip=range(number, len(model.layers)))
    finally:
        hook.remove()
    return outputs[0][0]
