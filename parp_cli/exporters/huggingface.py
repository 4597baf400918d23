"""A folder that Hugging Face transformers loads: model, feature extractor, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parp_cli.data.labels import Vocabulary, vocabulary_of
from parp_cli.exporters.card import card_beside
from parp_cli.exporters.target import ExportResult, Job, Target
from parp_cli.exporters.text import export_text
from parp_cli.models.sources import huggingface
from parp_cli.models.sources.names import MASK_EMBEDDING, fit
from parp_cli.models.sources.tokenizer import SETTINGS, VOCABULARY, tokenizer_files
from parp_cli.models.speech.config import Architecture
from parp_cli.storage.atomic import write_text
from parp_cli.storage.conventions import SAMPLE_RATE
from parp_cli.storage.tensors import write_tensors

if TYPE_CHECKING:
    from torch import Tensor

_MODEL_CLASSES = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM", "data2vec-audio": "Data2VecAudio"}

_MASK_TIME_PROBABILITY = 0.05
"""transformers' own default; only training reads it."""


def export_huggingface(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    vocabulary: Vocabulary | None,
    directory: Path,
) -> None:
    """Write a model for `AutoModelForCTC` and `Wav2Vec2Processor`, or for `AutoModel` without a head.

    Their logits are ours, and their processor decodes to our transcripts, but also writes special tokens unless
    it is asked not to. The blank is their padding token.

    Args:
        architecture: of the model.
        weights: under our names, zeros where they are pruned; with or without a mask embedding.
        vocabulary: of V labels; None for no head.
        directory: made if need be; files of the same names in it are replaced, config.json last, so that what
            is half written does not load.

    Raises:
        CheckpointError: the weights are not the architecture's, or its sizes differ from layer to layer.
        ResourceError: no space is left on the disk.
        UsageError: the folder cannot be written to.
    """
    size = None if vocabulary is None else len(vocabulary)
    config = _config(architecture, size, masks=MASK_EMBEDDING in weights)  # refuses what it cannot describe
    state = fit(weights, architecture, source="the checkpoint", vocabulary_size=size)
    write_tensors(directory / huggingface.WEIGHTS, huggingface.names_of(state, architecture), {"format": "pt"})
    for name in (VOCABULARY, SETTINGS):  # those of an earlier export must not stay either
        if vocabulary is None:
            (directory / name).unlink(missing_ok=True)
        else:
            _write_json(directory / name, tokenizer_files(vocabulary)[name])
    _write_json(directory / huggingface.PREPROCESSOR, _preprocessor(architecture, has_head=vocabulary is not None))
    _write_json(directory / huggingface.CONFIG, config)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _config(architecture: Architecture, vocabulary_size: int | None, *, masks: bool) -> dict[str, Any]:
    kind = "Model" if vocabulary_size is None else "ForCTC"
    config = {
        "architectures": [_MODEL_CLASSES[architecture.family] + kind],
        **huggingface.config_of(architecture),
        # transformers' models have an embedding for masked frames unless both of these are zero.
        "mask_time_prob": _MASK_TIME_PROBABILITY if masks else 0.0,
        "mask_feature_prob": 0.0,
        "final_dropout": 0.0,
        "ctc_loss_reduction": "mean",
        "ctc_zero_infinity": True,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": "float32",
    }
    return config if vocabulary_size is None else config | {"vocab_size": vocabulary_size}


def _preprocessor(architecture: Architecture, *, has_head: bool) -> dict[str, Any]:
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": architecture.normalize_waveform,
        # Group norm takes padding for audio, with or without a mask; models with it were trained without.
        "return_attention_mask": architecture.conv_norm == "layer",
    } | ({"processor_class": "Wav2Vec2Processor"} if has_head else {})


def _write(job: Job) -> ExportResult:
    architecture, weights, task, *_ = job.encoder
    if architecture.kind == "text":
        export_text(architecture, weights, task, job.out)
    else:
        vocabulary = None if job.content.metadata.vocabulary is None else vocabulary_of(job.source, task)
        export_huggingface(architecture, weights, vocabulary, job.out)
    return job.result(card=card_beside(job))


HUGGINGFACE = Target(name="hf", title="for transformers", write=_write, of_texts=True, with_zeros=True)
