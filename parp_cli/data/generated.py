"""The generated corpora, one per language: synthetic read speech in LibriSpeech's layout, deterministic in the seed.

Speakers are espeak-ng voice variant × pitch × rate, and, except in most splits of English, × length of the vocal tract.
Train, dev and test have disjoint variants and sentences. The "other" splits add reverberation, noise and band limits.
"""

import io
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import soundfile
import torch
from torch import Tensor
from torchaudio.functional import resample

from parp_cli.data import espeak
from parp_cli.data.audio import SAMPLE_RATE
from parp_cli.data.distortion import distorted
from parp_cli.data.phrases import Grammar, Part
from parp_cli.errors import DataError
from parp_cli.storage.atomic import write_error

_RECORD = "generated.json"  # in the folder of a split: what it was generated with
_PEAK = 0.5  # amplitude of an utterance, full scale being 1
_ENGLISH = "en"  # the language whose splits lie under the corpus's folder itself, and not in a folder of its own there

_PITCHES, _RATES = (25, 35, 45, 55, 65, 75), (130, 145, 160, 175, 190)
_TRACTS = tuple(1 + step * 400 / espeak.SAMPLE_RATE for step in range(-6, 8))  # of rates with simple ratios to 16 kHz

# Effects rather than voices: whispering, creaking, robots, speeds.
_NOT_SPEAKERS = ("whisper", "croak", "demonic", "robo", "unirobot", "tweaky", "fast", "anikarobot", "klatt")


@dataclass(frozen=True, kw_only=True)
class Split:
    """What a split is made of."""

    part: Part  # of the voices and sentences
    minutes: float  # upper limit: there is a little less, as nothing is cut off
    speakers: int
    condition: Literal["clean", "other"] = "clean"  # "other" imitates poor recordings
    tracts: bool = False  # whether vocal tracts differ in English too


SPLITS: dict[str, Split] = {
    "train-10min": Split(part="train", minutes=10, speakers=30),
    "train-1h": Split(part="train", minutes=60, speakers=90),
    "dev-clean": Split(part="dev", minutes=5, speakers=15),
    "dev-other": Split(part="dev", minutes=5, speakers=15, condition="other"),
    "test-clean": Split(part="test", minutes=10, speakers=24),
    "test-other": Split(part="test", minutes=10, speakers=24, condition="other"),
    # Enough speakers to tell small differences between systems.
    "test-voices": Split(part="test", minutes=60, speakers=120, tracts=True),
    # For pre-training, which ignores the transcripts.
    "pretrain-clean": Split(part="train", minutes=600, speakers=600),
    "pretrain-other": Split(part="train", minutes=120, speakers=120, condition="other"),
    "pretrain-voices": Split(part="train", minutes=600, speakers=1800, tracts=True),
}

_MIN_SECONDS = 20.0  # per speaker, so that what the last sentence leaves unused is a small part of it
_STALE_SECONDS = 3600.0  # an incomplete split that did not change for so long is that of a killed process

_FIRST_SPEAKER: dict[Part, int] = {"train": 1000, "dev": 3000, "test": 5000}


def cache_folder() -> Path:
    """`$PARP_CACHE`, else `parp` in the user's cache folder."""
    if own := os.environ.get("PARP_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parp"


def speakers(
    part: Part, seed: int = 0, *, voice: str = "en-us", tracts: Sequence[float] = (1.0,)
) -> list[tuple[int, espeak.Voice]]:
    """All speakers of a part with their numbers, in random order; no variant belongs to two parts, in any language."""
    rng = random.Random(f"{seed}/speakers")
    variants = [name for name in espeak.variants() if not name.lower().startswith(_NOT_SPEAKERS)]
    rng.shuffle(variants)
    held_out = len(variants) // 6
    first, end = {"dev": (0, held_out), "test": (held_out, 2 * held_out), "train": (2 * held_out, None)}[part]
    all_settings = list(product(_PITCHES, _RATES, tracts))
    settings = {variant: rng.sample(all_settings, k=len(all_settings)) for variant in variants[first:end]}
    # Each variant is used once before any is used again, so that few speakers are many voices.
    voices = [
        espeak.Voice(language=voice, variant=variant, pitch=pitch, rate=rate, tract=tract)
        for turn in range(len(all_settings))
        for variant, order in settings.items()
        for pitch, rate, tract in [order[turn]]
    ]
    return list(enumerate(voices[:2000], start=_FIRST_SPEAKER[part]))  # those of the next part begin there


def ensure_split(
    split: str,
    *,
    root: Path | None = None,
    language: str = _ENGLISH,
    seed: int = 0,
    minutes: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Generate a split in LibriSpeech's layout unless it exists, and return the folder that contains it.

    Args:
        split: a key of `SPLITS`.
        root: the corpus's folder; by default one in the user's cache, named after what determines its content.
        language: one of `phrases.languages()`. All but English have folders of their own in `root`, and numbers of
            speakers that begin with it.
        seed: of sentences, voices and conditions.
        minutes: replaces the split's own length, with fewer speakers if it is much shorter.
        progress: called with the number of finished speakers and of all.

    Raises:
        DataError: there is no such split or language, no sentence fits into `minutes`, or `root` has another seed or
            length of it.
        UsageError: the extra `demo` is not installed, or the folder cannot be written to.
        ResourceError: no space is left on the disk.
    """
    if split not in SPLITS:
        raise DataError(f"the generated corpus has no split {split}", hint="it has " + ", ".join(SPLITS))
    plan = SPLITS[split] if minutes is None else replace(SPLITS[split], minutes=minutes)
    grammar = Grammar(language)
    versions = espeak.versions() | grammar.versions
    if root is None:
        tag = "-".join(f"{name.lower()}{version}" for name, version in versions.items())
        suffix = "" if minutes is None else f"-{minutes:g}min"
        root = cache_folder() / "generated" / f"seed{seed}-{tag}{suffix}"
    root = root if language == _ENGLISH else root / language
    own = {"split": split, "seed": seed} | ({} if minutes is None else {"minutes": minutes})
    if not (root / split).is_dir():
        try:
            _Making(split, plan, grammar, seed).write(root / split, {**own, "versions": versions}, progress)
        except OSError as error:
            raise write_error(root / split, error) from error
    _check_record(own, root / split)
    return root


@dataclass(frozen=True)
class _Making:
    """A split that is being made."""

    split: str
    plan: Split
    grammar: Grammar
    seed: int

    def write(self, target: Path, record: Mapping[str, Any], progress: Callable[[int, int], None] | None) -> None:
        """Generate the split completely or not at all: in a folder beside the target, which is then renamed."""
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            self._write_speakers(folder, progress)
            if next(folder.glob("*/*/*.flac"), None) is None:
                needed = f"a minute is enough for {self.split}"
                raise DataError(f"no sentence fits into {self.plan.minutes:g} minutes", hint=needed)
            (folder / _RECORD).write_text(json.dumps(record, sort_keys=True) + "\n")
            folder.chmod(0o755)
            try:
                folder.rename(target)
            except OSError:
                if not target.is_dir():  # another process has generated the same split meanwhile
                    raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write_speakers(self, folder: Path, progress: Callable[[int, int], None] | None) -> None:
        plan, grammar = self.plan, self.grammar
        count = min(plan.speakers, max(1, int(plan.minutes * 60 / _MIN_SECONDS)))
        tracts = _TRACTS if plan.tracts or grammar.language != _ENGLISH else (1.0,)
        chosen = speakers(plan.part, self.seed, voice=grammar.voice, tracts=tracts)[:count]
        write = partial(self._write_speaker, folder, plan.minutes * 60 / len(chosen))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for done, _ in enumerate(pool.map(write, chosen), start=1):
                    if progress is not None:
                        progress(done, len(chosen))
            except BaseException:  # Ctrl-C must not wait for the remaining speakers either
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _write_speaker(self, folder: Path, seconds: float, speaker: tuple[int, espeak.Voice]) -> None:
        number, voice = speaker
        is_english = self.grammar.language == _ENGLISH
        name = str(number) if is_english else f"{self.grammar.language}{number}"
        rng = random.Random(f"{self.seed}/{self.split}/{name}")
        sentences = self.grammar.sentences(self.plan.part, rng)
        texts = [next(sentences) for _ in range(int(seconds) + 2)]  # hardly any sentence is shorter than a second
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        chapter = folder / name / "1"
        chapter.mkdir(parents=True)
        speeches = espeak.synthesise(voice, texts, seconds=seconds, seed=self.seed)
        phones = [speech.phones for speech in speeches]
        if not is_english:  # what espeak-ng says of its phones while it speaks lacks stress and tone
            phones = espeak.phonemise(self.grammar.voice, [speech.text for speech in speeches])
        transcripts, transcriptions = [], []
        for index, speech in enumerate(speeches):
            id_ = f"{name}-1-{index:04d}"
            samples = _record(speech, self.plan.condition, generator)
            flac = io.BytesIO()  # not the file itself: libsndfile does not report a full disk
            soundfile.write(flac, samples.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            (chapter / f"{id_}.flac").write_bytes(flac.getvalue())
            transcripts.append(f"{id_} {speech.text}\n")
            transcriptions.append(f"{id_} " + " | ".join(" ".join(word) for word in phones[index]) + "\n")
        (chapter / f"{name}-1.trans.txt").write_text("".join(transcripts), encoding="utf-8")
        (chapter / f"{name}-1.phones.txt").write_text("".join(transcriptions), encoding="utf-8")


def _remove_stale(root: Path) -> None:
    """Remove incomplete splits of killed processes."""
    for split in SPLITS:
        for folder in root.glob(f".{split}-*"):
            with suppress(OSError):  # another process may have renamed or removed it
                if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)


def _check_record(own: Mapping[str, Any], folder: Path) -> None:
    """Refuse a split generated with another seed or length; one without a record is accepted."""
    try:
        record = json.loads((folder / _RECORD).read_text())
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / _RECORD} cannot be read", details=[str(error)], hint=f"delete {folder}") from error
    details = [
        f"{key}: {record.get(key, 'its own')} instead of {own.get(key, 'its own')}"
        for key in ("seed", "minutes")
        if record.get(key) != own.get(key)
    ]
    if details:
        raise DataError(f"{folder} was generated otherwise", details=details, hint="name another folder, or delete it")


def _record(speech: espeak.Speech, condition: Literal["clean", "other"], generator: torch.Generator) -> Tensor:
    """The waveform (S,) at `SAMPLE_RATE`, as recorded under a condition."""
    samples = torch.frombuffer(bytearray(speech.pcm), dtype=torch.int16).float() / 32768
    samples = resample(samples, speech.rate, SAMPLE_RATE)
    if condition == "other":
        samples = distorted(samples, generator)
    return samples * (_PEAK / samples.abs().max().clamp_min(1e-9))
