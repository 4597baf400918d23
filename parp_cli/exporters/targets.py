"""The targets of `parp export`, by the name that `--to` gives."""

from parp_cli.errors import UsageError
from parp_cli.exporters.gguf import GGUF
from parp_cli.exporters.huggingface import HUGGINGFACE
from parp_cli.exporters.mask import MASK
from parp_cli.exporters.onnx import ONNX
from parp_cli.exporters.packed import PACKED
from parp_cli.exporters.sherpa import SHERPA
from parp_cli.exporters.small import SMALL
from parp_cli.exporters.sparse import SPARSE
from parp_cli.exporters.target import Target
from parp_cli.exporters.torchaudio import TORCHAUDIO

TARGETS = {target.name: target for target in (HUGGINGFACE, TORCHAUDIO, SMALL, ONNX, SHERPA, GGUF, PACKED, SPARSE, MASK)}


def target_of(name: str) -> Target:
    """The target of this name. Raises UsageError where there is none."""
    if name not in TARGETS:
        raise UsageError(f"there is no export to {name!r}", hint=f"one of {', '.join(TARGETS)}")
    return TARGETS[name]
