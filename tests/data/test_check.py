"""Each fault has its line, and what was read once is not read again."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy
import pytest
import soundfile

from parp_cli.data import audio, inspection
from parp_cli.data.audio import AudioInfo, inspect_audio, read_audio
from parp_cli.data.check import ProblemKind, check_utterances, notes_of, refusal, with_digits
from parp_cli.data.inspection import Unreadable, inspect_files
from parp_cli.data.labels import letters_vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.runtime.progress import Progress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the cache."""
    return tmp_path / "cache"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were decoded."""
    names: list[str] = []

    def counted(path: Path) -> AudioInfo:
        names.append(path.name)
        return inspect_audio(path)

    monkeypatch.setattr(inspection, "inspect_audio", counted)
    return names


@pytest.fixture
def noise(tmp_path: Path) -> Callable[..., Path]:
    """Writes noise of its own for each name."""

    def write(name: str, *, seconds: float = 0.5, rate: int = 16_000, **options: Any) -> Path:
        rng = numpy.random.default_rng(sum(name.encode()))
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(round(seconds * rate)), rate, **options)
        return tmp_path / name

    return write


def not_a_number(path: Path) -> None:
    samples = numpy.zeros(1600, dtype=numpy.float32)
    samples[800] = numpy.nan
    soundfile.write(path, samples, 16_000, subtype="FLOAT")


def cut(path: Path) -> None:
    soundfile.write(path, numpy.random.default_rng(0).standard_normal(8000) / 9, 16_000)
    path.write_bytes(path.read_bytes()[:9000])


FAULTS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str, str]] = {
    "gone": (lambda path: None, {}, "missing audio", "there is no such file"),
    "folder": (lambda path: path.mkdir(), {}, "unreadable audio", "it is a folder"),
    "bytes": (lambda path: path.write_bytes(b""), {}, "unreadable audio", "it is empty: 0 bytes"),
    "foreign": (lambda path: path.write_bytes(b"no sound at all"), {}, "unreadable audio", "Format not recognised."),
    "samples": (
        lambda path: soundfile.write(path, numpy.zeros(0), 16_000),
        {},
        "unreadable audio",
        "it holds no samples",
    ),
    "cut": (cut, {}, "unreadable audio", "it is cut short: 0.28 s can be decoded"),
    "nan": (not_a_number, {}, "unreadable audio", "a sample at 0.050 s is not a finite number"),
    "silent": (
        lambda path: soundfile.write(path, numpy.full(8000, 0.25), 16_000),
        {},
        "silence",
        "all of its samples are the same",
    ),
    "slow": (
        lambda path: soundfile.write(path, numpy.random.default_rng(0).standard_normal(2000) / 9, 4000),
        {},
        "sampling rate",
        "4,000 Hz: speech needs at least 8,000 Hz",
    ),
    "off": (None, {"seconds": 0.7}, "wrong length", "0.50 s, but the corpus says 0.70 s"),
    "short": (
        lambda path: soundfile.write(path, numpy.arange(300) / 999, 16_000),
        {"seconds": 0.01875},
        "too short",
        "0.019 s make no frame",
    ),
    "crammed": (
        None,
        {"text": "ALL" * 6 + "BEGGAR"},
        "more labels than frames",
        "24 labels need 31 frames, but it has 25",
    ),
    "odd": (None, {"text": "A2Ä"}, "outside vocabulary", "letters outside the vocabulary: 2 Ä"),
    "bare": (None, {"text": None}, "no label", "no letters"),
}  # type: ignore[assignment]


def frames(samples: int) -> int:
    return samples // 320


def make(name: str, tmp_path: Path, noise: Callable[..., Path]) -> Utterance:
    write, fields, _, _ = FAULTS[name]
    path = tmp_path / f"{name}.wav"
    noise(path.name) if write is None else write(path)
    values = {"id": name, "audio": path, "split": "train", "seconds": 0.5, "text": "ALL", **fields}
    if name == "nan":
        values["seconds"] = 0.1
    return Utterance(**values)


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_line(name: str, tmp_path: Path, folder: Path, noise: Callable[..., Path]) -> None:
    good = Utterance(id="good", audio=noise("good.wav"), split="train", seconds=0.5, text="ALL")
    bad = make(name, tmp_path, noise)
    sounds = inspect_files([good.audio, bad.audio], cache=folder)
    problems = check_utterances([good, bad], "train", sounds, letters_vocabulary(), frames)
    _, _, kind, what = FAULTS[name]
    assert [(problem.utterance_id, problem.kind, problem.what) for problem in problems] == [(name, kind, what)]
    assert problems[0].message == f"{name}: {what} (train, {bad.audio})"


def test_all_faults_of_all_splits_are_in_one_message(tmp_path: Path, folder: Path, noise: Callable[..., Path]) -> None:
    bad = [make(name, tmp_path, noise) for name in FAULTS]
    sounds = inspect_files([utterance.audio for utterance in bad], cache=folder)
    problems = [
        problem
        for split, some in (("train", bad[::-2]), ("dev", bad[-2::-2]))
        for problem in check_utterances(some, split, sounds, letters_vocabulary(), frames)
    ]
    error = refusal(problems, ["also this"])
    assert error.message == (
        "14 problems with the utterances of train and dev (unreadable audio 6, missing audio 1, silence 1, "
        "sampling rate 1, wrong length 1, too short 1, more labels than frames 1, outside vocabulary 1, no label 1)"
    )
    lines = iter(error.details)
    kinds = Counter(problem.kind for problem in problems)
    for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], get_args(ProblemKind).index(item[0]))):
        assert next(lines).startswith(f"{kind} ({count}): "), "and a remedy"
        assert [next(lines) for _ in range(count)] == [f"  {each.message}" for each in problems if each.kind == kind]
    assert list(lines) == ["also this"]
    assert "data.unusable=skip" in (error.hint or "")


def test_the_frequent_kind_is_not_hidden_behind_the_rare_one(tmp_path: Path, folder: Path) -> None:
    noise = 0.1 * numpy.random.default_rng(0).standard_normal(16_000)
    soundfile.write(tmp_path / "a.wav", noise, 16_000)
    many = [
        Utterance(
            id=f"u{number:04}",
            audio=tmp_path / ("a.wav" if number >= 67 else "gone.wav"),
            split="train",
            seconds=1,
            text="É" if number >= 67 else "A",
        )
        for number in range(1234)
    ]
    sounds = inspect_files([utterance.audio for utterance in many], cache=folder)
    problems = check_utterances(many, "train", sounds, letters_vocabulary(), frames)
    error = refusal(problems, [])
    assert error.message == ("1,234 problems with the utterances of train (outside vocabulary 1,167, missing audio 67)")
    heading, *examples = error.details[:5]
    assert heading.startswith("outside vocabulary (1,167): take the letters of the transcripts with --set data.alph")
    assert [line.split(":")[0].strip() for line in examples] == ["u0067", "u0068", "u0069", "… and 1,164 more"]
    heading, *examples = error.details[5:]
    assert heading.startswith("missing audio (67): check the paths")
    assert [line.split(":")[0].strip() for line in examples] == ["u0000", "u0001", "u0002", "… and 64 more"]
    assert "data.alphabet" not in refusal(problems, [], alphabet="found").details[0], "which was done"


def test_lengths_and_loud_sounds_that_can_be_trained_on(tmp_path: Path, folder: Path) -> None:
    square = numpy.sign(numpy.sin(numpy.arange(64_000) / 20))  # as clipped as can be
    soundfile.write(tmp_path / "a.wav", square, 16_000)
    sounds = inspect_files([tmp_path / "a.wav"], cache=folder)
    for seconds in (3.91, 4.0, 4.09):
        utterance = Utterance(id="u", audio=tmp_path / "a.wav", split="train", seconds=seconds, text="A")
        assert not check_utterances([utterance], "train", sounds, letters_vocabulary(), frames)


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_sounds_are_as_long_as_they_are_read(tmp_path: Path, rate: int, channels: int) -> None:
    for samples in (1, 7, 997, 4410):
        path = tmp_path / f"{samples}.wav"
        soundfile.write(path, numpy.random.default_rng(0).standard_normal((samples, channels)) / 9, rate)
        sound = inspect_audio(path)
        assert (sound.samples, sound.rate, sound.channels, sound.silent) == (samples, rate, channels, samples == 1)
        assert sound.resampled == len(read_audio(path))
        assert sound.seconds == samples / rate


def test_channels_that_cancel_each_other_are_silent(tmp_path: Path) -> None:
    left = numpy.random.default_rng(0).integers(-999, 999, 800).astype(numpy.int16)
    soundfile.write(tmp_path / "a.wav", numpy.stack([left, -left], 1), 16_000)
    assert inspect_audio(tmp_path / "a.wav").silent


def test_unusual_sampling_rates(folder: Path, noise: Callable[..., Path]) -> None:
    def utterances(split: str, *rates: int) -> list[Utterance]:
        paths = [noise(f"{split}{number}.wav", rate=rate) for number, rate in enumerate(rates)]
        return [Utterance(id=path.stem, audio=path, split=split, seconds=0.5, text="A") for path in paths]

    train = utterances("train", 16_000, 16_000, 16_000, 44_100, 8_000, 8_000)
    dev, test = utterances("dev", 48_000), utterances("test", 16_000)
    sounds = inspect_files([utterance.audio for utterance in (*train, *dev, *test)], cache=folder)
    assert notes_of([("train", train), ("dev", dev), ("test", test)], sounds) == [
        "train: most audio is sampled at 16,000 Hz, but train4, train5 at 8,000 Hz; train3 at 44,100 Hz "
        "(all is resampled to 16,000 Hz, and lower rates lack high frequencies)",
        "dev: most audio is sampled at 16,000 Hz, but dev0 at 48,000 Hz (all is resampled to 16,000 Hz)",
    ]
    assert not check_utterances(train, "train", sounds, letters_vocabulary(), frames)
    assert notes_of([("dev", dev)], sounds) == []
    assert notes_of([("train", train), ("train", train[:4])], sounds) == notes_of([("train", train)], sounds)


# --------------------------------------------------------------------------------------------------------- the cache


def age(path: Path, seconds: float = 100.0) -> None:
    """As if the file had been written a while ago."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old enough to be known by their time at once."""
    monkeypatch.setattr(inspection, "_SETTLED_SECONDS", -10.0)


@pytest.mark.usefixtures("settled")
def test_the_second_time_nothing_is_opened(
    folder: Path, noise: Callable[..., Path], opened: list[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    paths = [noise("a.wav"), noise("b.flac", rate=8000), tmp_path / "bad.wav", tmp_path / "gone.wav"]
    first = inspect_files([*paths, *paths], cache=folder)
    assert sorted(opened) == ["a.wav", "b.flac", "bad.wav"]
    opened.clear()
    steps: list[Progress] = []
    assert inspect_files(paths, cache=folder, notify=steps.append) == first
    assert (opened, steps) == ([], [])
    assert first[tmp_path / "gone.wav"] == Unreadable("there is no such file", missing=True)


def test_changed_content_is_seen(folder: Path, noise: Callable[..., Path], opened: list[str]) -> None:
    path = noise("a.wav")
    size = path.stat().st_size
    age(path)
    inspect_files([path], cache=folder)
    soundfile.write(path, numpy.zeros(8000), 16_000)  # of the same size
    assert path.stat().st_size == size
    sound = inspect_files([path], cache=folder)[path]
    assert isinstance(sound, AudioInfo)
    assert sound.silent
    assert opened == ["a.wav", "a.wav"]


def test_a_file_of_just_now_is_not_known_by_its_time(folder: Path, noise: Callable[..., Path]) -> None:
    """It may change again with the same size and time."""
    path = noise("a.wav")
    for silent in (False, True):
        sound = inspect_files([path], cache=folder)[path]
        assert isinstance(sound, AudioInfo)
        assert sound.silent == silent
        before = path.stat()
        soundfile.write(path, numpy.zeros(8000), 16_000)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[1, 2]", b'{"version": "0, libsndfile 0", "files": {}}', None],
    ids=["empty", "foreign", "list", "version", "cut"],
)
@pytest.mark.usefixtures("settled")
def test_a_broken_cache_is_begun_anew(
    folder: Path, noise: Callable[..., Path], opened: list[str], content: bytes | None
) -> None:
    paths = [noise(f"{number}.wav") for number in range(40)]
    first = inspect_files(paths, cache=folder)
    (file,) = (folder / "audio").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 3] if content is None else content)
    opened.clear()
    assert inspect_files(paths, cache=folder) == first
    assert len(opened) == len(paths)
    assert inspect_files(paths, cache=folder) == first
    assert len(opened) == len(paths)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, noise: Callable[..., Path]) -> None:
    path = noise("a.wav")
    (tmp_path / "file").write_text("")
    assert isinstance(inspect_files([path], cache=tmp_path / "file" / "cache")[path], AudioInfo)


@pytest.mark.usefixtures("settled")
def test_what_was_read_before_an_interruption_is_kept(
    folder: Path, noise: Callable[..., Path], opened: list[str]
) -> None:
    paths = [noise(f"{number}.wav") for number in range(30)]

    def interrupt(step: Progress) -> None:
        if step.done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspect_files(paths, cache=folder, notify=interrupt)
    opened.clear()
    inspect_files(paths, cache=folder)
    assert len(opened) <= len(paths) - 10


@pytest.mark.usefixtures("settled")
def test_several_may_use_the_cache_at_once(folder: Path, noise: Callable[..., Path], opened: list[str]) -> None:
    paths = [noise(f"{number}.wav") for number in range(20)]
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(inspect_files(paths, cache=folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    opened.clear()
    assert found == [inspect_files(paths, cache=folder)] * 4
    assert opened == []


def test_what_may_pass_is_not_kept(
    folder: Path, noise: Callable[..., Path], opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk or the network may have failed, rather than the file."""
    path = noise("a.wav")

    def failing(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(audio, "_AudioFile", failing)
        assert inspect_files([path], cache=folder)[path] == Unreadable("Input/output error")
    assert isinstance(inspect_files([path], cache=folder)[path], AudioInfo)
    assert len(opened) == 2


def test_files_are_counted_as_they_are_read(folder: Path, noise: Callable[..., Path]) -> None:
    steps: list[Progress] = []
    inspect_files([noise("a.wav"), noise("b.wav")], cache=folder, notify=steps.append)
    assert steps == [Progress("checking audio", 1, 2), Progress("checking audio", 2, 2)]


@pytest.mark.slow
@pytest.mark.usefixtures("settled")
def test_processes_that_are_killed_leave_a_whole_cache(
    tmp_path: Path, folder: Path, noise: Callable[..., Path], opened: list[str]
) -> None:
    paths = [noise(f"{number}.wav", seconds=0.05) for number in range(200)]
    code = (
        "import sys; from pathlib import Path; from parp_cli.data import inspection\n"
        "inspection._SAVE_SECONDS, inspection._SETTLED_SECONDS = 0.0, -10.0\n"
        f"paths = sorted(Path({str(tmp_path)!r}).glob('*.wav'))\n"
        "print('ready', flush=True)\n"
        f"while True: inspection.inspect_files(paths, cache=Path({str(folder)!r})); [path.touch() for path in paths]\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        time.sleep(1.5)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    found = inspect_files(paths, cache=folder)
    assert len(opened) < len(paths), "what they noted is known"
    assert found == {path: inspect_audio(path) for path in paths}
    opened.clear()
    assert inspect_files(paths, cache=folder) == found
    assert opened == []


def test_digits_in_transcripts_are_told() -> None:
    texts = ["NUMERO 42", "NUMERO QUARANTADUE", "٤٢", None]
    some = [
        Utterance(id=f"u{number}", audio=Path(), split="train", seconds=1.0, text=text)
        for number, text in enumerate(texts)
    ]
    assert with_digits(some) == [
        "train: digits in 2 of 4 transcripts (u0, u2): each is a letter of its own; "
        "write numbers as words, as they are spoken"
    ]
    assert with_digits(some[1:2]) == with_digits([]) == []
