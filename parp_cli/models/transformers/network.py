"""Networks of transformers as `models.network.Network`. B texts, T tokens, V outputs, D features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parp_cli.errors import CheckpointError
from parp_cli.models.transformers.architecture import TOKENIZER, TextArchitecture, prunable_parameters
from parp_cli.models.transformers.library import library
from parp_cli.models.transformers.small import resize

_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "hidden_dropout",
    "attention_dropout",
    "dropout",
    "seq_classif_dropout",
    "summary_last_dropout",
    "classifier_dropout",
    "cls_dropout",
    "pooler_dropout",
)


class TextNetwork(nn.Module):
    """A body of transformers, with the head that transformers gives it for the classification of sequences, or none.

    Its parts have the names that they have in transformers, so its state dict is the one that transformers reads; and
    `tokenizer`, the files of its tokenizer, empty as long as none were loaded.

    Attributes:
        layers: the Transformer layers.
        positions: the most tokens that a text may have; None where there is no limit.
    """

    def __init__(self, architecture: TextArchitecture, model: Any, *, has_head: bool) -> None:
        super().__init__()
        self.architecture = architecture
        parts = [name for name, _ in model.named_children()]
        for name in parts if has_head else [architecture.body]:
            self.add_module(name, getattr(model, name))
        self.has_head = has_head
        self._whole = (model,)  # in a tuple: registered, its parts would have two names
        self.register_buffer(TOKENIZER, torch.empty(0, dtype=torch.uint8))

    @property
    def class_name(self) -> str:
        """What transformers calls the class of such a network."""
        with_head = type(self._whole[0])
        return with_head.__name__ if self.has_head else type(self.get_submodule(self.architecture.body)).__name__

    @property
    def layers(self) -> Sequence[nn.Module]:
        return list(self.get_submodule(self.architecture.stack).children())

    @property
    def head(self) -> nn.Module | None:
        """All that is not the body."""
        own = {name: part for name, part in self.named_children() if name != self.architecture.body}
        return nn.ModuleDict(own) if self.has_head else None

    @property
    def positions(self) -> int | None:
        for name, module in self.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                # RoBERTa counts positions from behind that of padding.
                return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        return None

    def is_head(self, name: str) -> bool:
        return self.architecture.is_head(name)

    def prunable(
        self, scope: str = "transformer", *, biases: bool = True, norms: bool = False
    ) -> dict[str, nn.Parameter]:
        del norms  # no structures
        return prunable_parameters(self, self.architecture, scope=scope, biases=biases)

    def forward(self, inputs: Mapping[str, Tensor], *, states: bool = False) -> Any:
        """Outputs (B, V) of padded texts, each input (B, T); of a network without a head hidden states (B, T, D).

        With `states` also, of a network with a head, the output (B, T, D) of each layer by its number.
        """
        if states:
            found = self._whole[0](**inputs, output_hidden_states=True)
            return found.logits, dict(enumerate(found.hidden_states[-len(self.layers) :]))
        if self.has_head:
            logits: Tensor = self._whole[0](**inputs).logits
            return logits
        hidden: Tensor = self.get_submodule(self.architecture.body)(**inputs).last_hidden_state
        return hidden

    def train(self, mode: bool = True) -> TextNetwork:
        self._whole[0].training = mode
        return super().train(mode)

    def recompute_layers(self) -> None:
        """Keep only each layer's input for the backward pass, and compute the layer again there."""
        for layer in self.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if prefix + TOKENIZER in state_dict:  # of any length
            self.register_buffer(TOKENIZER, torch.empty_like(state_dict[prefix + TOKENIZER]))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def build(architecture: TextArchitecture, *, outputs: int | None = None, dropout: float | None = None) -> TextNetwork:
    """As `TextArchitecture.build`. Raises CheckpointError where transformers has no such model any more."""
    model = sequence_model(architecture, outputs=outputs, dropout=dropout)
    return TextNetwork(architecture, model, has_head=outputs is not None)


def sequence_model(architecture: TextArchitecture, *, outputs: int | None, dropout: float | None) -> Any:
    """What transformers has for the classification of sequences; arguments and errors as of `build`."""
    config = dict(architecture.config)
    if dropout is not None:
        config |= {key: dropout for key in _DROPOUTS if config.get(key) is not None}
    transformers = library()
    try:
        settings = transformers.AutoConfig.for_model(**config, num_labels=outputs or 2)
        model = transformers.AutoModelForSequenceClassification.from_config(settings)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"transformers cannot build a {architecture.family}",
            details=str(error).splitlines()[:2],
            hint="install the version of transformers that it was made with (parp inspect), or a newer one",
        ) from error
    if architecture.is_uneven:
        resize(model, architecture)
    return model
