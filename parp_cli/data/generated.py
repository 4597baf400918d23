"""The generated corpus: synthetic read English in LibriSpeech's layout, the same from the same seed.

Speakers are espeak-ng voice variant × pitch × rate. The variants of train, dev and test are disjoint, and so
are their sentences. The "other" splits add reverberation, noise and band limits.
"""

import io
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from parp_cli.data import espeak
from parp_cli.data.phrases import Grammar, Part
from parp_cli.errors import DataError
from parp_cli.storage.atomic import write_error

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SAMPLE_RATE = 16_000
"""Hz of the files written."""

_RECORD = "generated.json"
"""What a split was made with, in its folder."""

_PEAK = 0.5
"""Amplitude of the loudest sample of an utterance, full scale being 1."""

_LANGUAGE = "en-us"
_PITCHES = (25, 35, 45, 55, 65, 75)
_RATES = (130, 145, 160, 175, 190)

# Effects rather than voices: whispering, creaking, robots, speeds.
_NOT_SPEAKERS = ("whisper", "croak", "demonic", "robo", "unirobot", "tweaky", "fast", "anikarobot", "klatt")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Whose voices and sentences a split takes, how much of them, and how they are recorded.

    Attributes:
        part: of the voices and sentences.
        minutes: the most speech it has. There is a little less, as nothing is cut off.
        speakers: how many speakers share it.
        condition: "other" is what a poor recording would give.
    """

    part: Part
    minutes: float
    speakers: int
    condition: Literal["clean", "other"] = "clean"


SPLITS: dict[str, Split] = {
    "train-10min": Split(part="train", minutes=10, speakers=30),
    "train-1h": Split(part="train", minutes=60, speakers=90),
    "dev-clean": Split(part="dev", minutes=5, speakers=15),
    "dev-other": Split(part="dev", minutes=5, speakers=15, condition="other"),
    "test-clean": Split(part="test", minutes=10, speakers=24),
    "test-other": Split(part="test", minutes=10, speakers=24, condition="other"),
    # For pre-training, where nobody reads the transcripts.
    "pretrain-clean": Split(part="train", minutes=600, speakers=600),
    "pretrain-other": Split(part="train", minutes=120, speakers=120, condition="other"),
}

_LEAST_SECONDS = 20.0
"""Speech of each speaker, at least: what the last sentence leaves unused is then a small part of it."""

_STALE_SECONDS = 3600.0
"""A split in the making to which no speaker was added for so long is one that was killed."""

_FIRST_SPEAKER: dict[Part, int] = {"train": 1000, "dev": 3000, "test": 5000}


def cache_folder() -> Path:
    """Where generated corpora are kept: `$PARP_CACHE`, else `parp` in the user's cache folder."""
    own = os.environ.get("PARP_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parp"


def speakers(part: Part, seed: int = 0) -> list[tuple[int, espeak.Voice]]:
    """All speakers of a part with their numbers, in random order; no variant is in two parts."""
    rng = random.Random(f"{seed}/speakers")
    variants = [name for name in espeak.variants() if not name.lower().startswith(_NOT_SPEAKERS)]
    rng.shuffle(variants)
    held_out = len(variants) // 6
    chosen = {
        "dev": variants[:held_out],
        "test": variants[held_out : 2 * held_out],
        "train": variants[2 * held_out :],
    }[part]
    # One round over all variants before any speaks a second time, so that few speakers are many voices.
    voices = []
    settings = {
        v: rng.sample([(p, r) for p in _PITCHES for r in _RATES], k=len(_PITCHES) * len(_RATES)) for v in chosen
    }
    for turn in range(len(_PITCHES) * len(_RATES)):
        for variant in chosen:
            pitch, rate = settings[variant][turn]
            voices.append(espeak.Voice(language=_LANGUAGE, variant=variant, pitch=pitch, rate=rate))
    return [(_FIRST_SPEAKER[part] + index, voice) for index, voice in enumerate(voices)]


def ensure_split(
    split: str,
    *,
    root: Path | None = None,
    seed: int = 0,
    minutes: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Generate a split unless it is there already.

    Args:
        split: a key of `SPLITS`.
        root: the corpus's folder; by default one in the user's cache that is named after what decides its content.
        seed: of sentences, voices and conditions.
        minutes: less or more than the split's own length, with fewer speakers where it is much less; part of the
            default folder's name.
        progress: called with speakers done and speakers in all.

    Returns:
        The folder that holds `split` in LibriSpeech's layout.

    Raises:
        DataError: there is no such split, no sentence fits into `minutes`, or `root` holds the split with another
            seed or length.
        UsageError: the extra `demo` is not installed, or the folder cannot be written to.
        ResourceError: no space is left on the disk.
    """
    if split not in SPLITS:
        raise DataError(f"the generated corpus has no split {split}", hint="it has " + ", ".join(SPLITS))
    plan = SPLITS[split]
    versions = {**espeak.versions(), "Babel": _babel_version()}
    if root is None:
        tag = "-".join(f"{name.lower()}{version}" for name, version in versions.items())
        suffix = "" if minutes is None else f"-{minutes:g}min"
        root = cache_folder() / "generated" / f"seed{seed}-{tag}{suffix}"
    own = {"split": split, "seed": seed} | ({} if minutes is None else {"minutes": minutes})
    if not (root / split).is_dir():
        try:
            length = plan.minutes if minutes is None else minutes
            _generate(root / split, plan, length, {**own, "versions": versions}, progress)
        except OSError as error:
            raise write_error(root / split, error) from error
    _check_made_as(own, root / split)
    return root


def _generate(
    target: Path, plan: Split, minutes: float, record: Mapping[str, Any], progress: Callable[[int, int], None] | None
) -> None:
    """Make a split, complete or not at all: it is written into a folder beside it that is then moved into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target.parent)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        _write_split(partial, target.name, plan, minutes, record["seed"], progress)
        if next(partial.glob("*/*/*.flac"), None) is None:
            raise DataError(f"no sentence fits into {minutes:g} minutes", hint=f"a minute is enough for {target.name}")
        (partial / _RECORD).write_text(json.dumps(record, sort_keys=True) + "\n")
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # where it is, another process made the same split meanwhile
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_stale(root: Path) -> None:
    """Remove what runs that were killed have left of their splits."""
    for split in SPLITS:
        for folder in root.glob(f".{split}-*"):
            with suppress(OSError):  # another process may be at it, or have finished it
                if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)


def _check_made_as(own: Mapping[str, Any], folder: Path) -> None:
    """Refuse a split that another seed or length gave; one without a record is taken as it is."""
    try:
        found = json.loads((folder / _RECORD).read_text())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / _RECORD} cannot be read", details=[str(error)], hint=f"delete {folder}") from error
    details = [
        f"{key}: {found.get(key, 'its own')} there, {own.get(key, 'its own')} wanted"
        for key in ("seed", "minutes")
        if found.get(key) != own.get(key)
    ]
    if details:
        raise DataError(f"{folder} was generated otherwise", details=details, hint="name another folder, or delete it")


def _babel_version() -> str:
    Grammar()  # says what to install where Babel is missing
    import babel

    return str(babel.__version__)


def _write_split(
    folder: Path, split: str, plan: Split, minutes: float, seed: int, progress: Callable[[int, int], None] | None
) -> None:
    grammar = Grammar()
    count = min(plan.speakers, max(1, int(minutes * 60 / _LEAST_SECONDS)))
    chosen = speakers(plan.part, seed)[:count]
    seconds = minutes * 60 / len(chosen)

    def write(speaker: tuple[int, espeak.Voice]) -> None:
        _write_speaker(folder, split, plan, speaker, grammar, seconds, seed)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for done, _ in enumerate(pool.map(write, chosen), start=1):
                if progress is not None:
                    progress(done, len(chosen))
        except BaseException:  # Ctrl-C too must not wait for the speakers that are left
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_speaker(
    folder: Path,
    split: str,
    plan: Split,
    speaker: tuple[int, espeak.Voice],
    grammar: Grammar,
    seconds: float,
    seed: int,
) -> None:
    import soundfile
    import torch

    number, voice = speaker
    rng = random.Random(f"{seed}/{split}/{number}")
    sentences = grammar.sentences(plan.part, rng)
    texts = [next(sentences) for _ in range(int(seconds) + 2)]  # no sentence is shorter than a second
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    chapter = folder / str(number) / "1"
    chapter.mkdir(parents=True)
    transcripts, phones = [], []
    for index, speech in enumerate(espeak.synthesise(voice, texts, seconds=seconds, seed=seed)):
        name = f"{number}-1-{index:04d}"
        samples = _record(speech.pcm, plan.condition, generator)
        flac = io.BytesIO()  # not the file itself: libsndfile would not say that the disk is full
        soundfile.write(flac, samples.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        (chapter / f"{name}.flac").write_bytes(flac.getvalue())
        transcripts.append(f"{name} {speech.text}\n")
        phones.append(f"{name} " + " | ".join(" ".join(word) for word in speech.phones) + "\n")
    (chapter / f"{number}-1.trans.txt").write_text("".join(transcripts), encoding="utf-8")
    (chapter / f"{number}-1.phones.txt").write_text("".join(phones), encoding="utf-8")


def _record(pcm: bytes, condition: Literal["clean", "other"], generator: "torch.Generator") -> "Tensor":
    """The waveform (S,) at `SAMPLE_RATE` as a microphone would have taken it."""
    import torch
    import torchaudio

    samples = torch.frombuffer(bytearray(pcm), dtype=torch.int16).float() / 32768
    samples = torchaudio.functional.resample(samples, espeak.SAMPLE_RATE, SAMPLE_RATE)
    if condition == "other":
        samples = _degrade(samples, generator)
    return samples * (_PEAK / samples.abs().max().clamp_min(1e-9))


def _degrade(samples: "Tensor", generator: "torch.Generator") -> "Tensor":
    """Reverberation (0.15 to 0.4 s), noise (10 to 25 dB below the speech), a band limit: each with probability 0.6."""
    import torch
    import torchaudio

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
        samples = torchaudio.functional.fftconvolve(samples, response)[:count]
    if applies():
        noise = torch.randn(count, generator=generator)
        noise = torchaudio.functional.lowpass_biquad(noise, SAMPLE_RATE, uniform(800, 6000))
        level = samples.square().mean().sqrt() / noise.square().mean().sqrt()
        samples = samples + noise * level * 10 ** (-uniform(10, 25) / 20)
    if applies():
        samples = torchaudio.functional.highpass_biquad(samples, SAMPLE_RATE, uniform(100, 300))
        samples = torchaudio.functional.lowpass_biquad(samples, SAMPLE_RATE, uniform(2800, 4500))
    return samples
