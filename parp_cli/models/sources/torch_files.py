"""Files of `torch.save`, read without running anything in them."""

from __future__ import annotations

import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import torch

from parp_cli.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# Before zip files, torch.save wrote a row of pickles: magic number, protocol, system, then the object.
_PICKLES_BEFORE_TENSORS = 4

# torch's unpickler refuses these under any circumstances, with a long text.
_REFUSED_MODULES = ("os", "posix", "nt", "sys")


_PIECE = 1 << 20  # bytes of a file that are in memory at once while it is verified

_CONTAINERS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "model.")


class Inert:
    """Stands for an object whose class or function is not resolved; keeps what it was made from."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **_: Any) -> Self:
        inert = super().__new__(cls)
        inert.arguments = arguments
        inert.state = None
        return inert

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def load(path: Path) -> Any:
    """Read a file of `torch.save`, zipped or of the older format.

    torch's `weights_only` unpickler resolves tensors and plain containers alone. Every other class or
    function that the file names becomes an `Inert`, so that files with a training configuration beside the
    weights (fairseq's) can be read; a file that calls into the operating system is refused.

    Raises CheckpointError: the file is missing, truncated, no file of `torch.save`, or refused.
    """
    try:
        names = _globals(path)
        refused = sorted(name for name in names if name.partition(".")[0] in _REFUSED_MODULES)
        if refused:
            raise CheckpointError(
                f"{path} calls into the operating system", details=refused, hint="no checkpoint does; delete the file"
            )
        inert: list[Any] = [(Inert, name) for name in names]
        with torch.serialization.safe_globals(inert):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # of any kind: the file's bytes decide where reading fails
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch file",
            details=[one_line(error)],
            hint="it may be truncated or of another kind; download or copy it again",
        ) from error


def tensors(value: Any) -> dict[str, Tensor] | None:
    """`value` as a state dict, or None if it is none."""
    if not isinstance(value, Mapping) or not value:
        return None
    if not all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()):
        return None
    return dict(value)


def state_dict(value: Any) -> dict[str, Tensor] | None:
    """The state dict in what a file holds, or None: itself, or that of a training checkpoint (Lightning's, say).

    Names are those of the network itself, without what DataParallel, torch.compile and Lightning put before them.
    """
    containers = [value] + [value[key] for key in _CONTAINERS if isinstance(value, Mapping) and key in value]
    found = next((state for state in map(tensors, containers) if state is not None), None)
    return None if found is None else unwrapped(found)


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under names without the prefixes of wrappers."""
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    while prefix := next((p for p in _WRAPPERS if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def one_line(error: Exception) -> str:
    """Another library's error for a detail: its kind, and the first line of its text."""
    # torch says what stopped its unpickler after paragraphs of advice on how to load the file anyway.
    text = re.split(r"WeightsUnpickler error: |trusted source\.", str(error))[-1].strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _globals(path: Path) -> set[str]:
    """Every class and function that the file's pickles name, as `module.name`. Nothing is unpickled."""
    if zipfile.is_zipfile(path):
        _verify(path)
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    with path.open("rb") as file:
        return set().union(*(_globals_of_pickle(file) for _ in range(_PICKLES_BEFORE_TENSORS)))


def _verify(path: Path) -> None:
    """Read a zip file's parts, which Python compares with their checksums, as torch does not; files that were saved
    without have zeros for them. Raises zipfile.BadZipFile."""
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.CRC:
                with archive.open(part) as content:
                    while content.read(_PIECE):
                        pass


def _globals_of_pickle(file: IO[bytes]) -> set[str]:
    found = set()
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            found.add(f"{module}.{name}")
            # Protocol 2 writes Python 2's names; torch's unpickler translates some of them.
            found.add(".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))))
    return found
