"""Needs the extra `demo`, except where espeak-ng is replaced."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from parp_cli.data import espeak, generated
from parp_cli.data.audio import SAMPLE_RATE, read_audio
from parp_cli.data.generated import SPLITS, cache_folder, ensure_split, speakers
from parp_cli.data.labels import letters_vocabulary, phones_vocabulary
from parp_cli.data.librispeech import librispeech_splits, load_librispeech
from parp_cli.data.phrases import Grammar, languages
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError, ResourceError, UsageError

for module in ("espeakng_loader", "babel"):
    pytest.importorskip(module, reason="generated speech comes with the extra demo")

MINUTES = 0.7  # two speakers


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


OTHERS = [code for code in languages() if code != "en"]


def seconds(utterances: list[Utterance]) -> float:
    return sum(utterance.seconds for utterance in utterances)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short split of each part and condition."""
    root = tmp_path_factory.mktemp("generated")
    for split in ("train-10min", "dev-clean", "dev-other", "test-clean"):
        assert ensure_split(split, root=root, minutes=MINUTES) == root
    return root


def test_the_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    for split in ("dev-clean", "dev-other"):
        ensure_split(split, root=tmp_path, minutes=MINUTES)
        assert hashes(tmp_path / split) == hashes(root / split)


def test_english_is_what_the_bundled_encoder_and_the_published_results_were_made_with(root: Path) -> None:
    """Of another release of espeak-ng or Babel it may be other English."""
    texts = b"".join(path.read_bytes() for path in sorted((root / "dev-clean").rglob("*.txt")))
    assert hashlib.sha256(texts).hexdigest() == "b9b1f4f3aaef51be9ed8e9fdee345037a1519148b3f652cdac4e9802c8fa8c5c"
    first = speakers("dev")[0]
    assert first == (3000, espeak.Voice(language="en-us", variant="victor", pitch=55, rate=190))


def test_another_seed_gives_others(root: Path, tmp_path: Path) -> None:
    ensure_split("dev-clean", root=tmp_path, minutes=MINUTES, seed=1)
    ours, others = load_librispeech(root, "dev-clean"), load_librispeech(tmp_path, "dev-clean")
    assert not {u.text for u in ours} & {u.text for u in others}
    assert speakers("train", 0) != speakers("train", 1)


def test_splits_are_librispeechs() -> None:
    named = {"train-10min": 10, "train-1h": 60, "dev-clean": 5, "dev-other": 5, "test-clean": 10, "test-other": 10}
    assert {split: SPLITS[split].minutes for split in named} == named
    assert {split for split, plan in SPLITS.items() if plan.condition == "other"} == {
        split for split in SPLITS if split.endswith("-other")
    }


def test_one_split_has_enough_speakers_to_tell_small_differences() -> None:
    plan = SPLITS["test-voices"]
    voices = [voice for _, voice in speakers("test", tracts=generated._TRACTS)][: plan.speakers]
    assert len({(voice.variant, voice.tract, voice.pitch) for voice in voices}) > 100
    assert plan.minutes * 60 / plan.speakers > generated._MIN_SECONDS


@pytest.mark.parametrize("tracts", [(1.0,), generated._TRACTS])
def test_the_parts_share_no_voice(tracts: tuple[float, ...]) -> None:
    parts = {part: speakers(part, tracts=tracts) for part in ("train", "dev", "test")}
    variants = [{voice.variant for _, voice in those} for those in parts.values()]
    assert not set.intersection(*variants)
    assert sum(map(len, variants)) == len(set.union(*variants))
    numbers = [number for those in parts.values() for number, _ in those]
    assert len(numbers) == len(set(numbers))
    for plan in SPLITS.values():
        if plan.tracts and tracts == (1.0,):
            continue
        chosen = [voice for _, voice in parts[plan.part][: plan.speakers]]
        assert len(set(chosen)) == plan.speakers
        assert len({voice.variant for voice in chosen}) >= min(plan.speakers, 10)


def test_the_parts_share_no_sentence(root: Path) -> None:
    texts = {split: {u.text for u in load_librispeech(root, split)} for split in librispeech_splits(root)}
    assert not texts["train-10min"] & (texts["dev-clean"] | texts["dev-other"] | texts["test-clean"])
    assert not texts["test-clean"] & (texts["dev-clean"] | texts["dev-other"])


@pytest.mark.parametrize("split", ["train-10min", "dev-clean", "dev-other", "test-clean"])
def test_the_loader_reads_it(split: str, root: Path) -> None:
    utterances = load_librispeech(root, split)
    assert 0.85 * MINUTES * 60 <= seconds(utterances) <= MINUTES * 60
    assert len({utterance.speaker for utterance in utterances}) == 2
    letters = letters_vocabulary()
    for utterance in utterances:
        assert utterance.text is not None
        assert utterance.phones is not None
        assert len(letters.encode(utterance)) == len(utterance.text)
        # espeak-ng runs some words together, as in "of the"
        assert len(utterance.text.split()) - 2 <= len(utterance.phones) <= len(utterance.text.split())


def test_phones(root: Path) -> None:
    utterances = [u for split in librispeech_splits(root) for u in load_librispeech(root, split)]
    assert len(phones_vocabulary(utterances)) > 30


@pytest.mark.parametrize("split", ["dev-clean", "dev-other"])
def test_neither_silent_nor_clipped(split: str, root: Path) -> None:
    for utterance in load_librispeech(root, split):
        samples = read_audio(utterance.audio)
        assert len(samples) == round(utterance.seconds * SAMPLE_RATE)
        assert samples.abs().max() == pytest.approx(0.5, abs=1e-3)
        assert samples.square().mean().sqrt() > 0.01
        assert (samples.abs() > 0.499).float().mean() < 0.01


def test_other_is_what_poor_recordings_make_of_the_same() -> None:
    voice = speakers("dev")[0][1]
    (speech,) = espeak.synthesise(voice, ["THE BRIDGE IS NINE MILES LONG"], seconds=9)
    clean = generated._record(speech, "clean", torch.Generator().manual_seed(0))
    differ = 0
    for seed in range(6):
        other = generated._record(speech, "other", torch.Generator().manual_seed(seed))
        assert other.shape == clean.shape
        differ += not torch.equal(other, clean)
    assert differ >= 4  # each of three effects is left out now and then


@pytest.mark.parametrize("language", OTHERS)
def test_other_languages(language: str, tmp_path: Path) -> None:
    folder = ensure_split("test-clean", root=tmp_path, language=language, minutes=MINUTES)
    assert folder == tmp_path / language
    utterances = load_librispeech(folder, "test-clean")
    assert 0.85 * MINUTES * 60 <= seconds(utterances) <= MINUTES * 60
    assert len({utterance.speaker for utterance in utterances}) == 2
    assert all(utterance.id.startswith(f"{language}5") for utterance in utterances)
    letters = letters_vocabulary(utterances)
    for utterance in utterances:
        assert utterance.text
        assert utterance.phones
        assert utterance.text == letters.decode(letters.encode(utterance)).lower()
        # A syllable of Chinese is a word to espeak-ng.
        assert len(utterance.phones) > 0.7 * len(utterance.text.split())
        samples = read_audio(utterance.audio)
        assert samples.abs().max() == pytest.approx(0.5, abs=1e-3)
    phones = [phone for utterance in utterances for word in utterance.phones or () for phone in word]
    assert 20 < len(set(phones)) < 120
    assert any(phone.startswith("ˈ") for phone in phones)


def test_languages_share_no_id_and_no_voice_between_parts() -> None:
    voices = {
        (language, part): {
            voice.variant for _, voice in speakers(part, voice=Grammar(language).voice, tracts=generated._TRACTS)
        }
        for language in ("en", "zh")
        for part in ("train", "dev", "test")
    }
    assert voices["en", "train"] == voices["zh", "train"]
    assert not voices["en", "train"] & voices["zh", "test"]


def test_voices_of_one_variant_differ_in_their_vocal_tracts() -> None:
    """A tract shorter by 10 % has formants higher by as much, and speaks no faster."""
    text = ["SHE SPEAKS GREEK AND DUTCH AND HE LEARNED LATIN IN CHAD"]
    spoken = {}
    for tract in (generated._TRACTS[0], 1.0, generated._TRACTS[-1]):
        voice = espeak.Voice(language="en-us", variant="m3", pitch=45, rate=160, tract=tract)
        (speech,) = espeak.synthesise(voice, text, seconds=60)
        samples = generated._record(speech, "clean", torch.Generator())
        power = torch.stft(samples, 1024, window=torch.hann_window(1024), return_complex=True).abs().square().sum(1)
        share = power.cumsum(0) / power.sum()
        spoken[tract] = (len(samples) / SAMPLE_RATE, float((share < 0.9).sum()))
        assert len(samples) == pytest.approx(speech.seconds * SAMPLE_RATE, abs=2)
    lengths = [length for length, _ in spoken.values()]
    assert max(lengths) < 1.1 * min(lengths)
    edges = [edge for _, edge in spoken.values()]
    assert edges[0] < edges[1] < edges[2]


def test_an_unknown_language(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="in tlh") as caught:
        ensure_split("dev-clean", root=tmp_path, language="tlh")
    assert "zh" in (caught.value.hint or "")


def test_what_is_there_is_not_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "_Making", None)
    ensure_split("dev-clean", root=root, minutes=MINUTES)


@pytest.mark.parametrize("other", [{"seed": 1}, {"minutes": 1.0}, {"minutes": None}])
def test_what_is_there_must_be_what_is_wanted(other: dict[str, float | None], root: Path) -> None:
    with pytest.raises(DataError, match="generated otherwise") as caught:
        ensure_split("dev-clean", root=root, **{"minutes": MINUTES, **other})  # type: ignore[arg-type]
    assert list(other) == [detail.split(":")[0] for detail in caught.value.details]


def test_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARP_CACHE", str(tmp_path / "parp"))
    found = ensure_split("dev-clean", minutes=0.1)
    assert found.parent == tmp_path / "parp" / "generated"
    for part in ("seed0", "0.1min", "babel"):
        assert part in found.name
    monkeypatch.setenv("PARP_CACHE", "~/parp")
    assert cache_folder() == Path.home() / "parp"
    monkeypatch.setenv("PARP_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "parp"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "parp"


def test_progress(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    ensure_split("dev-clean", root=tmp_path, minutes=MINUTES, progress=lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]


def test_an_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dev-cleen") as caught:
        ensure_split("dev-cleen", root=tmp_path)
    assert "dev-clean" in (caught.value.hint or "")


@pytest.mark.parametrize("minutes", [0.0, -1.0, 0.001])
def test_too_short_for_a_sentence(minutes: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sentence fits"):
        ensure_split("dev-clean", root=tmp_path, minutes=minutes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["espeakng_loader", "babel"])
def test_without_the_extra(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setitem(sys.modules, module, None)
    if module == "espeakng_loader":
        monkeypatch.setattr("importlib.metadata.version", not_installed)
    with pytest.raises(UsageError, match=r"Babel|espeakng-loader") as caught:
        ensure_split("dev-clean", root=tmp_path)
    assert "demo" in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_split("dev-clean", root=tmp_path, minutes=MINUTES, progress=fail)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceError, match="no space left"):
        ensure_split("dev-clean", root=tmp_path, minutes=MINUTES)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(UsageError, match="root"):
        ensure_split("dev-clean", root=tmp_path / "root", minutes=MINUTES)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_kill_leaves_no_split(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from parp_cli.data.generated import ensure_split; "
    program += "ensure_split('dev-clean', root=Path(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".dev-clean-*/*/*/*.flac")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".dev-clean-")
    assert librispeech_splits(tmp_path) == []
    # Someone may still be at it now, but not after an hour.
    ensure_split("test-clean", root=tmp_path, minutes=0.2)
    assert left.exists()
    os.utime(left, (0, 0))
    ensure_split("dev-clean", root=tmp_path, minutes=0.2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev-clean", "test-clean"]


def test_two_at_once(tmp_path: Path) -> None:
    both = threading.Barrier(2)
    failures: list[BaseException] = []

    def meet(done: int, total: int) -> None:
        if done == total:
            both.wait(timeout=300)

    def run() -> None:
        try:
            ensure_split("dev-clean", root=tmp_path, minutes=MINUTES, progress=meet)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [path.name for path in tmp_path.iterdir()] == ["dev-clean"]
    assert json.loads((tmp_path / "dev-clean" / "generated.json").read_text())["minutes"] == MINUTES
