"""A folder of Hugging Face transformers, run by transformers: what exports are compared with.

B utterances, S samples, T frames, V tokens.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parp_cli.errors import CheckpointError, UsageError, first_few
from parp_cli.models.sources import huggingface
from parp_cli.models.sources.torch_files import one_line
from parp_cli.storage.conventions import SAMPLE_RATE

_MOST_DETAILS = 5


def require_transformers() -> None:
    """Raises UsageError where transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise UsageError("this folder runs in transformers, which is not installed", hint="pip install transformers")


def classes_of(folder: Path) -> tuple[Any, Any]:
    """transformers' classes for the model and the feature extractor of a folder. Their import takes seconds."""
    import transformers

    config = json.loads((folder / huggingface.CONFIG).read_text(encoding="utf-8"))
    return getattr(transformers, config["architectures"][0]), transformers.Wav2Vec2FeatureExtractor


class TransformersNetwork:
    """The model of a folder with its feature extractor, float32, on the CPU.

    Raises CheckpointError: transformers cannot load it, or would make up some of its weights.
    """

    def __init__(self, folder: Path) -> None:
        model, extractor = classes_of(folder)
        try:
            self._model, report = model.from_pretrained(folder, output_loading_info=True)
            self._extract = extractor.from_pretrained(folder)
        except Exception as error:  # the files' bytes decide which
            raise CheckpointError(
                f"{folder} cannot be loaded by transformers",
                details=[one_line(error)],
                hint="it may be damaged: export it again",
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise CheckpointError(f"{folder} lacks weights of its model", details=first_few(missing, _MOST_DETAILS))
        self._model.eval()

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Logits (T, V), or hidden states without a head, of each of the waveforms (S,), which are padded together."""
        arrays = [waveform.numpy() for waveform in waveforms]
        inputs = self._extract(arrays, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt")
        with torch.inference_mode():
            outputs = self._model(**inputs)
        rows: Tensor = outputs.logits if "logits" in outputs else outputs.last_hidden_state
        lengths = torch.tensor([len(array) for array in arrays])
        frames = self._model._get_feat_extract_output_lengths(lengths).tolist()
        return [row[:count] for row, count in zip(rows, frames, strict=True)]
