"""Text encoders of transformers: what describes one, and which of its weights are prunable.

Any encoder will do whose Transformer layers are one list of modules with linear maps (BERT, RoBERTa, DistilBERT,
ELECTRA, DeBERTa, XLNet and others). Importing this stays cheap: transformers is imported when a network is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from parp_cli.errors import CheckpointError, UsageError
from parp_cli.models.network import SMALL, check_weights
from parp_cli.models.transformers.structures import Structure, structures_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from parp_cli.models.small import Small
    from parp_cli.models.transformers.network import TextNetwork

TOKENIZER = "tokenizer"
"""Name of the tokenizer's files among a network's tensors (`tokenizer.pack`)."""

_SCOPES = {
    "transformer": ("attention", "feed-forward"),
    "attention": ("attention",),
    "feed-forward": ("feed-forward",),
    "everything": ("attention", "feed-forward", "outside"),
}

_HEADS = ("num_attention_heads", "n_heads", "n_head")
_UNITS = ("intermediate_size", "hidden_dim", "d_inner")
_ACTIVATIONS = ("hidden_act", "activation", "ff_activation")
"""What configs call the number of heads, that of feed-forward units, and the function between the two maps of these."""

_BY_LAYER = ("heads", "feed_forward")

_NO_DIFFERENCE = ("dropout", "dropatt", "_prob", "drop_rate")
"""What keys of a config are called that change how a network trains, not what it is."""


@dataclass(frozen=True, kw_only=True)
class TextArchitecture:
    """A text encoder of transformers without its weights.

    Attributes:
        config: the plain values of its `PretrainedConfig`, without labels, paths and versions.
        stack: the module that holds the Transformer layers, such as "bert.encoder.layer".
        layers: Transformer layers.
        width: features of the Transformer, D.
        heads, feed_forward: attention heads and feed-forward units of each layer, where some were removed; None for
            those of the config.
    """

    kind: ClassVar[str] = "text"
    kinds: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ("transformers",)
    channels: ClassVar[int] = 0

    config: Mapping[str, Any]
    stack: str
    layers: int
    width: int
    heads: tuple[int, ...] | None = None
    feed_forward: tuple[int, ...] | None = None

    @property
    def family(self) -> str:
        """What transformers calls the type of model."""
        return str(self.config["model_type"])

    @property
    def name(self) -> str:
        return f"{self.family}-{self.layers}x{self.width}" + (SMALL if self.is_uneven else "")

    @property
    def is_uneven(self) -> bool:
        """Whether heads or units were removed, so that its config does not describe all of it."""
        return self.heads is not None or self.feed_forward is not None

    @property
    def activation(self) -> str:
        """What transformers calls the function between the two maps of feed-forward blocks."""
        return str(self._of_config(_ACTIVATIONS, "gelu"))

    def sizes_of_layer(self, index: int) -> tuple[int, int, int]:
        """Heads, features of a head, and feed-forward units of a Transformer layer, 0 where the config has none."""
        heads, units = (int(self._of_config(keys, 0)) for keys in (_HEADS, _UNITS))
        size = int(self.config.get("d_head") or (self.width // heads if heads else 0))
        kept = self.heads[index] if self.heads is not None else heads
        return kept, size, self.feed_forward[index] if self.feed_forward is not None else units

    def _of_config(self, keys: Iterable[str], default: Any) -> Any:
        """The value of the first of these keys."""
        return next((self.config[key] for key in keys if self.config.get(key) is not None), default)

    @property
    def body(self) -> str:
        """The module that is not the head, such as "bert"."""
        return self.stack.partition(".")[0]

    def same_network(self, other: object) -> bool:
        """Whether weights of the other are weights of this."""
        return isinstance(other, TextArchitecture) and self._sizes() == other._sizes()

    def _sizes(self) -> dict[str, Any]:
        sizes = {key: value for key, value in self.config.items() if not any(part in key for part in _NO_DIFFERENCE)}
        return {**sizes, "layers": [self.sizes_of_layer(index) for index in range(self.layers)]}

    def build(self, *, outputs: int | None = None, **regularisers: Any) -> TextNetwork:
        """A freshly initialised network; `dropout` is that of everything that drops, None for what its config says."""
        from parp_cli.models.transformers.network import build

        return build(self, outputs=outputs, **regularisers)

    def fit(self, weights: Mapping[str, Tensor], *, source: str, outputs: int | None = None) -> dict[str, Tensor]:
        """The weights in float32, and the tokenizer, if they are exactly those of the network.

        Raises CheckpointError, with what is missing, left over or of another shape.
        """
        import torch

        with torch.device("meta"):
            expected = {n: tuple(w.shape) for n, w in self.build(outputs=outputs).state_dict().items()}
        del expected[TOKENIZER]
        found = {name: weight for name, weight in weights.items() if name != TOKENIZER}
        hint = "the file is of another model, or from another version of transformers"
        check_weights(found, expected, source=source, name=self.name, hint=hint)
        fitting = {name: weights[name].detach().to(torch.float32).contiguous() for name in expected}
        return fitting | {name: weights[name] for name in (TOKENIZER,) if name in weights}

    def layer_of(self, name: str) -> int | None:
        """The Transformer layer that a parameter belongs to, from 0; None outside of them."""
        match = re.match(rf"{re.escape(self.stack)}\.(\d+)\.", name)
        return int(match[1]) if match else None

    def kind_of(self, name: str) -> str:
        """The module within its layer that a parameter belongs to, such as "query" or "attention.output"."""
        match = re.match(rf"{re.escape(self.stack)}\.\d+\.(.+)$", name)
        if match is None:
            return "other"
        within = re.sub(r"\.(weight|bias)$", "", match[1])
        return within.removesuffix(".dense").replace("attention.self.", "")

    def layers_of(self, names: Iterable[str]) -> dict[str, str]:
        """A label for the layer of each parameter: its number, or "other"."""
        found = {name: self.layer_of(name) for name in names}
        return {name: "other" if layer is None else str(layer) for name, layer in found.items()}

    def structures_of(self, names: Iterable[str]) -> list[Structure]:
        """The heads and units whose weights are all among the names, as `structures.structures_of`."""
        own: dict[str, Any] = {"layer_of": self.layer_of, "kind_of": self.kind_of}
        return structures_of(names, **own, sizes_of_layer=self.sizes_of_layer)

    def without_empty_groups(self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Small:
        """As `small.without_empty_groups`."""
        from parp_cli.models.transformers.small import without_empty_groups

        return without_empty_groups(self, weights, masks)

    def is_head(self, name: str) -> bool:
        """Whether a parameter is outside of the body."""
        return name != TOKENIZER and not name.startswith(f"{self.body}.")

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back to an equal architecture."""
        fields = {"config": dict(self.config), "stack": self.stack, "layers": self.layers, "width": self.width}
        sizes = {key: list(value) for key in _BY_LAYER if (value := getattr(self, key)) is not None}
        return {"kind": self.kind, "name": self.name, **fields, **sizes}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TextArchitecture:
        """Read what `to_json` wrote. Raises CheckpointError where fields are missing."""
        names = [field.name for field in dataclass_fields(cls) if field.name not in _BY_LAYER]
        if missing := [f"{name}: missing" for name in names if name not in fields]:
            raise CheckpointError("an architecture cannot be read", details=missing)
        sizes: dict[str, Any] = {key: tuple(fields[key]) for key in _BY_LAYER if key in fields}
        return cls(**{name: fields[name] for name in names}, **sizes)


def prunable_parameters(
    network: nn.Module, architecture: TextArchitecture, *, scope: str = "transformer", biases: bool = True
) -> dict[str, nn.Parameter]:
    """The parameters that pruning may touch, by name, in the order of the modules.

    Weights and biases of all linear maps of the Transformer layers: nn.Linear, and the (D, heads, features)
    projections that XLNet keeps as bare parameters. Never the embeddings, norms or the head.

    Args:
        scope: transformer; attention or feed-forward, its halves; everything (linear maps of the body outside of the
            layers too, such as a pooler); or a glob of names, such as "*.layer.[0-5].*", among all of these.

    Raises UsageError where the scope matches nothing.
    """
    parts = _SCOPES.get(scope)
    found = {
        name: parameter
        for part, name, parameter in _linear(network, architecture)
        if (biases or not name.endswith("bias")) and (fnmatchcase(name, scope) if parts is None else part in parts)
    }
    if not found:
        raise UsageError(
            f"no prunable parameter matches the scope {scope!r}",
            hint=f"one of {', '.join(_SCOPES)}, or a pattern of names such as '{architecture.stack}.[0-2].*'",
        )
    return found


def _linear(network: nn.Module, architecture: TextArchitecture) -> Iterator[tuple[str, str, nn.Parameter]]:
    """The part of the network, the name and the parameter of each linear map below the head."""
    from torch import nn

    for module_name, module in network.named_modules():
        for own_name, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{own_name}"
            bare = parameter.dim() == 3 and parameter.shape[0] == architecture.width
            if architecture.is_head(name) or not (isinstance(module, nn.Linear) or bare):
                continue
            if architecture.layer_of(name) is None:
                if isinstance(module, nn.Linear):
                    yield "outside", name, parameter
            else:
                attends = re.search("attention|attn", name.removeprefix(architecture.stack))
                yield "attention" if attends else "feed-forward", name, parameter
