"""What a network is trained to do. A training run knows its task by what is here, and by nothing else.

A task has a folder beside this file. Its items (utterances, crops, sentences) have a size in a unit of its own, which
limits what an update and a forward pass hold. B items in a forward pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from parp_cli.config.finetune import AnyRecipe
from parp_cli.config.load import recipe_from_dict
from parp_cli.errors import CheckpointError
from parp_cli.models.network import Architecture
from parp_cli.runtime.device import autocast, validation_precision
from parp_cli.runtime.processes import World
from parp_cli.runtime.progress import Notify
from parp_cli.storage.checkpoint import Metadata
from parp_cli.tasks.evaluation import Evaluation, Options

Item = TypeVar("Item")

DISTILLED = "distillation"
"""What an objective with a teacher reports beside losses: the part of them that is not of labels."""

_TASKS = {
    "ctc": ("parp_cli.tasks.ctc.task", "CtcTask"),
    "classification": ("parp_cli.tasks.classification.task", "ClassificationTask"),
    "masked-lm": ("parp_cli.tasks.masked_lm.task", "MaskedLmTask"),
}
"""Where the class of each task that recipes name is. Imported when one is asked for: their libraries differ."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How good the network is that would be shipped after an update; the checkpoint with the lowest score is best.

    The training loss is the mean over the updates since the validation before; None where all of them were skipped.
    """

    update: int
    train_loss: float | None
    score: tuple[float, ...]
    metrics: Mapping[str, float | None]

    def record(self) -> dict[str, Any]:
        """As logs and checkpoints hold it: the metrics beside update and loss."""
        return {"update": self.update, "train_loss": self.train_loss, **self.metrics}

    def to_json(self) -> dict[str, Any]:
        """The record with the score."""
        return {**self.record(), "score": list(self.score)}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What `Objective.validate` measured: score and metrics of a `Validation`, and one item's reference and hypothesis
    where there are such."""

    score: tuple[float, ...]
    metrics: Mapping[str, float | None]
    example: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class UpdateLoss(Generic[Item]):
    """The loss of an update: its mean over what the task counts, `Objective.metric_names`, and items whose own loss is
    not finite."""

    mean: float
    metrics: tuple[float, ...]
    not_finite: tuple[Item, ...]


class Batches(ABC, Generic[Item]):
    """Which items each update sees; `position` is all it takes to go on from here in another process."""

    position: dict[str, int]

    @abstractmethod
    def take(self) -> list[Item]:
        """Items of the next update."""

    def upcoming(self) -> list[Item]:
        """What `take` will return next."""
        position = self.position
        chosen = self.take()
        self.position = position
        return chosen


class Objective(ABC, Generic[Item]):
    """The loss of items over one network, and the judgement of that network.

    All that is random in it comes from torch's global generators, which the training run seeds.

    Attributes:
        network: all weights that train: what a run saves.
        precision: what it computes in; validations in that on CUDA, in float32 on CPUs.
        uses_all: whether every parameter that trains has a part in every loss, while all train that ever will.
        metric_names: what `losses` reports beside losses.
        unsharded: parameters that are used outside of `module.forward`, so that every process needs them whole.
    """

    network: Any
    precision: str
    uses_all: bool = True
    metric_names: tuple[str, ...] = ()
    unsharded: Sequence[nn.Parameter] = ()

    @property
    def module(self) -> nn.Module:
        """Does all computation that has to be distributed, with the network's weights."""
        module: nn.Module = self.network
        return module

    @property
    def layers(self) -> Sequence[nn.Module]:
        """Of the network: what is recomputed, compiled and sharded one by one."""
        return list(self.network.layers)

    @property
    def device(self) -> torch.device:
        """The network's."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The network without dropout, until the block ends."""
        was_training = self.network.training
        self.network.eval()
        try:
            yield
        finally:
            self.network.train(was_training)

    def validation_autocast(self) -> torch.autocast:
        """As `runtime.device.autocast`, for a pass of a validation."""
        return autocast(validation_precision(self.precision, self.device), self.device)

    @abstractmethod
    def total(self, items: Sequence[Item], update: int) -> float:
        """What the sum of an update's losses is divided by, such as its number of labels."""

    @abstractmethod
    def losses(self, module: nn.Module, items: Sequence[Item], update: int, skip: frozenset[int]) -> Tensor:
        """Losses and metrics (B, 1 + metrics) of some of an update's items, before the division by `total`.

        Nothing in it waits for the device but torch's own CTC loss, which copies lengths there. The given module is
        `module`, or what distributes it, here and below; the items are those of one forward pass, updates are counted
        from 0, and `skip` is from `skipped_layers`.
        """

    @abstractmethod
    def validate(self, module: nn.Module, train_metrics: Mapping[str, float | None], number: int) -> Judgement:
        """Judge the network as it is now; validations are counted from 0.

        `train_metrics` are means of `metric_names` over the updates since the validation before.
        """

    def is_head(self, name: str) -> bool:
        """Whether a parameter of the network is of the head, which may have its own learning rate."""
        return bool(self.network.is_head(name))

    def trains(self, name: str) -> bool:
        """Whether a parameter of the network trains at all."""
        return True

    def skipped_layers(self) -> frozenset[int]:
        """Layers that an update leaves out, drawn at random."""
        return frozenset()

    def forward(self, module: nn.Module, items: Sequence[Item]) -> None:
        """Pass items through the network as it is evaluated, one at a time, for hooks on its modules to see.

        In the precision of validations, without gradients, dropout or masking; every process passes all items.
        """
        raise NotImplementedError("no method asks this task for it")

    def prefetch(self, items: Sequence[Item]) -> None:
        """Begin to read, in the background, what an update will ask for."""

    def device_room(self, items: Sequence[Item]) -> int:
        """Bytes of the device that are still to be taken by what is kept of these items."""
        return 0

    def report(self) -> str | None:
        """What there is to say after the first validation; None for nothing."""
        return None

    def close(self) -> None:
        """End what works in the background."""


def has_all_gradients(objective: Objective[Item], items: Sequence[Item]) -> bool:
    """Whether every parameter that trains now gets a gradient from the loss of these items, which is computed.

    BERT's pooler gets none from hidden tokens, and parts of XLNet none from single texts.
    """
    trained = [weight for weight in objective.network.parameters() if weight.requires_grad]
    loss = objective.losses(objective.module, items, 0, frozenset())[:, 0].sum()
    return all(gradient is not None for gradient in torch.autograd.grad(loss, trained, allow_unused=True))


class Task(ABC, Generic[Item]):
    """A task with its data.

    Attributes:
        kind: names it in files and recipes.
        size_name, size_unit: what `size` measures, as logs name it (audio_seconds) and for people ("s of audio").
    """

    kind: str
    size_name: str
    size_unit: str

    @property
    @abstractmethod
    def train(self) -> Sequence[Item]:
        """Items to learn from."""

    @abstractmethod
    def describe(self) -> dict[str, Any] | None:
        """What a checkpoint says of its head, for JSON; None where it keeps none."""

    @abstractmethod
    def data_hash(self) -> str:
        """Changes whenever what is learned from or judged on does."""

    @abstractmethod
    def name(self, item: Item) -> str:
        """Of an item, for messages."""

    @abstractmethod
    def size(self, item: Item) -> float:
        """In the task's unit."""

    @abstractmethod
    def grouped(self, items: Sequence[Item], size: float) -> list[list[int]]:
        """Forward passes of at most `size`, padding included, the largest first: indices of their items."""

    @abstractmethod
    def batches(self) -> Batches[Item]:
        """Which items each update sees, from the first update on."""

    @abstractmethod
    def network(self, weights: Any, head: Mapping[str, Any] | None = None, source: str = "") -> Any:
        """The network on the CPU, with weights by name as far as they fit the task; None for none.

        Where they include a head, `head` is what `describe` said of it. `source` names where they are from in messages.
        """

    @abstractmethod
    def objective(
        self, network: Any, *, masked: Iterable[str], sharded: bool, device: torch.device, world: World, scratch: Any
    ) -> Objective[Item]:
        """The loss over a network (from `network`, on its device unless it is to be sharded) that the world trains.

        `masked` names weights whose masks may change, and `scratch` is a folder for what can be thrown away.
        """

    @abstractmethod
    def brief(self, validations: Sequence[Validation]) -> str:
        """What has been reached so far, in a few words."""

    @abstractmethod
    def message(self, values: Mapping[str, Any]) -> str:
        """A line about a validation, from the values that are logged of it."""

    def kept(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the network's state dict what a checkpoint holds."""
        return weights

    def findings(self) -> Iterable[tuple[str, dict[str, Any]]]:
        """What the data's check found: events for the log, with their values."""
        return ()

    def warning(self) -> str | None:
        """One line about items that are left out; None where there are none."""
        return None

    def advise(self, validations: Sequence[Validation], *, sparsity: float) -> str | None:
        """What is wrong with a run that does not learn, and what to do; None where there is nothing to say."""
        return None


@dataclass(frozen=True, kw_only=True)
class RecipeTask(Task[Item]):
    """A task that a fine-tuning recipe names, over networks of one architecture.

    Attributes:
        recipe: that of its kind.
        shared: a folder for what runs on the same data can share; None for none.
        teacher: the network that the recipe's `distil` names, in evaluation mode; None for none.
        item_name: of items, for people, such as "utterances".
        pass_key: what a recipe calls the size of a forward pass.
        shown: metrics of validations that people read, by their short names.
    """

    recipe: Any
    architecture: Any
    shared: Path | None = None
    teacher: Any = None

    item_name = "items"
    pass_key = "training.micro_batch_seconds"

    @classmethod
    @abstractmethod
    def load(
        cls,
        recipe: AnyRecipe,
        architecture: Architecture,
        weights: Mapping[str, Tensor],
        head: Mapping[str, Any] | None,
        notify: Notify,
    ) -> Self:
        """The task with its data, read and checked, for weights of an architecture by name.

        `head` is what the head among them is for, as from `describe`.

        Raises:
            DataError: the data is missing, or holds items that cannot be trained on.
            UsageError: the task is not one of such a network.
        """

    @staticmethod
    @abstractmethod
    def data_key(data: Any, notify: Notify) -> str:
        """Names the content of what a recipe's `data` trains and validates on, which is read, and generated or
        downloaded.

        Raises DataError where it is missing or broken; items that cannot be trained on are no error.
        """

    @staticmethod
    @abstractmethod
    def split_key(data: Any, split: str, notify: Notify) -> str:
        """The same for a split that is evaluated, in which items that cannot be read are errors."""

    @classmethod
    def recorded(cls, metadata: Metadata, overrides: Sequence[str] = ()) -> Any:
        """The recipe of the run that made a checkpoint (the defaults, if none did), with `overrides` as `--set` takes
        them.

        Raises RecipeError: an override is no recipe key, or has a wrong value.
        """
        values = metadata.recipe if metadata.recipe is not None and "data" in metadata.recipe else {}
        return recipe_from_dict({"task": cls.kind, **values}, overrides)

    @classmethod
    def evaluate(
        cls,
        source: Path,
        *,
        out: Path,
        data: Any,
        options: Options,
        device: torch.device,
        world: World,
        notify: Notify,
    ) -> Evaluation[Any]:
        """Evaluate a checkpoint whose head is of this task; arguments and errors as of `stages.evaluate`."""
        raise NotImplementedError(f"no checkpoint has a head of task {cls.kind}")

    def own_data_key(self, notify: Notify) -> str:
        """`data_key` of the data that this task has read."""
        return self.data_key(self.recipe.data, notify)

    def begin_with(
        self, network: Any, weights: Mapping[str, Tensor], source: str, *, may_lack: Collection[str] = ()
    ) -> None:
        """Load weights into a network that is freshly initialised, of whose head all that they lack stays as it is.

        Raises CheckpointError, which names the source, where they are others, or lack more than that and `may_lack`.
        """
        fresh = network.state_dict()
        missing = [n for n in fresh if n not in weights and not network.is_head(n) and n not in may_lack]
        if missing or not set(weights) <= set(fresh):
            raise CheckpointError(
                f"{source} does not hold the weights of a {self.architecture.name}",
                details=[f"missing: {n}" for n in missing] + [f"left over: {n}" for n in weights if n not in fresh],
            )
        network.load_state_dict({**fresh, **weights})

    @abstractmethod
    def same_outputs(self, head: Mapping[str, Any] | None) -> bool:
        """Whether a head, as from `describe` (None: there is none), has the outputs of this task."""

    @property
    @abstractmethod
    def valid(self) -> Sequence[Item]:
        """Items to judge by."""

    @property
    @abstractmethod
    def shown(self) -> Mapping[str, str]: ...

    @abstractmethod
    def batches(self) -> "SizedBatches[Item]": ...

    def default_interval(self) -> int:
        """Updates between re-prunings where the recipe does not say."""
        return 50

    def left_out(self) -> tuple[str, ...]:
        """Why items that are left out cannot be trained on, one line each."""
        return ()


class SizedBatches(Batches[Item]):
    """Batches that pass over the data again and again."""

    @abstractmethod
    def mean_size(self, updates: int) -> float:
        """Of an update of the first epoch, padding not counted; over the first `updates` at most."""


def task_class(kind: str) -> type[RecipeTask[Any]]:
    """The class of a task, by its kind.

    Raises CheckpointError where there is none: recipes are checked before, files of newer versions are not.
    """
    if kind not in _TASKS:
        raise CheckpointError(
            f"parp knows no task {kind!r}",
            details=[f"known tasks: {', '.join(_TASKS)}"],
            hint="the file is from a newer version: upgrade parp",
        )
    module, name = _TASKS[kind]
    found: type[RecipeTask[Any]] = getattr(import_module(module), name)
    return found
