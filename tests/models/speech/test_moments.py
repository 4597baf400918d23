"""Moments of a waveform."""

import pytest
import torch

from parp_cli.models.speech.moments import moments_of
from tests.models.small import SMALL, waveform


def test_moments_are_those_of_the_whole() -> None:
    architecture = SMALL["wav2vec2-group-norm"]
    wave = waveform(2_345)[0].double()
    moments = moments_of(architecture, wave)
    _, kernel, stride = architecture.conv_layers[0]
    windows = wave.unfold(0, kernel, stride)
    assert moments.mean == pytest.approx(float(wave.mean()))
    assert moments.variance == pytest.approx(float(wave.var(unbiased=False)))
    torch.testing.assert_close(moments.window_mean, windows.mean(0))
    torch.testing.assert_close(moments.window_covariance, windows.T.cov(correction=0))
