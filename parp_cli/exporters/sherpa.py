"""A folder for sherpa-onnx: `model.onnx` and `tokens.txt`, as its offline type omnilingual_asr_ctc reads them.

B utterances of one length, S samples, T frames, V labels of the checkpoint, W symbols of sherpa-onnx.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from parp_cli.data.labels import Vocabulary, vocabulary_of
from parp_cli.errors import CheckpointError
from parp_cli.exporters import onnx
from parp_cli.exporters.check import compared, labels, network, refuse_other_transcripts, with_transcripts
from parp_cli.exporters.target import ExportResult, Job, Target
from parp_cli.models.speech.waveform import EPSILON
from parp_cli.storage.atomic import write_text
from parp_cli.storage.conventions import SAMPLE_RATE
from parp_cli.storage.run_folder import require_head

if TYPE_CHECKING:
    from parp_cli.models.speech.config import Architecture
    from parp_cli.models.speech.encoder import SpeechNetwork

MODEL, TOKENS = "model.onnx", "tokens.txt"
"""The files of the folder."""

_BLANK = "<blk>"
_SPACE = "▁"
"""What sherpa-onnx reads as a space where a symbol begins with it."""

_THEIR_EPSILON = 1e-5
"""Added to the variance by which sherpa-onnx normalises a waveform."""

_LOUDEST = 1e-6
"""Least share of the epsilon in what the variance was with it: float32 has no digits below, and loudness no effect."""


@dataclass(frozen=True)
class Symbols:
    """What sherpa-onnx prints for the labels of a vocabulary.

    Labels that print nothing (padding, the unknown, a boundary between phones) are one symbol with the blank. That
    changes no greedy transcript: equal labels on both sides of one stay two.

    Attributes:
        texts: the W symbols, the blank first.
        printed: the labels of the others, in order.
        silent: the labels that print nothing, the blank first.
    """

    texts: tuple[str, ...]
    printed: tuple[int, ...]
    silent: tuple[int, ...]

    def logits(self, logits: Tensor) -> Tensor:
        """(…, W) of (…, V): the largest of those that print nothing, and the others."""
        blank = logits[..., list(self.silent)].amax(-1, keepdim=True)
        return torch.cat([blank, logits[..., list(self.printed)]], -1)

    def text(self, ids: Sequence[int]) -> str:
        """What sherpa-onnx prints for symbols."""
        return "".join(self.texts[index].replace(_SPACE, " ", 1) for index in ids)


def symbols_of(vocabulary: Vocabulary, *, source: str) -> Symbols:
    """The symbols of a vocabulary. Raises CheckpointError where tokens.txt cannot hold one; the `source` is named."""
    phones = vocabulary.labels == "phones"
    texts = [vocabulary.decode([label]) for label in range(len(vocabulary))]
    if vocabulary.delimiter is not None and not phones:
        texts[vocabulary.symbols.index(vocabulary.delimiter)] = vocabulary.separator.replace(" ", _SPACE)
    if unfit := [text for text in texts if any(map(str.isspace, text))]:
        raise CheckpointError(f"{source} has a label with a space in it, {unfit[0]!r}, which {TOKENS} cannot hold")
    printed = [label for label, text in enumerate(texts) if text]
    return Symbols(
        texts=(_BLANK, *(f"{_SPACE if phones else ''}{texts[label]}" for label in printed)),
        printed=tuple(printed),
        silent=tuple(label for label, text in enumerate(texts) if not text),
    )


class _FromNormalized(nn.Module):
    """A network that takes audio as sherpa-onnx passes it on: with mean 0 and divided by √(variance + epsilon)."""

    def __init__(self, network: SpeechNetwork, architecture: Architecture, symbols: Symbols) -> None:
        super().__init__()
        self.network, self.symbols = network, symbols
        self.normalizes = architecture.normalize_waveform

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, T, W) of waveforms (B, S), computed from the waveforms that the network expects."""
        # A variance v has become v / (v + epsilon). From that follows v, which matters where it is nearly silent.
        variance = x.square().mean(1, keepdim=True)
        if self.normalizes:
            own = EPSILON / _THEIR_EPSILON
            x = x / (own + (1 - own) * variance).sqrt()  # has become (waveform - mean) / √(v + our epsilon)
        else:
            x = x * (_THEIR_EPSILON / (1 - variance).clamp(min=_LOUDEST)).sqrt()  # waveform - mean
        return self.symbols.logits(self.network(x)[0])


def export_sherpa(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    symbols: Symbols,
    path: Path,
    *,
    properties: Mapping[str, str],
) -> None:
    """Write a model with input `x` (B, S), float32 at 16 kHz, normalised by sherpa-onnx, and output `logits` (B, T, W).

    Args:
        architecture, weights: of a network with a CTC head, zeros where it is pruned.
        symbols: of its vocabulary.
        properties: for the file's metadata.

    Raises:
        CheckpointError: it was trained on waveforms as they are, with a layer norm, whose output depends on their mean.
        UsageError: the model is larger than one ONNX file can be, and sherpa-onnx reads one.
    """
    if not architecture.normalize_waveform and architecture.conv_norm == "layer":
        raise CheckpointError(
            f"{architecture.name} was trained on waveforms that are not normalised, and sherpa-onnx normalises them",
            hint="export it with --to onnx",
        )
    onnx.require_one_file(architecture.name, weights)
    module = _FromNormalized(onnx.folded(architecture, weights), architecture, symbols)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("samples")}
    made = onnx.traced(module, (torch.zeros(2, SAMPLE_RATE),), inputs={"x": free}, outputs=["logits"])
    onnx.write(made, path, {**properties, "sample_rate": str(SAMPLE_RATE)})


def write_tokens(symbols: Symbols, path: Path) -> None:
    """Write `tokens.txt`: a line per symbol, with its number. Raises as `write_text`."""
    write_text(path, "".join(f"{text} {index}\n" for index, text in enumerate(symbols.texts)))


class SherpaNetwork:
    """A file of `export_sherpa` in onnxruntime, with audio as sherpa-onnx passes it on."""

    def __init__(self, path: Path) -> None:
        self._session = onnx.session(path, ("x",))

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Logits (T, W) of each of the waveforms (S,), one at a time."""
        found = []
        for waveform in waveforms:
            centred = waveform - waveform.mean()
            x = centred / (centred.square().mean() + _THEIR_EPSILON).sqrt()
            found.append(torch.from_numpy(self._session.run(["logits"], {"x": x[None].numpy()})[0][0]))
        return found


def transcribed(folder: Path, symbols: Symbols, speech: Sequence[Tensor]) -> tuple[list[str], str]:
    """Transcripts of waveforms (S,) by the export in a folder, and what made them: sherpa-onnx, or onnxruntime and
    `Symbols` where that is not installed."""
    if importlib.util.find_spec("sherpa_onnx") is None:
        run = SherpaNetwork(folder / MODEL)
        return [symbols.text(labels(run([waveform])[0])) for waveform in speech], "onnxruntime"
    import sherpa_onnx

    recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(
        model=str(folder / MODEL), tokens=str(folder / TOKENS), num_threads=torch.get_num_threads()
    )
    texts = []
    for waveform in speech:
        stream = recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE, waveform.numpy())
        recognizer.decode_stream(stream)
        texts.append(stream.result.text)
    return texts, f"sherpa-onnx {sherpa_onnx.__version__}"


def _write(job: Job) -> ExportResult:
    require_head(job.source, job.content.metadata)
    architecture, weights, task, *_ = job.encoder
    source, vocabulary = str(job.source), vocabulary_of(job.source, task)
    symbols, speech = symbols_of(vocabulary, source=source), job.speech()
    ours = network(architecture, weights)
    with job.made() as folder:
        folder.mkdir()
        export_sherpa(architecture, weights, symbols, folder / MODEL, properties=job.properties)
        write_tokens(symbols, folder / TOKENS)
        check, products = onnx.checked(
            folder / MODEL,
            job.int8,
            lambda waveforms: [symbols.logits(row) for row in ours(waveforms)],
            SherpaNetwork,
            partial(compared, speech=speech, recognises=False),
            source=source,
        )
        texts, program = transcribed(folder, symbols, speech)
        check = with_transcripts(check, texts, program, ours=ours, vocabulary=vocabulary, speech=speech)
        if not job.int8:
            hint = "please report this, with the versions that `parp inspect` names"
            refuse_other_transcripts(check, source, hint=hint)
    return job.for_runtime(check, products, MODEL, TOKENS)


SHERPA = Target(
    name="sherpa", title="for sherpa-onnx", write=_write, int8=True, require=onnx.require_onnx, with_zeros=True
)
