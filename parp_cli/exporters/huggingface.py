"""A folder that Hugging Face transformers loads: model, feature extractor, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parp_cli.errors import CheckpointError
from parp_cli.models.sources import huggingface
from parp_cli.models.sources.names import MASK_EMBEDDING, fit
from parp_cli.models.speech.config import Architecture
from parp_cli.storage.atomic import write_text
from parp_cli.storage.conventions import BLANK, BOUNDARY, SAMPLE_RATE
from parp_cli.storage.tensors import write_tensors

if TYPE_CHECKING:
    from torch import Tensor

_MODEL_CLASSES = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}
_PADDING = "<pad>"

_MASK_TIME_PROBABILITY = 0.05
"""transformers' own default; only training reads it."""


def export_huggingface(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    vocabulary: Sequence[str] | None,
    directory: Path,
) -> None:
    """Write a model for `AutoModelForCTC` and `Wav2Vec2Processor`, or for `AutoModel` without a head.

    Their logits are ours. Their processor decodes to our transcripts: letters joined to words at "|", or labels
    of several characters (phones), and ones without "|", with spaces between. The blank is their padding token.

    Args:
        architecture: of the model.
        weights: under our names, zeros where they are pruned; with or without a mask embedding.
        vocabulary: V labels by id, the blank first; None for no head.
        directory: made if need be; files of the same names in it are replaced, config.json last, so that what
            is half written does not load.

    Raises:
        CheckpointError: the weights are not the architecture's, or the first label is not the blank.
        ResourceError: no space is left on the disk.
        UsageError: the folder cannot be written to.
    """
    if vocabulary is not None and (not vocabulary or vocabulary[0] != BLANK):
        raise CheckpointError(f"the vocabulary does not start with {BLANK}", details=list(vocabulary)[:1])
    size = None if vocabulary is None else len(vocabulary)
    state = fit(weights, architecture, source="the checkpoint", vocabulary_size=size)
    write_tensors(directory / huggingface.WEIGHTS, huggingface.names_of(state, architecture), {"format": "pt"})
    if vocabulary is None:  # nor may those of an earlier export stay
        for name in (huggingface.VOCABULARY, huggingface.TOKENIZER):
            (directory / name).unlink(missing_ok=True)
    else:
        padding = BLANK if _PADDING in vocabulary else _PADDING
        labels = [padding, *vocabulary[1:]]
        _write_json(directory / huggingface.VOCABULARY, {label: index for index, label in enumerate(labels)})
        _write_json(directory / huggingface.TOKENIZER, _tokenizer(labels))
    _write_json(directory / huggingface.PREPROCESSOR, _preprocessor(architecture, has_head=vocabulary is not None))
    _write_json(directory / huggingface.CONFIG, _config(architecture, size, masks=MASK_EMBEDDING in state))


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
        # Group norm sees padding as sound, with or without a mask; models with it were trained without.
        "return_attention_mask": architecture.conv_norm == "layer",
    } | ({"processor_class": "Wav2Vec2Processor"} if has_head else {})


def _are_letters(labels: Sequence[str]) -> bool:
    """Whether labels make up words by being joined: there is a word boundary, and all but "<…>" are one character."""
    return BOUNDARY in labels and all(len(label) == 1 or label.startswith("<") for label in labels)


def _tokenizer(labels: Sequence[str]) -> dict[str, Any]:
    """Settings of the tokenizer that joins labels the way we do.

    Tokens that are no label must be null: transformers would append them to the vocabulary, beyond the head's rows.
    """
    special = {
        f"{kind}_token": token if token in labels else None
        for kind, token in (("pad", labels[0]), ("unk", "<unk>"), ("bos", "<s>"), ("eos", "</s>"))
    }
    if _are_letters(labels):
        own = {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "word_delimiter_token": BOUNDARY,
            "replace_word_delimiter_char": " ",
            "do_lower_case": False,
        }
    else:
        # The one that puts spaces between labels; it asks for a phonemizer only to turn text into phones.
        own = {
            "tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer",
            "word_delimiter_token": None,
            "phone_delimiter_token": " ",
            "do_phonemize": False,
        }
    return {**own, **special, "processor_class": "Wav2Vec2Processor", "clean_up_tokenization_spaces": False}
