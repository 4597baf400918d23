"""An ONNX file of a text encoder for onnxruntime: from tokens to logits, for any batch size and length.

B texts, T tokens, V outputs, D features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from parp_cli.errors import CheckpointError
from parp_cli.exporters.onnx import session, traced, write
from parp_cli.models.network import outputs_of
from parp_cli.models.transformers.architecture import TOKENIZER, TextArchitecture
from parp_cli.models.transformers.tokenizer import files_of, tokenizer_of

if TYPE_CHECKING:
    from parp_cli.models.transformers.network import TextNetwork

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_TRACED = (2, 9)
"""B and T of the inputs that a network is traced with."""


class _FromTokens(nn.Module):
    """A network whose inputs have an order."""

    def __init__(self, network: TextNetwork, tokenizer: Any) -> None:
        super().__init__()
        self.network = network
        self.names = [*_INPUTS[:2], *(name for name in _INPUTS[2:] if name in tokenizer.model_input_names)]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits (B, V), or hidden states (B, T, D) without a head, of inputs (B, T) each."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        found: Tensor = self.network(inputs)
        return found

    def example(self) -> tuple[Tensor, ...]:
        """Inputs in their order, of random tokens."""
        most = self.network.architecture.config["vocab_size"]
        tokens = torch.randint(most, _TRACED, generator=torch.Generator().manual_seed(0))
        valid = torch.ones_like(tokens)
        valid[1, 6:] = 0
        made = {"input_ids": tokens, "attention_mask": valid, "token_type_ids": torch.zeros_like(tokens)}
        return tuple(made[name] for name in self.names)


def export_text_onnx(
    architecture: TextArchitecture,
    weights: Mapping[str, Tensor],
    task: Mapping[str, Any] | None,
    path: Path,
    *,
    properties: Mapping[str, str],
) -> None:
    """Write a model with the inputs that its tokenizer makes, `input_ids`, `attention_mask` and for some families
    `token_type_ids` (B, T), int64, and the output `logits` (B, V), or hidden states (B, T, D) without a head.

    The file's metadata has the tokenizer (`tokenizer`, what tokenizers.Tokenizer.from_str reads), and the names of
    classes by id (`labels`, JSON) beside the `properties`.

    Raises:
        CheckpointError: there is no tokenizer, or torch cannot export such a network.
    """
    tokenizer = tokenizer_of(weights.get(TOKENIZER), source=architecture.name, config=architecture.config)
    network = architecture.build(outputs=outputs_of(task))
    network.load_state_dict(dict(weights))
    module = _FromTokens(network.eval(), tokenizer).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("tokens")
    inputs = {name: {0: batch, 1: length} for name in module.names}
    try:
        made = traced(module, module.example(), inputs=inputs, outputs=["logits"])
    except Exception as error:  # of the exporter
        raise CheckpointError(
            f"torch cannot export a {architecture.family} to ONNX", details=str(error).strip().splitlines()[:2]
        ) from error
    own = {"tokenizer": json.dumps(files_of(weights[TOKENIZER])["tokenizer.json"], ensure_ascii=False)}
    if task is not None and task["names"]:
        own["labels"] = json.dumps(list(task["names"]), ensure_ascii=False)
    write(made, path, {**properties, **own})


class TextOnnxNetwork:
    """An exported text encoder in onnxruntime, as `text_check.TextRunner`."""

    def __init__(self, path: Path) -> None:
        self._session = session(path)
        self._names = [one.name for one in self._session.get_inputs()]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Outputs for inputs (B, T)."""
        return torch.from_numpy(self._session.run(None, {name: inputs[name].numpy() for name in self._names})[0])
