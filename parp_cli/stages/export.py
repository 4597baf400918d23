"""Write a checkpoint in the formats of other tools."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parp_cli.data.labels import vocabulary_of
from parp_cli.exporters.huggingface import export_huggingface
from parp_cli.exporters.torchaudio import export_torchaudio
from parp_cli.models.recognizer import encoder_of
from parp_cli.pruning.masks import apply_, check_fit
from parp_cli.storage import checkpoint

Target = Literal["hf", "torchaudio"]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What `parp export` wrote: a folder (hf) or a file (torchaudio), and its bytes in all."""

    path: Path
    target: Target
    source: Path
    size: int
    zeros: int


def export(source: Path, *, to: Target, out: Path) -> ExportResult:
    """Export a checkpoint; every weight that its mask prunes is zero in what is written.

    Args:
        to: "hf", a directory that transformers loads; "torchaudio", a state dict for its builders.
        out: the directory or file to write.

    Raises:
        CheckpointError: the source cannot be read, or its mask does not fit.
        ResourceError: no space is left on the disk.
    """
    content = checkpoint.read(source)
    architecture, weights, task, _ = encoder_of(content, source=str(source))
    check_fit(content.masks, weights, what=str(source))
    weights |= {name: weights[name].clone() for name in content.masks}
    apply_(content.masks, weights)
    if to == "hf":
        vocabulary = None if content.metadata.vocabulary is None else vocabulary_of(source, task)
        export_huggingface(architecture, weights, vocabulary, out)
    else:
        export_torchaudio(architecture, weights, out)
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return ExportResult(
        path=out,
        target=to,
        source=source,
        size=sum(path.stat().st_size for path in files),
        zeros=sum(int((weights[name] == 0).sum()) for name in content.masks),
    )
