"""What a training run needs to know: what it trains, and how."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from parp_cli.config.finetune import Optimization
from parp_cli.pruning.masks import Masks
from parp_cli.pruning.pruner import Pruner
from parp_cli.storage.checkpoint import Metadata
from parp_cli.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """What a run trains, and how.

    Attributes:
        doing: names the work in progress reports, such as "fine-tuning (parp)".
        where: follows "stopped" in messages, such as " in stage 1".
        schedule: share of the peak learning rate in an update, counted from 0.
        save_every: the state is saved after so many updates too.
        network: a module, on the CPU, with the weights that training begins from; and its first masks, empty for none.
        pruner: makes what keeps them, over the network, given the processes among which it is sharded.
        metadata: of checkpoints, less their sparsity, metrics, and the names of weights that the pruner prunes.
        exported: makes of the network's state dict what a checkpoint holds.
        target: sparsity that the method prunes to.
        calibration: items that the method sees before it prunes first.
        identity: what a run must have in common with one that goes on from its state, for JSON.
        micro_batch_key: what a recipe calls the size of a micro-batch.
    """

    name: str
    doing: str
    seed: int
    training: Optimization
    schedule: Callable[[int], float]
    save_every: int
    task: Task[Any]
    network: Any
    masks: Callable[[Any], Masks]
    pruner: Callable[[Any, Masks, ProcessGroup | None], Pruner]
    metadata: Metadata
    identity: Mapping[str, Any]
    target: float = 0.0
    calibration: Sequence[Any] = ()
    where: str = ""
    exported: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    micro_batch_key: str = "training.micro_batch_seconds"
