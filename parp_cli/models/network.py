"""What the rest of parp knows of a network: its description without weights, and the module built from it.

`pruning`, `training` and `storage` need nothing else. A kind of network is a folder beside this file with one class of
each, and a line in `_KINDS`; what a network computes is between it and its tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from parp_cli.errors import CheckpointError, first_few

if TYPE_CHECKING:
    from torch import Tensor, nn

    from parp_cli.models.small import Small

_KINDS = {
    "speech": ("parp_cli.models.speech.config", "Architecture"),
    "text": ("parp_cli.models.transformers.architecture", "TextArchitecture"),
}
"""Where the class of each kind is. Imported when one is read, so that this module stays cheap."""

_MOST_DETAILS = 20

_DEFAULT_KIND = "speech"
"""What files of format 1 hold, which do not tell."""

SMALL = "-small"
"""The end of the name of an architecture from which parts of the named one were removed."""


class Architecture(Protocol):
    """A frozen description of a network without its weights.

    Attributes:
        kind: names the class in files.
        name: of the network, for people; "custom" for sizes that no released model has.
        layers: Transformer layers.
        width: features of the Transformer, D.
        kinds: every kind of prunable module, in reading order.
        libraries: packages beside torch that compute its networks.
    """

    kind: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    libraries: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str: ...

    @property
    def layers(self) -> int: ...

    @property
    def width(self) -> int: ...

    def same_network(self, other: object) -> bool:
        """Whether weights of the other are weights of this: the same modules of the same sizes, whatever the names."""

    def build(self, *, outputs: int | None = None, **regularisers: Any) -> Network:
        """A freshly initialised `Network`.

        Args:
            outputs: of the head; None for no head.
            regularisers: probabilities of dropout and the like in training, by the names that its task's recipes have.
        """

    def fit(self, weights: Mapping[str, Tensor], *, source: str, outputs: int | None = None) -> dict[str, Tensor]:
        """The weights, if they are exactly those that `build` makes, with a head of so many outputs.

        Raises CheckpointError, which lists what is missing, left over or of another shape; `source` names them.
        """

    def layer_of(self, name: str) -> int | None:
        """The Transformer layer that a parameter belongs to, from 0; None outside of them."""

    def kind_of(self, name: str) -> str:
        """The kind of module that a prunable parameter belongs to: one of `kinds`, or "other"."""

    def layers_of(self, names: Iterable[str]) -> dict[str, str]:
        """A label for the layer of each parameter: its number, "front-end" before the layers, or "other"."""

    def structures_of(self, names: Iterable[str]) -> Sequence[Any]:
        """What can be removed for good of the parameters with these names: a `pruning.structures.Structure` for the
        attention heads of each layer, for its feed-forward units, and for the channels of convolutions."""

    def without_empty_groups(self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Small:
        """The network of these weights, zero where the masks prune, without the structures that they have emptied."""

    def sizes_of_layer(self, index: int) -> tuple[int, int, int]:
        """Heads, features of a head, and feed-forward units of a Transformer layer."""

    @property
    def channels(self) -> int:
        """Of all convolutions before the layers that can be removed."""

    def is_head(self, name: str) -> bool:
        """Whether a parameter belongs to the head, by its name."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the kind under "kind"; `read_architecture` reads them back to an equal architecture."""


class Network(Protocol):
    """The `torch.nn.Module` that an architecture builds: what is used of it, whatever its task.

    Attributes:
        architecture: what it was built from.
        layers: the Transformer layers, which are compiled, sharded and skipped one by one.
        head: from hidden states to outputs; None without one.
    """

    @property
    def architecture(self) -> Architecture: ...

    @property
    def layers(self) -> Sequence[nn.Module]: ...

    @property
    def head(self) -> nn.Module | None: ...

    def is_head(self, name: str) -> bool:
        """Whether a parameter belongs to the head, by its name."""

    def prunable(
        self, scope: str = "transformer", *, biases: bool = True, norms: bool = False
    ) -> dict[str, nn.Parameter]:
        """The parameters that pruning may touch, by name, in an order that is the same each time.

        With `norms` those of norms too that belong to structures.

        Raises:
            UsageError: the scope matches nothing.
        """

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def get_submodule(self, target: str) -> nn.Module: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def check_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], *, source: str, name: str, hint: str
) -> None:
    """Refuse weights of a network called `name` that are not exactly those with the `expected` shapes.

    Raises:
        CheckpointError: what is missing, left over or of another shape, all at once; `source` names them.
    """
    details = [f"{weight}: missing" for weight in expected if weight not in found]
    details += [f"{weight}: left over" for weight in found if weight not in expected]
    details += [
        f"{weight}: {tuple(found[weight].shape)} in the file, {shape} in {name}"
        for weight, shape in expected.items()
        if weight in found and tuple(found[weight].shape) != shape
    ]
    if details:
        what = f"the weights of {source} do not fit {name}"
        raise CheckpointError(what, details=first_few(details, _MOST_DETAILS), hint=hint)


def outputs_of(task: Mapping[str, Any] | None) -> int | None:
    """How many outputs a head has, by what a checkpoint says of it (`Metadata.task`); None for no head."""
    return None if task is None else int(task["outputs"] if "outputs" in task else len(task["vocabulary"]))


def read_architecture(fields: Mapping[str, Any]) -> Any:
    """The `Architecture` that `to_json` wrote, of the class that its "kind" names.

    Raises:
        CheckpointError: an unknown kind, or fields that its class refuses.
    """
    kind = fields.get("kind", _DEFAULT_KIND)
    if kind not in _KINDS:
        raise CheckpointError(
            f"parp knows no network of the kind {kind!r}",
            details=[f"known kinds: {', '.join(_KINDS)}"],
            hint="the file is from a newer version: upgrade parp",
        )
    module, name = _KINDS[kind]
    return getattr(import_module(module), name).from_json(fields)
