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
from parp_cli.exporters.onnx import require_one_file, session, traced, write
from parp_cli.models.network import outputs_of
from parp_cli.models.transformers.architecture import TOKENIZER, TextArchitecture
from parp_cli.models.transformers.tokenizer import files_of, tokenizer_of

if TYPE_CHECKING:
    from parp_cli.models.transformers.network import TextNetwork

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_LENGTHS = (3, 17, 64)
"""Tokens of the texts that an export is compared on, where there are positions for them."""


class _FromTokens(nn.Module):
    """A network whose inputs have an order."""

    def __init__(self, network: TextNetwork, tokenizer: Any) -> None:
        super().__init__()
        self.network = network
        self.names = [*_INPUTS[:2], *(name for name in _INPUTS[2:] if name in tokenizer.model_input_names)]
        self.padding, self.on_the_left = int(tokenizer.pad_token_id), tokenizer.padding_side == "left"

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits (B, V), or hidden states (B, T, D) without a head, of inputs (B, T) each."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        found: Tensor = self.network(inputs)
        return found

    def texts(self, *lengths: int) -> tuple[Tensor, ...]:
        """Made-up texts, padded as the tokenizer pads: the inputs in their order."""
        generator, longest = torch.Generator().manual_seed(0), max(lengths)
        tokens = torch.full((len(lengths), longest), self.padding)
        valid = torch.zeros_like(tokens)
        for row, length in enumerate(lengths):
            place = slice(longest - length, None) if self.on_the_left else slice(length)
            most = self.network.architecture.config["vocab_size"]
            tokens[row, place] = torch.randint(most, (length,), generator=generator)
            valid[row, place] = 1
        made = {"input_ids": tokens, "attention_mask": valid, "token_type_ids": torch.zeros_like(tokens)}
        return tuple(made[name] for name in self.names)


def export_text_onnx(
    architecture: TextArchitecture,
    weights: Mapping[str, Tensor],
    task: Mapping[str, Any] | None,
    path: Path,
    *,
    properties: Mapping[str, str],
) -> _FromTokens:
    """Write a model with the inputs that its tokenizer makes, `input_ids`, `attention_mask` and for some families
    `token_type_ids` (B, T), int64, and the output `logits` (B, V), or hidden states (B, T, D) without a head.

    The file's metadata has the tokenizer (`tokenizer`, what tokenizers.Tokenizer.from_str reads), and the names of
    classes by id (`labels`, JSON) beside the `properties`. Returns the network that was written.

    Raises:
        UsageError: the model is larger than one ONNX file can be.
        CheckpointError: there is no tokenizer, or torch cannot export such a network.
    """
    require_one_file(architecture.name, weights)
    tokenizer = tokenizer_of(weights.get(TOKENIZER), source=architecture.name, config=architecture.config)
    network = architecture.build(outputs=outputs_of(task))
    network.load_state_dict(dict(weights))
    module = _FromTokens(network.eval(), tokenizer).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("tokens")
    inputs = {name: {0: batch, 1: length} for name in module.names}
    try:
        made = traced(module, module.texts(9, 6), inputs=inputs, outputs=["logits"])
    except Exception as error:  # of the exporter
        raise CheckpointError(
            f"torch cannot export a {architecture.family} to ONNX", details=str(error).strip().splitlines()[:2]
        ) from error
    own = {"tokenizer": json.dumps(files_of(weights[TOKENIZER])["tokenizer.json"], ensure_ascii=False)}
    if task is not None and task["names"]:
        own["labels"] = json.dumps(list(task["names"]), ensure_ascii=False)
    write(made, path, {**properties, **own})
    return module


def largest_difference(module: _FromTokens, path: Path) -> float:
    """Of an output of the file and of the network that it was written from, on texts alone and padded together."""
    opened, positions = session(path), module.network.positions
    lengths = [length for length in _LENGTHS if positions is None or length <= positions]
    differences = []
    for some in (*([length] for length in lengths), lengths):
        inputs = module.texts(*some)
        feed = {name: value.numpy() for name, value in zip(module.names, inputs, strict=True)}
        with torch.inference_mode():
            expected = module(*inputs)
        found = torch.from_numpy(opened.run(None, feed)[0])
        if not module.network.has_head:  # what is computed of padding is nobody's
            valid = inputs[module.names.index("attention_mask")].bool()
            expected, found = expected[valid], found[valid]
        differences.append((expected - found).abs().max())
    return float(torch.stack(differences).max())
