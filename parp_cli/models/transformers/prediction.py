"""A text encoder that predicts tokens. B texts, T tokens, P predicted ones, D features, E of embeddings, V tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parp_cli.models.transformers.architecture import TextArchitecture
from parp_cli.models.transformers.network import TextNetwork, sequence_model


class TokenHead(nn.Module):
    """From features to embeddings, which the output layer shares with the input (BERT, appendix A.1)."""

    def __init__(self, features: int, embedding: int, tokens: int) -> None:
        super().__init__()
        self.dense = nn.Linear(features, embedding)
        self.norm = nn.LayerNorm(embedding)
        self.bias = nn.Parameter(torch.zeros(tokens))

    def forward(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """Logits (P, V) from hidden states (P, D) and the embeddings (V, E)."""
        return nn.functional.linear(self.norm(nn.functional.gelu(self.dense(hidden))), embeddings, self.bias)


class TokenPredictor(TextNetwork):
    """A body without a head of its own, and a `TokenHead` as `prediction`; logits are computed of predicted tokens
    alone."""

    def __init__(self, architecture: TextArchitecture, model: Any) -> None:
        super().__init__(architecture, model, has_head=False)
        tokens, embedding = self._embeddings.shape
        self.prediction = TokenHead(architecture.width, embedding, tokens)

    @property
    def _embeddings(self) -> Tensor:
        body: Any = self.get_submodule(self.architecture.body)
        weight: Tensor = body.get_input_embeddings().weight
        return weight

    @property
    def permutes(self) -> bool:
        """Whether the body can predict tokens in any order (XLNet), and so needs no hidden ones."""
        return self.architecture.family == "xlnet"

    def forward(  # type: ignore[override]  # without the outputs of layers, which only teachers are asked for
        self, inputs: Mapping[str, Tensor], places: Tensor
    ) -> Tensor:
        """Logits (P, V) of the tokens that are predicted, in the order of `places` (P,).

        These are numbers of tokens, counted through all texts with their padding; with a `target_mapping` (B, most of a
        text, T), of its rows. On a device they are found by number, not by a mask, whose count the host would wait for.
        """
        hidden: Tensor = self.get_submodule(self.architecture.body)(**inputs).last_hidden_state
        return self.prediction(hidden.flatten(0, 1).index_select(0, places), self._embeddings)  # type: ignore[no-any-return]


def build_predictor(architecture: TextArchitecture, *, dropout: float | None = None) -> TokenPredictor:
    """A freshly initialised network; arguments and errors as `TextArchitecture.build`."""
    return TokenPredictor(architecture, sequence_model(architecture, outputs=None, dropout=dropout))
