"""The front end in slices is the front end."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from parp_cli.models.speech.config import build
from parp_cli.models.speech.forward import front_end
from parp_cli.models.speech.moments import MomentCounter, frame_samples
from parp_cli.models.speech.slices import feature_slices
from tests.models.small import SMALL, randomise, waveform


def pieces(samples: Tensor, seed: int) -> Iterator[Tensor]:
    """In blocks of random lengths, some of them shorter than a frame."""
    generator = torch.Generator().manual_seed(seed)
    while len(samples):
        count = int(torch.randint(1, 900, (), generator=generator))
        yield samples[:count]
        samples = samples[count:]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", ["wav2vec2-group-norm", "wav2vec2-layer-norm", "wavlm-base"])
@pytest.mark.parametrize("samples", [4_000, 3_999, 1_234, 70])
def test_slices_equal_the_whole(kind: str, normalize: bool, samples: int) -> None:
    from dataclasses import replace

    architecture = replace(SMALL[kind], normalize_waveform=normalize)
    model = randomise(build(architecture)).eval()
    wave = waveform(samples)[0]
    # Louder at the end: a slice's own statistics would be others than the whole's.
    wave = wave * torch.linspace(0.1, 2, samples) + 0.3
    whole = front_end(model, architecture, wave).detach()  # with gradients it is torchaudio's own
    counter = MomentCounter(architecture)
    for block in pieces(wave, seed=1):
        counter.add(block)
    for seconds in (0.01, 0.05, 10.0):
        blocks = pieces(wave, seed=2)
        found = list(feature_slices(model, architecture, blocks, counter.moments, seconds=seconds))
        torch.testing.assert_close(torch.cat(found), whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))
        assert len(found) == max(1, -(-len(whole) // max(1, round(seconds * 16_000 / frame_samples(architecture)))))


def test_moments_are_those_of_the_whole() -> None:
    architecture = SMALL["wav2vec2-group-norm"]
    wave = waveform(2_345)[0].double()
    counter = MomentCounter(architecture)
    for block in pieces(wave, seed=3):
        counter.add(block)
    moments = counter.moments
    _, kernel, stride = architecture.conv_layers[0]
    windows = wave.unfold(0, kernel, stride)
    assert moments.samples == 2_345
    assert moments.mean == pytest.approx(float(wave.mean()))
    assert moments.variance == pytest.approx(float(wave.var(unbiased=False)))
    torch.testing.assert_close(moments.window_mean, windows.mean(0))
    torch.testing.assert_close(moments.window_covariance, windows.T.cov(correction=0))


def test_too_short_for_a_frame() -> None:
    architecture = SMALL["wav2vec2-group-norm"]
    model = build(architecture).eval()
    counter = MomentCounter(architecture)
    counter.add(torch.ones(5))
    assert list(feature_slices(model, architecture, [torch.ones(5)], counter.moments, seconds=1.0)) == []
