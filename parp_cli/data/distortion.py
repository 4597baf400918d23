"""What rooms, noise and telephones do to speech. S samples at `SAMPLE_RATE`."""

import torch
from torch import Tensor
from torchaudio.functional import fftconvolve, highpass_biquad, lowpass_biquad

from parp_cli.data.audio import SAMPLE_RATE


def distorted(samples: Tensor, generator: torch.Generator) -> Tensor:
    """Waveform (S,) with reverberation (0.15 to 0.4 s), noise (10 to 25 dB below the speech) and a band limit.

    Each of them with a probability of 0.6.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def applies() -> bool:
        return uniform(0, 1) < 0.6

    count = len(samples)
    if applies():
        t60 = uniform(0.15, 0.4)
        time = torch.arange(int(t60 * SAMPLE_RATE)) / SAMPLE_RATE
        tail = torch.randn(len(time), generator=generator) * torch.exp(-6.9 * time / t60)
        response = tail * (uniform(0.05, 0.15) / tail.square().sum().sqrt().clamp_min(1e-9)) * 10
        response[0] = 1.0
        samples = fftconvolve(samples, response)[:count]
    if applies():
        noise = torch.randn(count, generator=generator)
        noise = lowpass_biquad(noise, SAMPLE_RATE, uniform(800, 6000))
        level = samples.square().mean().sqrt() / noise.square().mean().sqrt()
        samples = samples + noise * level * 10 ** (-uniform(10, 25) / 20)
    if applies():
        samples = highpass_biquad(samples, SAMPLE_RATE, uniform(100, 300))
        samples = lowpass_biquad(samples, SAMPLE_RATE, uniform(2800, 4500))
    return samples
