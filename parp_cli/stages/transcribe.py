"""Turn audio files of any length into text, with the time of each word."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch

from parp_cli.data.audio import MUCH_CLIPPED, SAMPLE_RATE, AudioInfo, audio_seconds
from parp_cli.data.labels import Vocabulary, vocabulary_of
from parp_cli.decoding.chunks import Chunking, Piece, Recording, logits_in_chunks, measure
from parp_cli.decoding.subtitles import SUFFIXES, Format, json_text, srt, vtt, word_lines
from parp_cli.decoding.timing import Segment, SpanReader, Word, segments_of, words_of
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
"""Between the lowest sample and the highest; 2 is full scale, so this is 60 dB below it."""


@dataclass(frozen=True, kw_only=True)
class Transcription:
    """What was recognised in one file.

    Attributes:
        file: as it was named.
        seconds: its length.
        text: words, or phones, separated by spaces.
        words: with their times.
        warnings: what may be wrong with it: silence, clipping, a header that says another length.
        path: where it was written, if anywhere.
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
        return tuple(segments_of(self.words))

    def rendered(self, layout: Format, *, times: bool = False) -> str:
        """The content of a file.

        Args:
            layout: of the file.
            times: of each word too, where the layout has a place for them: "text" then has one word per line.
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
        reason: in one line.
        hint: what to do about it.
    """

    file: str
    reason: str
    hint: str | None


@dataclass(frozen=True, kw_only=True)
class TranscribeResult:
    """Results of all files.

    Attributes:
        transcriptions: in the order in which the files were named.
        failures: of the other files.
        audio_seconds: transcribed.
        seconds: of work, reading included.
    """

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
        files: paths, or "-" for the bytes of an audio file from standard input.
        out: a folder to write one file per audio file to; by default nothing is written.
        layout: of what is written.
        times: of each word too, where the layout has a place for them.
        chunking: of long files.
        batch_seconds: padded audio in one forward pass. Does not change transcripts.
        standard_input: where "-" is read from; by default this process's.
        ready: is called with each transcription once it is done (and written), in the order of the files.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has no head.
        UsageError: files are in each other's way, `out` cannot be written to, or standard input is closed.
    """
    targets = _targets(files, out, layout)
    stream = _stream(files, standard_input)
    architecture, model, vocabulary = _load(source, device or torch.device("cpu"))
    if out is not None:
        _make_folder(out)

    def finish(made: Transcription) -> Transcription:
        if (target := targets[made.file]) is not None:
            write_text(target, made.rendered(layout, times=times))
            made = replace(made, path=target)
        return made

    began = time.monotonic()
    with ExitStack() as stack, tensor_cores("float32"):
        work = _Work(files, stream, stack, architecture, vocabulary, finish, ready, notify)
        for piece in logits_in_chunks(
            model, architecture, work.recordings(), chunking=chunking or Chunking(), batch_seconds=batch_seconds
        ):
            work.take(piece)
    results = [work.results[file] for file in files]
    made = tuple(result for result in results if isinstance(result, Transcription))
    return TranscribeResult(
        checkpoint=source,
        transcriptions=made,
        failures=tuple(result for result in results if isinstance(result, Failure)),
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
    info: AudioInfo
    reader: SpanReader = field(default_factory=SpanReader)


class _Work:
    """Files on their way to results."""

    def __init__(
        self,
        files: Sequence[str],
        stream: BinaryIO | None,
        stack: ExitStack,
        architecture: Architecture,
        vocabulary: Vocabulary,
        finish: Callable[[Transcription], Transcription],
        ready: Callable[[Transcription], None] | None,
        notify: Notify,
    ) -> None:
        self._files, self._stream, self._stack = files, stream, stack
        self._architecture, self._vocabulary = architecture, vocabulary
        self._frame_seconds = frame_samples(architecture) / SAMPLE_RATE
        self._finish, self._ready, self._notify = finish, ready, notify
        self._opened: list[_Open] = []  # by the number of the recording
        self._waiting = list(files)  # those whose results were not handed over
        self._total, self._read, self._done = sum(map(_declared_seconds, files)), 0.0, 0.0
        self.results: dict[str, Transcription | Failure] = {}

    def recordings(self) -> Iterator[Recording]:
        """Files, read once, that are to be transcribed: not those that are silent."""
        for file in self._files:
            try:
                recording = measure(self._path(file), self._architecture)
                if frames(self._architecture, recording.moments.samples) == 0:
                    raise DataError(
                        "too short",
                        details=[f"{1000 * recording.info.seconds:.0f} ms of audio are too short for the model"],
                        hint="leave it out",
                    )
            except DataError as error:
                self._fail(file, error)
                continue
            entry = _Open(file, recording.info)
            for warning in _warnings(recording.info):
                self._warn(file, warning)
            if recording.info.silent:
                self._complete(entry)
                continue
            self._read += recording.info.seconds
            self._opened.append(entry)
            yield recording

    def take(self, piece: Piece) -> None:
        """The next frames of a file."""
        entry = self._opened[piece.recording]
        if piece.error is not None:
            self._fail(entry.file, piece.error)
            return
        entry.reader.add(piece.logits.argmax(-1))
        self._done += len(piece.logits) * self._frame_seconds
        total = max(1, round(max(self._total, self._read)))  # not every file's header has its length
        self._notify(Progress("seconds transcribed", min(round(self._done), total), total))
        if piece.last:
            self._complete(entry)

    def _path(self, file: str) -> Path:
        """A path that can be read twice: standard input and other pipes are copied to a temporary file."""
        path = Path(file)
        if file != STANDARD_INPUT and (path.is_file() or path.is_dir() or not path.exists()):
            return path
        copy = self._stack.enter_context(tempfile.NamedTemporaryFile(prefix="parp-stdin-"))  # noqa: SIM115
        try:
            if file == STANDARD_INPUT:
                assert self._stream is not None
                shutil.copyfileobj(self._stream, copy)
            else:
                with path.open("rb") as pipe:
                    shutil.copyfileobj(pipe, copy)
            copy.flush()
        except OSError as error:
            raise DataError(f"cannot read {file}", details=[error.strerror or str(error)]) from error
        return Path(copy.name)

    def _complete(self, entry: _Open) -> None:
        words = words_of(entry.reader.spans, self._vocabulary, self._frame_seconds)
        made = Transcription(
            file=entry.file,
            seconds=entry.info.seconds,
            text=" ".join(word.text for word in words),
            words=tuple(words),
            warnings=tuple(_warnings(entry.info)),
        )
        self._hand_over(entry.file, self._finish(made))

    def _fail(self, file: str, error: DataError) -> None:
        hint = _STANDARD_INPUT_HINT if file == STANDARD_INPUT else error.hint
        failure = Failure(file=file, reason="; ".join(error.details) or error.message, hint=hint)
        self._warn(file, failure.reason)
        self._hand_over(file, failure)

    def _warn(self, file: str, warning: str) -> None:
        self._notify(Progress("transcribing", 0, 0, warning=f"{_named(file)}: {warning}"))

    def _hand_over(self, file: str, result: Transcription | Failure) -> None:
        """Keep a result, and hand over those that no earlier file is missing before: silent files are done at once."""
        self.results[file] = result
        while self._waiting and self._waiting[0] in self.results:
            next_ = self.results[self._waiting.pop(0)]
            if isinstance(next_, Transcription) and self._ready is not None:
                self._ready(next_)


def _warnings(info: AudioInfo) -> Iterator[str]:
    if info.silent:
        yield "it is silent"
    elif info.peak_to_peak < _QUIET:
        yield "it is hardly louder than silence"
    if info.clipped_share > MUCH_CLIPPED:
        yield f"{info.clipped_share:.1%} of its samples are clipped: it was recorded too loud, which costs accuracy"
    if info.differs_from_header:
        yield f"its header says {info.declared / info.rate:.2f} s, but {info.seconds:.2f} s can be decoded: all is used"


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
    refuse_same({"the transcript": list(taken)}, {"the audio file": [Path(file) for file in files]})
    return targets


def _make_folder(folder: Path) -> None:
    """Before anything is computed, so that an unwritable folder is reported at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


def _declared_seconds(file: str) -> float:
    """By its header; 0 where that does not say."""
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
