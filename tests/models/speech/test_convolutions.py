"""The front end by blocks is torchaudio's."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from parp_cli.models.speech import convolutions
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build, frames
from parp_cli.models.speech.convolutions import features_by_blocks
from parp_cli.models.speech.forward import front_end
from parp_cli.models.speech.waveform import normalize
from tests.models.small import SMALL, randomise, waveform


def torchaudios(architecture: Architecture, wave: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Features of the same weights by torchaudio's own modules."""
    model = randomise(build(architecture)).to(dtype)
    with torch.no_grad():
        found, _ = model.feature_extractor(normalize(wave.to(dtype), architecture)[None], None)
    features: Tensor = found[0]
    return features


@pytest.mark.parametrize("normalizes", [False, True])
@pytest.mark.parametrize("kind", ["wav2vec2-group-norm", "wav2vec2-layer-norm", "hubert-large"])
@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 20, 31])
def test_any_number_of_frames(kind: str, normalizes: bool, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "_BLOCK_FRAMES", 10)
    architecture = replace(SMALL[kind], normalize_waveform=normalizes)
    model = randomise(build(architecture))
    fewest = next(samples for samples in range(10_000) if frames(architecture, samples) == length)
    for samples in (fewest, fewest + 7, fewest + 19):  # 20 samples a frame
        # Louder at the end: a block's own statistics would be others than the whole's.
        wave = waveform(samples)[0] * torch.linspace(0.1, 2, samples)
        with torch.no_grad():
            found = features_by_blocks(model, architecture, wave)
        expected = torchaudios(architecture, wave)
        assert found.shape == expected.shape == (length, 16)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["wav2vec2-group-norm", "wav2vec2-layer-norm"])
@pytest.mark.parametrize(("level", "offset"), [(0.0, 0.0), (0.0, 0.5), (1e-6, 0.0), (1e-3, 0.9), (1.0, -0.9)])
def test_is_as_exact_as_torchaudios_for_any_sound(kind: str, level: float, offset: float) -> None:
    architecture = SMALL[kind]
    model = randomise(build(architecture))
    wave = waveform()[0] * level + offset
    with torch.no_grad():
        found = features_by_blocks(model, architecture, wave)
    exact = torchaudios(architecture, wave)
    theirs = torchaudios(architecture, wave, torch.float32)
    allowed = 5 * float((theirs - exact).abs().max()) + 1e-5 * float(exact.abs().max())
    assert float((found - exact).abs().max()) <= allowed


@pytest.mark.parametrize("name", ["wav2vec2-base", "xls-r-300m"])
def test_front_ends_that_are_released(name: str) -> None:
    architecture = ARCHITECTURES[name]
    with torch.device("meta"):
        model = build(architecture)
    extractor = model.feature_extractor.to_empty(device="cpu")
    randomise(extractor)
    wave = waveform(36_000)[0]
    with torch.no_grad():
        found = features_by_blocks(model, architecture, wave)
        expected = extractor(normalize(wave, architecture)[None], None)[0][0]
    assert found.shape == (112, 512)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_takes_weights_as_they_are_at_the_time() -> None:
    architecture, wave = SMALL["wav2vec2-group-norm"], waveform()[0]
    model = randomise(build(architecture))
    with torch.no_grad():
        before = front_end(model, architecture, wave)
        for parameter in model.feature_extractor.parameters():
            parameter.data.mul_(1.5)
        after = front_end(model, architecture, wave)
        expected, _ = model.feature_extractor(wave[None], None)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, expected[0], rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_gradients_go_torchaudios_way() -> None:
    architecture, wave = SMALL["wav2vec2-group-norm"], waveform()[0]
    model = randomise(build(architecture))
    with_gradients = front_end(model, architecture, wave)
    assert with_gradients.requires_grad
    with torch.no_grad():
        without = front_end(model, architecture, wave)
    assert not without.requires_grad
    assert not without.is_inference()
    torch.testing.assert_close(with_gradients.detach(), without, rtol=1e-4, atol=1e-5 * float(without.abs().max()))
