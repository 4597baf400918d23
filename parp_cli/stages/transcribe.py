"""Turn sound files of any length into text, with the time of each word."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch

from parp_cli.data.audio import MUCH_CLIPPED, SAMPLE_RATE, audio_seconds
from parp_cli.data.blocks import SoundReport
from parp_cli.data.labels import Vocabulary, vocabulary_of
from parp_cli.decoding.chunks import Chunking, Piece, Recording, logits_in_chunks, measure
from parp_cli.decoding.subtitles import SUFFIXES, Format, json_text, srt, vtt, word_lines
from parp_cli.decoding.timing import Segment, SpanReader, SubtitleRules, Word, segments_of, words_of
from parp_cli.errors import DataError, UsageError
from parp_cli.models.recognizer import rebuild
from parp_cli.models.speech.config import Architecture, frames
from parp_cli.models.speech.moments import frame_samples
from parp_cli.runtime.device import tensor_cores
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import refuse_same, write_error, write_text
from parp_cli.storage.run_folder import require_head

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

STANDARD_INPUT = "-"

_STANDARD_INPUT_HINT = (
    "pipe in the bytes of a WAV, FLAC, OGG or MP3 file, such as those of `ffmpeg -i FILE -vn -f wav -`"
)

_QUIET = 2e-3
"""Between the lowest sample and the highest, of full scale: 60 dB below what there is room for."""


@dataclass(frozen=True, kw_only=True)
class Transcription:
    """What was recognised in one file.

    Attributes:
        file: as it was named.
        seconds: its length.
        text: words, or phones, divided by spaces.
        words: with their times.
        warnings: what may be wrong with it: silence, clipping.
        path: where it was written; None where nowhere.
    """

    file: str
    seconds: float
    text: str
    words: tuple[Word, ...]
    warnings: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The words as subtitles show them."""
        return tuple(segments_of(self.words, SubtitleRules(), seconds=self.seconds))

    def rendered(self, layout: Format, *, times: bool = False) -> str:
        """The content of a file.

        Args:
            layout: of the file.
            times: of each word too, where the layout has a place for them: "text" has one word a line then.
        """
        if layout == "srt":
            return srt(self.segments)
        if layout == "vtt":
            return vtt(self.segments)
        if layout == "json":
            return json_text(self.file, self.seconds, self.text, self.segments, self.words if times else None)
        return word_lines(self.words) if times else self.text + "\n"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A file that could not be transcribed.

    Attributes:
        file: as it was named.
        reason: a line.
        hint: what to do about it.
    """

    file: str
    reason: str
    hint: str | None


@dataclass(frozen=True, kw_only=True)
class TranscribeResult:
    """Of all files.

    Attributes:
        transcriptions: in the order in which the files were named.
        failures: of the others.
        audio_seconds: transcribed.
        seconds: it took, reading included.
    """

    checkpoint: Path
    transcriptions: tuple[Transcription, ...]
    failures: tuple[Failure, ...]
    audio_seconds: float
    seconds: float

    def error(self) -> DataError | None:
        """What to raise once all results are shown; None where all went well."""
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
    out: Path | None = None,
    layout: Format = "text",
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
        files: paths, or "-" for the bytes of a sound file from standard input.
        out: a folder to write a file for each to, under its name with another ending; by default nothing is written.
        layout: of what is written.
        times: of each word too, where the layout has a place for them.
        chunking: of long files.
        batch_seconds: padded sound in one forward pass. Changes no transcript.
        standard_input: where "-" is read from; by default this process's.
        ready: is called with each transcription once it is done (and written).

    Raises:
        CheckpointError: the checkpoint cannot be read, or has no head.
        UsageError: files are in each other's way, `out` cannot be written to, or standard input is closed.
    """
    targets = _targets(files, out, layout)
    stream = _stream(files, standard_input)
    architecture, model, vocabulary = _load(source, device or torch.device("cpu"))
    if out is not None:
        _make_folder(out)
    work = _Work(files, architecture, vocabulary, notify)

    def finish(done: "_Open") -> None:
        made = done.transcription(work)
        if (target := targets[made.file]) is not None:
            write_text(target, made.rendered(layout, times=times))
            made = replace(made, path=target)
        work.transcriptions[made.file] = made
        work.hand_over(ready)

    began = time.monotonic()
    with ExitStack() as stack, tensor_cores("float32"):
        opened: list[_Open] = []
        recordings = work.recordings(_paths(files, stream, stack), opened, finish)
        pieces = logits_in_chunks(
            model, architecture, recordings, chunking=chunking or Chunking(), batch_seconds=batch_seconds
        )
        for piece in pieces:
            entry = opened[piece.recording]
            work.take(entry, piece)
            if piece.last and piece.error is None:
                finish(entry)
    work.hand_over(ready)
    made = tuple(work.transcriptions[name] for name in files if name in work.transcriptions)
    return TranscribeResult(
        checkpoint=source,
        transcriptions=made,
        failures=tuple(work.failures),
        audio_seconds=sum(item.seconds for item in made),
        seconds=time.monotonic() - began,
    )


def _load(source: Path, device: torch.device) -> tuple[Architecture, "SpeechNetwork", Vocabulary]:
    content = checkpoint.read(source)
    require_head(source, content.metadata)
    vocabulary = vocabulary_of(source, content.metadata.task)
    return *rebuild(content, device, source=str(source)), vocabulary


@dataclass(frozen=True)
class _Open:
    """A file whose logits are coming."""

    file: str
    report: SoundReport
    reader: SpanReader

    def transcription(self, work: "_Work") -> Transcription:
        words = words_of(self.reader.spans, work.vocabulary, frame_samples(work.architecture) / SAMPLE_RATE)
        return Transcription(
            file=self.file,
            seconds=self.report.seconds,
            text=" ".join(word.text for word in words),
            words=tuple(words),
            warnings=tuple(_warnings(self.report)),
        )


class _Work:
    """What has become of the files so far."""

    def __init__(
        self, files: Sequence[str], architecture: Architecture, vocabulary: Vocabulary, notify: Notify
    ) -> None:
        self.architecture, self.vocabulary = architecture, vocabulary
        self._waiting = list(files)  # whose results nobody has had yet
        self.transcriptions: dict[str, Transcription] = {}
        self.failures: list[Failure] = []
        self._notify = notify
        self._total, self._read, self._heard = sum(map(_declared_seconds, files)), 0.0, 0.0

    def recordings(
        self, paths: Iterator[tuple[str, Path]], opened: list[_Open], finish: Callable[[_Open], None]
    ) -> Iterator[Recording]:
        """Files read once, those that the model need not hear left out; each that it is to hear is put in `opened`."""
        for file, path in paths:
            try:
                recording = measure(path, self.architecture)
                self._require_frame(recording)
            except DataError as error:
                self.fail(file, error)
                continue
            entry = _Open(file, recording.report, SpanReader())
            for warning in _warnings(recording.report):
                self._notify(Progress("transcribing", 0, 0, warning=f"{_named(file)}: {warning}"))
            if recording.report.silent:
                finish(entry)
                continue
            self._read += recording.report.seconds
            opened.append(entry)
            yield recording

    def take(self, entry: _Open, piece: Piece) -> None:
        """The next frames of a file."""
        if piece.error is not None:
            self.fail(entry.file, piece.error)
            return
        entry.reader.add(piece.logits.argmax(-1))
        self._heard += len(piece.logits) * frame_samples(self.architecture) / SAMPLE_RATE
        total = max(1, round(self._total or self._read))  # of standard input no header told it
        self._notify(Progress("seconds transcribed", min(round(self._heard), total), total))

    def fail(self, file: str, error: DataError) -> None:
        """Note that a file cannot be transcribed."""
        hint = _STANDARD_INPUT_HINT if file == STANDARD_INPUT else error.hint
        failure = Failure(file=file, reason="; ".join(error.details) or error.message, hint=hint)
        self.failures.append(failure)
        self._notify(Progress("transcribing", 0, 0, warning=f"{_named(file)}: {failure.reason}"))

    def hand_over(self, ready: Callable[[Transcription], None] | None) -> None:
        """Give away what is done, in the order of the files: one that has nothing to be heard is done before others."""
        failed = {failure.file for failure in self.failures}
        while self._waiting and (self._waiting[0] in self.transcriptions or self._waiting[0] in failed):
            made = self.transcriptions.get(self._waiting.pop(0))
            if made is not None and ready is not None:
                ready(made)

    def _require_frame(self, recording: Recording) -> None:
        if frames(self.architecture, recording.moments.samples) == 0:
            raise DataError(
                "too short",
                details=[f"{1000 * recording.report.seconds:.0f} ms of sound are too short for the model to hear any"],
                hint="leave it out",
            )


def _warnings(report: SoundReport) -> Iterator[str]:
    if report.silent:
        yield "it is silent: nothing was said"
    elif report.swing < _QUIET:
        yield "it is hardly louder than silence"
    if report.clipped_share > MUCH_CLIPPED:
        yield f"{report.clipped_share:.1%} of its samples are clipped: it was recorded too loud, which costs accuracy"


def _targets(files: Sequence[str], out: Path | None, layout: Format) -> dict[str, Path | None]:
    """Where the transcript of each file is written.

    Raises:
        UsageError: a file is named twice, two would have one name, or one would be written over what is read.
    """
    targets: dict[str, Path | None] = {}
    taken: dict[Path, str] = {}
    for file in files:
        if file in targets:
            raise UsageError(f"{_named(file)} is named twice", hint="name each file once")
        if out is None:
            targets[file] = None
            continue
        target = out / ("stdin" if file == STANDARD_INPUT else Path(file).stem)
        target = target.with_name(target.name + SUFFIXES[layout])
        if target in taken:
            raise UsageError(
                f"{_named(taken[target])} and {_named(file)} would both be written to {target}",
                hint="transcribe them to different folders",
            )
        taken[target], targets[file] = file, target
    refuse_same({"the transcript": list(taken)}, {"the sound file": [Path(file) for file in files]})
    return targets


def _make_folder(folder: Path) -> None:
    """Before anything is computed: what cannot be written is better known now."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


def _declared_seconds(file: str) -> float:
    """By its header; 0 where that tells nothing."""
    try:
        return 0.0 if file == STANDARD_INPUT else audio_seconds(Path(file))
    except DataError:
        return 0.0


def _named(file: str) -> str:
    return "standard input" if file == STANDARD_INPUT else file


def _stream(files: Sequence[str], given: BinaryIO | None) -> BinaryIO | None:
    """Where "-" is read from; None where no file is named so.

    Raises:
        UsageError: standard input is closed.
    """
    if given is not None or STANDARD_INPUT not in files:
        return given
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint=_STANDARD_INPUT_HINT)
    return sys.stdin.buffer


def _paths(files: Sequence[str], stream: BinaryIO | None, stack: ExitStack) -> Iterator[tuple[str, Path]]:
    """Each file with a path to open; standard input is written to a temporary file, as it has to be read twice."""
    for file in files:
        if file == STANDARD_INPUT:
            assert stream is not None
            yield file, stack.enter_context(_spooled(stream))
        else:
            yield file, Path(file)


@contextmanager
def _spooled(stream: BinaryIO) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(prefix="parp-stdin-") as file:
        shutil.copyfileobj(stream, file)
        file.flush()
        yield Path(file.name)
