import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parp_cli.data.streams import FRAME, OVERHANG, Crops, Stream, read_streams, seconds_of
from parp_cli.errors import DataError
from parp_cli.models.speech.config import ARCHITECTURES, build, frames
from parp_cli.runtime.progress import Progress
from parp_cli.tasks.masked_prediction.targets import mfcc_features


def noise(samples: int, name: str = "a", seed: int = 0) -> Stream:
    generator = torch.Generator().manual_seed(seed)
    return Stream(name, torch.randint(-3000, 3000, (samples,), generator=generator, dtype=torch.int16))


@pytest.mark.parametrize("samples", [0, 1, 399, 400, 401, 719, 720, 16_000, 16_079, 16_080, 16_081])
@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda architecture: architecture.name)
def test_frames_are_every_front_ends(architecture, samples):
    assert noise(samples).frames == frames(architecture, samples)


def test_a_cut_is_as_many_frames_as_asked_for():
    front_end = build(ARCHITECTURES["mini"]).feature_extractor.eval()
    stream = noise(17_000)
    with torch.inference_mode():
        for first, count in [(0, 1), (0, 7), (3, 20), (stream.frames - 1, 1), (0, stream.frames)]:
            waveform = stream.cut(first, count)
            assert len(waveform) == count * FRAME + OVERHANG
            assert front_end(waveform[None], None)[0].shape[1] == count
            if count > 1:  # one frame has no deviation to be normalised by
                assert len(mfcc_features(waveform, 16_000)) == count


def test_a_cuts_frames_are_the_streams_frames():
    """Each frame of a cut sees the same samples as that frame of the whole stream does."""
    front_end = build(ARCHITECTURES["mini"]).feature_extractor.eval()
    stream = noise(10_000)
    with torch.inference_mode():
        whole = front_end(stream.cut(0, stream.frames)[None], None)[0][0]
        part = front_end(stream.cut(5, 10)[None], None)[0][0]
    torch.testing.assert_close(part, whole[5:15], atol=1e-4, rtol=1e-4)


def test_full_scale():
    stream = Stream("a", torch.tensor([-32768, 32767] * 200, dtype=torch.int16))
    assert stream.cut(0, 1).tolist() == [-1.0, 32767 / 32768] * 200


def test_speakers_are_joined_in_order(tmp_path: Path, write_tone: Callable[..., Path], make_utterance):
    utterances = [
        make_utterance(
            id=f"u{index}", audio=write_tone(tmp_path / f"{index}.wav", seconds=seconds, rate=rate), speaker=speaker
        )
        for index, (seconds, rate, speaker) in enumerate(
            [(0.5, 16_000, "x"), (0.2, 8_000, None), (0.3, 16_000, "x"), (0.1, 16_000, None)]
        )
    ]
    told: list[Progress] = []
    streams = read_streams(utterances, told.append)
    assert [(stream.name, len(stream.samples)) for stream in streams] == [("x", 12_800), ("u1", 3_200), ("u3", 1_600)]
    assert {stream.samples.dtype for stream in streams} == {torch.int16}
    assert seconds_of(streams) == 1.1
    assert (told[-1].done, told[-1].total) == (4, 4)


def test_crops_are_where_they_say():
    streams = [noise(5_000, "a"), noise(300, "short"), noise(9_000, "b", seed=1)]
    crops = Crops(streams, 10)
    assert [stream.name for stream in crops.streams] == ["a", "b"]
    places = crops.places(50, random.Random(0))
    waveforms = torch.stack([crops.cut(*place) for place in places])
    assert waveforms.shape == (50, 10 * FRAME + OVERHANG)
    for waveform, (index, first) in zip(waveforms, places, strict=True):
        assert 0 <= first <= crops.streams[index].frames - 10
        assert torch.equal(waveform, crops.streams[index].cut(first, 10))
    assert Crops(streams, 10).places(50, random.Random(0)) == places


def test_crops_are_uniform_over_all_places():
    streams = [noise(11 * FRAME + OVERHANG, "a"), noise(14 * FRAME + OVERHANG, "b")]  # 2 and 5 places
    places = Crops(streams, 10).places(7_000, random.Random(0))
    counts = {place: places.count(place) for place in set(places)}
    assert sorted(counts) == [(0, 0), (0, 1), *((1, first) for first in range(5))]
    assert all(850 < count < 1150 for count in counts.values())


def test_a_stream_of_just_one_crop():
    places = Crops([noise(10 * FRAME + OVERHANG)], 10).places(3, random.Random(0))
    assert places == [(0, 0)] * 3
    with pytest.raises(DataError, match=r"no speaker has 0\.205 s"):
        Crops([noise(10 * FRAME + OVERHANG - 1)], 10)


def test_no_speech():
    with pytest.raises(DataError, match="no speaker has"):
        Crops([], 10)
