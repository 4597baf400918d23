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
    """Write tensors by name, which are on the CPU, contiguous, and share no memory; and metadata, preferably one key:
    safetensors writes several in no stable order. Raises as `replacing`."""
    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:  # it does not derive from OSError, and gives the number as text
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error
