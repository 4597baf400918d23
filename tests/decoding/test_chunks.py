"""Chunks cover a recording once, with context; one chunk is the usual pass."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from parp_cli.data.audio import read_audio, waveform_blocks
from parp_cli.decoding.chunks import Chunking, logits_in_chunks, overlapping
from parp_cli.errors import CheckpointError, DataError
from parp_cli.models.speech.config import build
from parp_cli.models.speech.forward import encode, front_end, pad
from tests.models.small import SMALL, randomise

FRAME = 20 / 16_000
"""Seconds of a frame of the small architectures."""


def write(path: Path, samples: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    soundfile.write(path, 0.1 * rng.standard_normal(samples) * np.linspace(0.2, 3, samples), 16_000, subtype="FLOAT")
    return path


@pytest.mark.parametrize("frames", [1, 9, 10, 11, 14, 15, 16, 50, 53])
@pytest.mark.parametrize("block", [1, 7, 100])
@pytest.mark.parametrize(("step", "context"), [(10, 0), (6, 2), (1, 3)])
@pytest.mark.parametrize(("frame", "field"), [(1, 1), (4, 5), (3, 9)])
@pytest.mark.parametrize("rest", [0, 1])
def test_every_frame_is_kept_once_with_its_context(
    frames: int, block: int, step: int, context: int, frame: int, field: int, rest: int
) -> None:
    whole = torch.arange(float((frames - 1) * frame + field + min(rest, frame - 1)))
    kept, lasts = [], []
    for chunk, keep, last in overlapping(whole.split(block), frame, field, step, context):
        seen = chunk.unfold(0, field, frame)
        assert len(seen) <= step + 2 * context
        assert (chunk.diff() == 1).all()
        middle = seen[keep]
        assert len(middle)
        # What is around the middle is context, unless the recording itself ends there.
        assert keep.start >= context or chunk[0] == 0
        assert last or len(seen) - keep.stop >= context
        kept.append(middle)
        lasts.append(last)
    assert torch.equal(torch.cat(kept), whole.unfold(0, field, frame))
    assert lasts == [False] * (len(lasts) - 1) + [True]


def test_too_short_for_a_frame() -> None:
    with pytest.raises(DataError) as caught:
        list(overlapping([torch.ones(100), torch.ones(60)], 320, 400, 10, 2))
    assert caught.value.details == ("10 ms of audio are too short for the model",)


def looking_around(reach: int) -> Callable[[Tensor, Tensor], Tensor]:
    """An encoder whose logits depend on so many frames on each side, and no others."""
    weights = torch.randn(5, 16, 2 * reach + 1, generator=torch.Generator().manual_seed(0))

    def encoder(features: Tensor, lengths: Tensor) -> Tensor:
        del lengths
        return torch.nn.functional.conv1d(features.transpose(1, 2), weights, padding=reach).transpose(1, 2)

    return encoder


def test_joined_logits_are_the_undivided_ones(tmp_path: Path) -> None:
    """Where the model normalises nothing over time, so that no chunk has statistics of its own."""
    architecture = replace(SMALL["wav2vec2-layer-norm"], normalize_waveform=False)
    model = randomise(build(architecture, vocabulary_size=5)).eval()
    paths = [write(tmp_path / f"{n}.wav", samples, n) for n, samples in enumerate((9_000, 120, 20_000, 3_001))]
    encoder = looking_around(reach=8)

    def joined(context: int, batch_seconds: float) -> list[Tensor]:
        found: list[list[Tensor]] = [[] for _ in paths]
        ended: list[int] = []
        for piece in logits_in_chunks(
            model,
            architecture,
            map(waveform_blocks, paths),
            chunking=Chunking(60 * FRAME, context * FRAME),
            batch_seconds=batch_seconds,
            encoder=encoder,
        ):
            assert piece.recording not in ended
            found[piece.recording].append(piece.logits)
            if piece.last:
                ended.append(piece.recording)
        assert ended == [0, 1, 2, 3]
        return [torch.cat(parts) for parts in found]

    with torch.inference_mode():
        whole = [encoder(*pad([front_end(model, architecture, read_audio(path))]))[0] for path in paths]
    scale = max(float(item.abs().max()) for item in whole)
    for batch_seconds in (0.01, 0.2, 100.0):
        for left, right in zip(joined(8, batch_seconds), whole, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5 * scale)
    # With less context than it looks around, it shows.
    assert float((joined(4, 1.0)[2] - whole[2]).abs().max()) > 0.01 * scale


@pytest.mark.parametrize("kind", ["wav2vec2-group-norm", "wav2vec2-layer-norm", "wavlm-base"])
def test_the_batch_is_of_no_matter_and_one_chunk_is_the_usual_pass(kind: str, tmp_path: Path) -> None:
    architecture = SMALL[kind]
    model = randomise(build(architecture, vocabulary_size=5)).eval()
    paths = [write(tmp_path / f"{n}.wav", samples, n) for n, samples in enumerate((9_000, 2_000, 5_000))]

    def run(chunking: Chunking, batch_seconds: float) -> list[Tensor]:
        found: list[list[Tensor]] = [[] for _ in paths]
        recordings = map(waveform_blocks, paths)
        for piece in logits_in_chunks(model, architecture, recordings, chunking=chunking, batch_seconds=batch_seconds):
            found[piece.recording].append(piece.logits)
        return [torch.cat(parts) for parts in found]

    chunking = Chunking(100 * FRAME, 20 * FRAME)
    for left, right in zip(run(chunking, 0.001), run(chunking, 10.0), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        for path, logits in zip(paths, run(Chunking(10.0, 1.0), 10.0), strict=True):
            whole = encode(model, *pad([front_end(model, architecture, read_audio(path))]))[0]
            torch.testing.assert_close(logits, whole, rtol=1e-3, atol=1e-3)


def test_a_file_that_breaks_off_ends_alone() -> None:
    architecture = SMALL["wav2vec2-group-norm"]
    model = build(architecture, vocabulary_size=5).eval()

    def breaking() -> Iterator[Tensor]:
        yield torch.randn(3_000)
        raise DataError("cut short")

    recordings: list[Iterable[Tensor]] = [[torch.randn(3_000)], breaking(), [torch.randn(3_000)]]
    pieces = logits_in_chunks(model, architecture, recordings, chunking=Chunking(), batch_seconds=60)
    assert [(piece.recording, piece.last, type(piece.error)) for piece in pieces] == [
        (0, True, type(None)),
        (1, True, DataError),
        (2, True, type(None)),
    ]


def test_a_diverged_model_is_refused() -> None:
    architecture = SMALL["wav2vec2-group-norm"]
    model = build(architecture, vocabulary_size=5).eval()

    def encoder(features: Tensor, lengths: Tensor) -> Tensor:
        return torch.full((*features.shape[:2], 5), torch.nan)

    pieces = logits_in_chunks(
        model, architecture, [[torch.randn(3_000)]], chunking=Chunking(), batch_seconds=60, encoder=encoder
    )
    with pytest.raises(CheckpointError, match="non-finite logits"):
        list(pieces)


def test_chunks_that_keep_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="keep nothing"):
        Chunking(8.0, 4.0)
