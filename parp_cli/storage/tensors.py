"""Writing safetensors files atomically, with the same errors as other files."""

import errno
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from parp_cli.storage.atomic import replacing


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name, and metadata, preferably one key: safetensors writes several in no stable order.

    Args:
        path: the file; an existing one is unchanged until the new one is complete.
        tensors: on the CPU, contiguous, none sharing memory with another.
        metadata: text by key, or None.

    Raises:
        ResourceError: no space is left on the disk.
        UsageError: the place cannot be written to.
    """
    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:  # its own I/O errors do not derive from OSError
            raise _as_os_error(error) from error


def _as_os_error(error: SafetensorError) -> OSError:
    """The error with its number, which safetensors gives as text."""
    code = re.search(r"os error (\d+)", str(error))
    return OSError(int(code[1]) if code else errno.EIO, str(error))
