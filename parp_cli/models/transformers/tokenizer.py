"""A tokenizer inside a checkpoint: the files that transformers writes, as one tensor, and back.

So a checkpoint is of use alone, and what a network reads cannot be separated from its weights.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parp_cli.errors import CheckpointError
from parp_cli.models.transformers.library import library

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "spm.model")
"""One of these makes a tokenizer. Without any, transformers makes one that knows no word, and does not complain."""

_COPY = "copy the files there that the model was trained with, such as tokenizer.json and tokenizer_config.json"


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder of transformers.

    Raises CheckpointError where there is none that knows a word.
    """
    names = [path.name for path in folder.iterdir()]
    if not any(name in names for name in _FILES):
        raise CheckpointError(
            f"{folder} has no tokenizer",
            details=[f"none of {', '.join(_FILES)}"],
            hint=_COPY,
        )
    try:
        tokenizer = library().AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"the tokenizer of {folder} cannot be read", details=str(error).strip().splitlines()[:2], hint=_COPY
        ) from error
    if not tokenizer.is_fast or len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise CheckpointError(
            f"the tokenizer of {folder} is of no use",
            details=[f"{type(tokenizer).__name__} with {len(tokenizer)} tokens"],
            hint=_COPY,
        )
    return tokenizer


def pack(tokenizer: Any) -> Tensor:
    """The files of a tokenizer as bytes (a vector of uint8): JSON with the content of each by its name."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("*.json")}
    content = json.dumps(files, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def files_of(packed: Tensor) -> dict[str, Any]:
    """The content of each file that `pack` took, by its name."""
    files: dict[str, Any] = json.loads(bytes(packed.cpu().numpy()).decode())
    return {Path(name).name: content for name, content in files.items()}


def tokenizer_of(packed: Tensor | None, *, source: str, config: Any) -> Any:
    """The tokenizer that `pack` took; `config` has the "model_type" it is for.

    Raises CheckpointError where there is none, which `source` lacks then.
    """
    if packed is None or not len(packed):
        raise CheckpointError(f"{source} holds no tokenizer", hint="make it again from the model with `parp mask`")
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {**files_of(packed), "config.json": {"model_type": config["model_type"]}}.items():
            (Path(folder) / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return library().AutoTokenizer.from_pretrained(folder)
