"""`parp transcribe`: text of audio files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from parp_cli.cli import options
from parp_cli.cli.options import option
from parp_cli.console import Output, duration
from parp_cli.errors import UsageError

if TYPE_CHECKING:
    from parp_cli.stages.transcribe import Transcription

_MIN_CHUNK, _CONTEXT, _CONTEXT_SHARE = 2.0, 5.0, 0.25
"""Seconds, seconds, and the maximum share of a chunk that is context at one end."""


def transcribe(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILES…", help='WAV, FLAC, OGG or MP3; "-" for standard input.'),
    ],
    checkpoint: options.NamedCheckpoint = None,
    mask: Annotated[Path | None, option("--mask PATH", "Recognise under this file's mask too.")] = None,
    layout: Annotated[
        Literal["text", "json", "srt", "vtt"], option("--format -f", "Of the transcripts.", default=True)
    ] = "text",
    out: Annotated[Path | None, option("--out DIR", "Write one file per audio file here instead of printing.")] = None,
    times: Annotated[bool, option("--times", "Of each word too: one per line as text, or in the JSON.")] = False,
    chunk_seconds: Annotated[
        float,
        option(
            "--chunk-seconds", "Of audio that the model sees at once; inf: do not cut.", min=_MIN_CHUNK, default=True
        ),
    ] = 45.0,
    batch_seconds: options.BatchSeconds = 60.0,
    run: options.Run = options.DEFAULT_RUN,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Turn audio files of any length into text, or subtitles.

    Files that cannot be read are reported, the others are transcribed, and the exit code is 3.

    [bold]Examples:[/]
      parp transcribe talk.mp3
      parp transcribe *.flac --format srt --out subtitles
      ffmpeg -i film.mkv -vn -f wav - | parp transcribe - --times
    """
    if layout in ("srt", "vtt") and out is None and len(files) > 1 and not as_json:
        raise UsageError("several subtitle files cannot be printed as one", hint="name a folder for them: --out DIR")

    from parp_cli.decoding.chunks import Chunking
    from parp_cli.runtime.device import select_device
    from parp_cli.stages.transcribe import transcribe as stage
    from parp_cli.storage.run_folder import checkpoint_or_newest

    output = Output(as_json=as_json, quiet=quiet)

    def show(made: "Transcription") -> None:
        if made.path is not None:
            output.wrote(made.path)
            return
        if layout == "text" and len(files) > 1:
            output.verbatim(f"{made.file}\n" if times else f"{made.file}\t")
        output.verbatim(made.rendered(layout, times=times))

    with output.progress() as notify:
        result = stage(
            checkpoint_or_newest(checkpoint, run),
            files,
            mask=mask,
            out=out,
            layout=layout,
            times=times,
            chunking=Chunking(chunk_seconds, min(_CONTEXT, _CONTEXT_SHARE * chunk_seconds)),
            batch_seconds=batch_seconds,
            device=select_device(device),
            ready=show,
            notify=notify,
        )
    if result.transcriptions:
        output.note(f"{duration(result.audio_seconds)} of audio in {duration(result.seconds)}")
    output.json(result)
    if (error := result.error()) is not None:
        raise error
