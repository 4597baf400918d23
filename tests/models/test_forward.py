from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.models.architectures import Architecture, build, frames
from parp_cli.models.forward import encode, front_end, pad
from parp_cli.models.waveform import normalize
from tests.models.small import SMALL, randomise, waveform

LENGTHS = (4_000, 1_500, 2_777, 260)
SMALLS = pytest.mark.parametrize("architecture", SMALL.values(), ids=SMALL.keys())


def model_of(architecture: Architecture, vocabulary_size: int | None = 7, **options: Any) -> Any:
    return randomise(build(architecture, vocabulary_size=vocabulary_size, **options))


def features_of(model: Any, architecture: Architecture) -> list[Tensor]:
    return [front_end(model, architecture, waveform(n, seed=n)[0]) for n in LENGTHS]


@SMALLS
@pytest.mark.parametrize("vocabulary_size", [7, None])
def test_one_utterance_is_torchaudios(architecture: Architecture, vocabulary_size: int | None) -> None:
    model = model_of(architecture, vocabulary_size)
    with torch.inference_mode():
        for samples in LENGTHS:
            wave = waveform(samples, seed=samples)
            found = encode(model, *pad([front_end(model, architecture, wave[0])]))
            expected, _ = model(normalize(wave, architecture))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@SMALLS
def test_padding_changes_nothing(architecture: Architecture) -> None:
    model = model_of(architecture)
    with torch.inference_mode():
        features = features_of(model, architecture)
        together, lengths = pad(features)
        logits = encode(model, together, lengths)
        assert logits.shape == (len(LENGTHS), max(lengths), 7)
        for row, item in enumerate(features):
            alone = encode(model, *pad([item]))[0]
            torch.testing.assert_close(logits[row, : len(item)], alone, atol=1e-4, rtol=1e-4)
        # Whatever is in the padding, nobody hears it.
        noise = together.clone()
        for row, item in enumerate(features):
            noise[row, len(item) :] = 100.0
        other = encode(model, noise, lengths)
        for row, item in enumerate(features):
            torch.testing.assert_close(other[row, : len(item)], logits[row, : len(item)], atol=1e-4, rtol=1e-4)


@SMALLS
def test_half_the_precision_gives_nearly_the_same(architecture: Architecture) -> None:
    model = model_of(architecture)
    with torch.inference_mode():
        together, lengths = pad(features_of(model, architecture))
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = encode(model, together, lengths).float()
        expected = encode(model, together, lengths)
        throughout = encode(model.bfloat16(), together.bfloat16(), lengths).float()
        for row, length in enumerate(lengths):
            for found in (under_autocast, throughout):
                assert (found - expected)[row, :length].square().mean() < 0.02 * expected[row, :length].square().mean()


def test_pad() -> None:
    batch, lengths = pad([torch.ones(2, 3), torch.ones(4, 3)])
    assert batch.shape == (2, 4, 3)
    assert batch[0].sum() == 6
    assert lengths.tolist() == [2, 4]


@SMALLS
def test_the_front_end_makes_the_frames_that_were_announced(architecture: Architecture) -> None:
    model = model_of(architecture)
    for item, samples in zip(features_of(model, architecture), LENGTHS, strict=True):
        assert item.shape == (frames(architecture, samples), 16)


def test_features_are_altered_before_the_transformer() -> None:
    architecture = SMALL["hubert-large"]
    model = model_of(architecture)
    together, lengths = pad(features_of(model, architecture))
    seen: list[tuple[torch.Size, list[int]]] = []

    def alter(hidden: Tensor, given: Tensor) -> Tensor:
        seen.append((hidden.shape, given.tolist()))
        return hidden + 1

    with torch.inference_mode():
        plain, altered = encode(model, together, lengths), encode(model, together, lengths, alter=alter)
    assert seen == [(torch.Size([len(LENGTHS), together.shape[1], 32]), lengths.tolist())]
    assert not torch.allclose(plain, altered)


@pytest.mark.parametrize("name", ["wav2vec2-group-norm", "hubert-large", "wavlm-base", "wavlm-large"])
def test_layers_are_dropped_as_often_as_asked_and_only_in_training(name: str) -> None:
    architecture, trials, probability = SMALL[name], 200, 0.3
    model = model_of(architecture, layer_drop=probability)
    features = pad([front_end(model, architecture, waveform(260)[0]).detach()])
    runs = [0] * len(model.encoder.transformer.layers)
    for index, layer in enumerate(model.encoder.transformer.layers):

        def count(*_: Any, index: int = index) -> None:
            runs[index] += 1

        layer.register_forward_hook(count)
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(trials):
            encode(model, *features)
        assert runs == [trials] * len(runs)
        model.train()
        for _ in range(trials):
            assert encode(model, *features).isfinite().all()
    first, *others = (count - trials for count in runs)
    if name.startswith("wavlm"):
        assert first == trials  # it makes the position bias of all
    else:
        others.append(first)
    slack = 4 * (trials * probability * (1 - probability)) ** 0.5
    assert all(abs(count - trials * (1 - probability)) < slack for count in others)
