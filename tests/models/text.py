"""Small text encoders of transformers with random weights, and a tokenizer of few words."""

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

WORDS = ["good", "bad", "film", "a", "the", "very", "not", "is", "this", "!"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *WORDS]

_SMALL = {"vocab_size": 20, "pad_token_id": 0}
_BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, **_SMALL}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_BERT, "max_position_embeddings": 24},
    "roberta": {**_BERT, "max_position_embeddings": 26, "pad_token_id": 1},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 24, **_SMALL},
    "electra": {**_BERT, "embedding_size": 12, "max_position_embeddings": 24},
    "deberta-v2": {**_BERT, "max_position_embeddings": 24, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, **_SMALL},
}
"""By the type of model."""


def config_of(family: str, **changes: Any) -> Any:
    return transformers.AutoConfig.for_model(family, **{**CONFIGS[family], **changes})


def make_tokenizer(**settings: Any) -> Any:
    """One token per word; one or two texts between [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    special = {f"{name}_token": token for name, token in names.items()}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **settings)


def save_model(folder: Path, family: str = "bert", *, labels: list[str] | None = None, seed: int = 0) -> Path:
    """A folder of transformers: a body, or with labels one with a head; its weights are large enough to tell."""
    torch.manual_seed(seed)
    if labels is None:
        model = transformers.AutoModel.from_config(config_of(family))
    else:
        names = dict(enumerate(labels))
        model = transformers.AutoModelForSequenceClassification.from_config(
            config_of(family, num_labels=len(labels), id2label=names, label2id={n: i for i, n in names.items()})
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name.lower():
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    make_tokenizer(padding_side="left" if family == "xlnet" else "right").save_pretrained(folder)
    return folder
