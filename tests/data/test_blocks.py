"""Reading in blocks is reading at once."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from parp_cli.data import audio as module
from parp_cli.data.audio import AudioInfo, read_audio, waveform_blocks
from parp_cli.errors import DataError


def write(path: Path, seconds: float, rate: int, channels: int = 1, **options: str) -> Path:
    samples = 0.3 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    soundfile.write(path, np.clip(samples, -1, 1), rate, **options)
    return path


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.01, 2.0, 7.3])
def test_there_are_no_seams(rate: int, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_SECONDS", 1)
    path = write(tmp_path / "a.flac", seconds, rate, channels=2)
    report = AudioInfo()
    found = list(waveform_blocks(path, report))
    assert len(found) > seconds - 2
    torch.testing.assert_close(torch.cat(found), read_audio(path), rtol=0, atol=1e-6)
    assert (report.rate, report.channels, report.samples) == (rate, 2, round(seconds * rate))
    assert report.seconds == pytest.approx(seconds, abs=1e-3)
    assert not report.silent


@pytest.mark.parametrize("suffix", ["wav", "ogg", "mp3"])
def test_formats(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_SECONDS", 1)
    path = write(tmp_path / f"a.{suffix}", 3.5, 16_000)
    torch.testing.assert_close(torch.cat(list(waveform_blocks(path))), read_audio(path), rtol=0, atol=1e-6)


def test_silence_and_clipping_are_seen(tmp_path: Path) -> None:
    wave = 1.5 * np.sin(np.arange(16_000) / 20)
    share = np.count_nonzero(np.abs(wave) >= 1) / len(wave)
    for name, samples in {"loud": np.clip(wave, -1, 1), "right": wave / 2, "silent": np.full(16_000, 0.25)}.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000)
    reports = {}
    for name in ("loud", "right", "silent"):
        reports[name] = AudioInfo()
        list(waveform_blocks(tmp_path / f"{name}.wav", reports[name]))
    assert reports["loud"].clipped_share == pytest.approx(share, abs=0.02)
    assert reports["right"].clipped_share == 0
    assert reports["right"].peak_to_peak == pytest.approx(1.5, abs=0.01)
    assert [report.silent for report in reports.values()] == [False, False, True]


def test_a_length_left_open_is_read_to_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", 1.0, 16_000)
    whole = read_audio(path)
    content = bytearray(path.read_bytes())
    # STREAMINFO: the low 4 bits of byte 21 and the 4 bytes after it are the number of samples, 0 for unknown.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert torch.equal(read_audio(path), whole)
    assert torch.equal(torch.cat(list(waveform_blocks(path))), whole)


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_SECONDS", 1)
    good = write(tmp_path / "good.flac", 5.0, 16_000).read_bytes()
    (tmp_path / "cut.flac").write_bytes(good[: len(good) // 2])
    (tmp_path / "broken.flac").write_bytes(b"RIFF" + good[4:])
    wav = write(tmp_path / "good.wav", 5.0, 16_000).read_bytes()
    (tmp_path / "cut.wav").write_bytes(wav[: len(wav) // 2])
    (tmp_path / "none.wav").write_bytes(b"")
    soundfile.write(tmp_path / "no-samples.wav", np.zeros(0), 16_000)
    samples = np.zeros(40_000)
    samples[32_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "odd.wav", np.zeros(40_000), 44_101)
    expected = {
        "cut.flac": r"cut short|.",
        "broken.flac": ".",
        "cut.wav": r"cut short: 2\.50 s can be decoded",
        "none.wav": "empty: 0 bytes",
        "no-samples.wav": "holds no samples",
        "nan.wav": r"sample at 2\.000 s is not a finite number",
        "odd.wav": "no simple ratio",
        "missing.wav": "no such file",
    }
    for name, words in expected.items():
        with pytest.raises(DataError, match=name) as caught:
            list(waveform_blocks(tmp_path / name))
        assert caught.match(words)
