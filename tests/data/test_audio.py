from pathlib import Path

import numpy
import pytest
import soundfile
import torch

from parp_cli.data.audio import SAMPLE_RATE, audio_seconds, can_resample, read_audio
from parp_cli.errors import DataError


def peak_hertz(samples: torch.Tensor) -> float:
    spectrum = torch.fft.rfft(samples).abs()
    return float(spectrum.argmax()) * SAMPLE_RATE / len(samples)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (8_000, 1), (44_100, 2), (48_000, 1)])
def test_any_format_rate_and_channel_count_becomes_16_khz_mono(tmp_path, write_tone, suffix, rate, channels):
    path = write_tone(tmp_path / f"a.{suffix}", seconds=1.0, rate=rate, channels=channels)
    samples = read_audio(path)
    assert samples.dtype == torch.float32
    assert samples.dim() == 1
    assert len(samples) == pytest.approx(SAMPLE_RATE, rel=0.02 if suffix == "mp3" else 0.001)
    assert peak_hertz(samples) == pytest.approx(440, abs=2)
    assert float(samples[4000:12000].abs().max()) == pytest.approx(0.5, abs=0.05)
    assert audio_seconds(path) == pytest.approx(1.0, rel=0.02)


def test_channels_are_averaged(tmp_path):
    left_right = numpy.stack([numpy.full(100, 0.5), numpy.full(100, -0.25)], axis=1)
    soundfile.write(tmp_path / "a.wav", left_right, SAMPLE_RATE, subtype="FLOAT")
    assert torch.equal(read_audio(tmp_path / "a.wav"), torch.full((100,), 0.125))


def test_16_bit_samples_are_exact(tmp_path):
    samples = numpy.array([0, 1, -32768, 32767], dtype=numpy.int16)
    soundfile.write(tmp_path / "a.flac", samples, SAMPLE_RATE)
    assert torch.equal(read_audio(tmp_path / "a.flac") * 32768, torch.tensor([0.0, 1.0, -32768.0, 32767.0]))


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 32_000, 44_056, 44_100, 47_952, 48_000, 96_000, 384_000])
def test_usual_rates_are_resampled(rate):
    assert can_resample(rate)


@pytest.mark.parametrize("rate", [7999, 15_999, 22_049, 44_101, 2**31 - 1])
def test_rates_whose_filter_would_fill_the_memory_are_refused(tmp_path, write_tone, rate):
    """Of one second at 22,049 Hz torchaudio would make 16,000 samples with 6 GB and in a minute."""
    assert not can_resample(rate)
    if rate < 50_000:
        assert_refused(write_tone(tmp_path / "a.wav", rate=rate), f"{rate:,} Hz have no simple ratio to 16,000 Hz")


def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        read_audio(path)
    assert str(path) in caught.value.message
    assert reason in caught.value.details[0]
    assert caught.value.hint


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "it is a folder"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.write_bytes(b"not a sound at all"), "Format not recognised"),
        (lambda path: soundfile.write(path, numpy.zeros(0), SAMPLE_RATE), "no samples"),
    ],
    ids=["missing", "folder", "empty", "foreign", "no samples"],
)
def test_missing_and_unreadable_files_are_named_with_a_reason(tmp_path, make, reason):
    path = tmp_path / "a.wav"
    make(path)
    assert_refused(path, reason)
    with pytest.raises(DataError, match=r"cannot read audio .*a\.wav"):
        audio_seconds(path)


@pytest.mark.parametrize(("value", "at"), [(numpy.nan, "0.050"), (numpy.inf, "0.050")])
def test_samples_that_are_not_finite_are_refused_with_their_place(tmp_path, value, at):
    samples = numpy.zeros(1600, dtype=numpy.float32)
    samples[800:] = value
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    assert_refused(tmp_path / "a.wav", f"at {at} s is not a finite number")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.85])
def test_a_file_that_is_cut_short_is_refused(tmp_path, write_tone, suffix, share):
    path = write_tone(tmp_path / f"a.{suffix}", seconds=3.0)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert_refused(path, "")


def test_a_wav_from_a_pipe_leaves_its_length_open_and_is_read(tmp_path, write_tone):
    path = write_tone(tmp_path / "a.wav")
    content = path.read_bytes()
    size = content.index(b"data") + 4
    path.write_bytes(content[:4] + b"\xff" * 4 + content[8:size] + b"\xff" * 4 + content[size + 4 :])
    assert len(read_audio(path)) == 8000


def test_a_flac_without_a_length_is_read_to_its_end(tmp_path, write_tone):
    path = write_tone(tmp_path / "a.flac")
    whole = read_audio(path)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert torch.equal(read_audio(path), whole)
    assert audio_seconds(path) == len(whole) / SAMPLE_RATE
