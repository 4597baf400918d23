"""Turn audio files of any length into text, with the time of each word."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from parp_cli.data.audio import MUCH_CLIPPED, SAMPLE_RATE, AudioInfo, audio_seconds, waveform_blocks
from parp_cli.data.labels import Vocabulary, vocabulary_of
from parp_cli.decoding import timing
from parp_cli.decoding.chunks import Chunking, logits_in_chunks
from parp_cli.decoding.timing import Segment, Word, segments_of, text_of, words_of
from parp_cli.errors import DataError, UsageError
from parp_cli.models.recognizer import rebuild
from parp_cli.models.sources.load import load_masks
from parp_cli.models.speech.moments import frame_samples
from parp_cli.pruning.masks import check_meant_for, under
from parp_cli.runtime.device import tensor_cores
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import is_text, refuse_same, require_writable, set_aside, write_text
from parp_cli.storage.run_folder import require_head

STANDARD_INPUT = "-"

_STANDARD_INPUT_HINT = (
    "pipe in the bytes of a WAV, FLAC, OGG or MP3 file, such as those of `ffmpeg -i FILE -vn -f wav -`"
)

_QUIET = 2e-3  # between the lowest sample and the highest; 2 is full scale, so this is 60 dB below it


@dataclass(frozen=True, kw_only=True)
class Transcription:
    """Words, or phones, recognised in one file, what may be wrong with it, and where they were written, if anywhere."""

    file: str
    seconds: float
    text: str
    words: tuple[Word, ...]
    warnings: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The words as subtitles show them."""
        return tuple(segments_of(self.words))

    def rendered(self, layout: timing.Format, *, times: bool = False) -> str:
        """The content of a file: with times of each word too, "text" has one word per line; subtitles have none."""
        if layout == "srt":
            return timing.srt(self.segments)
        if layout == "vtt":
            return timing.vtt(self.segments)
        if layout == "json":
            return timing.json_text(self.file, self.seconds, self.text, self.segments, self.words if times else None)
        return timing.word_lines(self.words) if times else self.text + "\n"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A file that could not be transcribed: as it was named, why in one line, and what to do about it."""

    file: str
    reason: str
    hint: str | None


@dataclass(frozen=True, kw_only=True)
class TranscribeResult:
    """Results of all files, in the order in which they were named; seconds of work include reading."""

    checkpoint: Path
    transcriptions: tuple[Transcription, ...]
    failures: tuple[Failure, ...]
    audio_seconds: float
    seconds: float

    def error(self) -> DataError | None:
        """What to raise once all results are shown, if anything."""
        if not self.failures:
            return None
        count, total = len(self.failures), len(self.failures) + len(self.transcriptions)
        hints = dict.fromkeys(failure.hint for failure in self.failures if failure.hint)
        return DataError(
            f"{count} of {total} files could not be transcribed" if total > 1 else "the file could not be transcribed",
            details=[f"{_named(failure.file)}: {failure.reason}" for failure in self.failures],
            hint="; ".join(hints) or None,
        )


def transcribe(
    source: Path,
    files: Sequence[str],
    *,
    mask: Path | None = None,
    out: Path | None = None,
    layout: timing.Format = "text",
    times: bool = False,
    chunking: Chunking | None = None,
    batch_seconds: float = 60.0,
    device: torch.device | None = None,
    standard_input: BinaryIO | None = None,
    ready: Callable[[Transcription], None] | None = None,
    notify: Notify = silent,
) -> TranscribeResult:
    """Recognise files greedily, each in memory that does not depend on its length.

    A file that cannot be read is a failure in the result, and the others are transcribed.

    Args:
        source: a checkpoint with an output head.
        mask: a file with masks of the same model, under which it recognises; by default the checkpoint's own alone.
        files: paths, or "-" for the bytes of an audio file from standard input.
        out: a folder to write one file per audio file to; by default nothing is written.
        layout, times: of what is written, as `Transcription.rendered` has them.
        batch_seconds: padded audio in one forward pass. Does not change transcripts.
        standard_input: where "-" is read from; by default this process's.
        ready: is called with each transcription once it is done (and written), in the order of the files.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has no head.
        MaskError: the mask is not for the checkpoint's weights.
        UsageError: files are in each other's way, `out` cannot be written to, or standard input is closed.
    """
    targets = _targets(files, out, layout)
    stream = standard_input or getattr(sys.stdin, "buffer", None)
    if stream is None and STANDARD_INPUT in files:
        raise UsageError("standard input is closed", hint=_STANDARD_INPUT_HINT)
    content = checkpoint.read(source)
    require_head(source, content.metadata)
    vocabulary = vocabulary_of(source, content.metadata.task)
    if mask is not None:
        masks, _ = load_masks(mask)
        check_meant_for(mask, masks, content.weights, what=str(source))
        content = replace(content, weights=under(masks, content.weights))
    architecture, model = rebuild(content, device or torch.device("cpu"), source=str(source))
    began, done, total = time.monotonic(), 0.0, sum(map(_declared_seconds, files))
    work = [_Reading(file, targets[file]) for file in files]
    transcriptions: list[Transcription] = []
    failures: list[Failure] = []
    pieces = logits_in_chunks(
        model,
        architecture,
        (each.blocks(stream) for each in work),
        chunking=chunking or Chunking(),
        batch_seconds=batch_seconds,
    )
    with tensor_cores("float32"):
        for piece in pieces:
            reading = work[piece.recording]
            if piece.error is not None:
                failures.append(reading.failure(piece.error))
                warnings: tuple[str, ...] = (failures[-1].reason,)
            else:
                reading.path.append(piece.logits.argmax(-1))
                done += len(piece.logits) * frame_samples(architecture) / SAMPLE_RATE
                seconds = max(1, round(max(total, done)))  # not every file's header has its length
                notify(Progress("seconds transcribed", round(done), seconds))
                if not piece.last:
                    continue
                made = reading.transcription(vocabulary, frame_samples(architecture) / SAMPLE_RATE, layout, times)
                transcriptions.append(made)
                warnings = made.warnings
                if ready is not None:
                    ready(made)
            for warning in warnings:
                notify(Progress("transcribing", 0, 0, warning=f"{_named(reading.file)}: {warning}"))
    return TranscribeResult(
        checkpoint=source,
        transcriptions=tuple(transcriptions),
        failures=tuple(failures),
        audio_seconds=sum(item.seconds for item in transcriptions),
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True)
class _Reading:
    """A file on its way to its result."""

    file: str
    target: Path | None
    info: AudioInfo = field(default_factory=AudioInfo)
    path: list[Tensor] = field(default_factory=list)

    def blocks(self, stream: BinaryIO | None) -> Iterator[Tensor]:
        """Its waveform; pipes, in which no library can go back, are copied to a temporary file."""
        path = Path(self.file)
        if self.file != STANDARD_INPUT and (path.is_file() or path.is_dir() or not path.exists()):
            yield from waveform_blocks(path, self.info)
            return
        with tempfile.NamedTemporaryFile(prefix="parp-stdin-") as copy:
            try:
                with path.open("rb") if self.file != STANDARD_INPUT else nullcontext(stream) as pipe:
                    assert pipe is not None
                    shutil.copyfileobj(pipe, copy)
                copy.flush()
            except OSError as error:
                raise DataError(f"cannot read {self.file}", details=[error.strerror or str(error)]) from error
            yield from waveform_blocks(Path(copy.name), self.info)

    def transcription(
        self, vocabulary: Vocabulary, frame_seconds: float, layout: timing.Format, times: bool
    ) -> Transcription:
        """What was recognised, written if it is to be; silence has no words, whatever the model writes."""
        words = [] if self.info.silent else words_of(torch.cat(self.path), vocabulary, frame_seconds)
        made = Transcription(
            file=self.file,
            seconds=self.info.seconds,
            text=text_of(words),
            words=tuple(words),
            warnings=tuple(_warnings(self.info)),
            path=self.target,
        )
        if self.target is not None:
            text = made.rendered(layout, times=times)
            if not is_text(self.target, text):  # perhaps corrected by hand
                set_aside(self.target)
            write_text(self.target, text)
        return made

    def failure(self, error: DataError) -> Failure:
        """Why there is no result."""
        hint = _STANDARD_INPUT_HINT if self.file == STANDARD_INPUT else error.hint
        return Failure(file=self.file, reason="; ".join(error.details) or error.message, hint=hint)


def _warnings(info: AudioInfo) -> Iterator[str]:
    if info.silent:
        yield "it is silent"
    elif info.peak_to_peak < _QUIET:
        yield "it is hardly louder than silence"
    if info.clipped_share > MUCH_CLIPPED:
        yield f"{info.clipped_share:.1%} of its samples are clipped: it was recorded too loud, which costs accuracy"
    if info.differs_from_header:
        yield f"its header says {info.declared / info.rate:.2f} s, but {info.seconds:.2f} s can be decoded: all is used"


def _targets(files: Sequence[str], out: Path | None, layout: timing.Format) -> dict[str, Path | None]:
    """Where the transcript of each file is written.

    Raises `UsageError`: a file is named twice, two would have one name, or one would be written over what is read.
    """
    targets: dict[str, Path | None] = {}
    taken: dict[Path, str] = {}
    for file in files:
        if file in targets:
            raise UsageError(f"{_named(file)} is named twice", hint="name each file once")
        targets[file] = None
        if out is None:
            continue
        target = out / f"{'stdin' if file == STANDARD_INPUT else Path(file).stem}{timing.SUFFIXES[layout]}"
        if target in taken:
            raise UsageError(
                f"{_named(taken[target])} and {_named(file)} would both be written to {target}",
                hint="transcribe them to different folders",
            )
        require_writable(target, "--out")
        taken[target], targets[file] = file, target
    refuse_same({"the transcript": list(taken)}, {"the audio file": [Path(file) for file in files]})
    return targets


def _declared_seconds(file: str) -> float:
    """By its header; 0 where that does not say."""
    try:
        return 0.0 if file == STANDARD_INPUT else audio_seconds(Path(file))
    except DataError:
        return 0.0


def _named(file: str) -> str:
    return "standard input" if file == STANDARD_INPUT else file
