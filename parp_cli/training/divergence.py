"""Why training ends after too many updates without a finite loss and gradient."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from parp_cli.errors import DataError, first_few
from parp_cli.pruning.sharded import local_shard
from parp_cli.runtime.processes import World
from parp_cli.tasks.task import UpdateLoss


def divergence(
    reason: str,
    *,
    update: int,
    in_a_row: int,
    names: Sequence[str],
    loss: UpdateLoss[Any],
    network: nn.Module,
    world: World,
    log: Path,
) -> DataError:
    """The error that ends the run. All processes must ask at once.

    Args:
        reason: the last loss and gradient norm.
        update: the last one.
        in_a_row: how many there were.
        names: of the items to blame, or of all items of the last update.
        loss: of the last update.
        network: whose weights may no longer be finite.
        world: processes that hold them.
        log: file that names the items of each update.
    """
    own = [name for name, weight in network.named_parameters() if not local_shard(weight).isfinite().all()]
    weights = list(dict.fromkeys(name for some in world.gather(own) for name in some))
    many = f"update {update}" if in_a_row == 1 else f"{in_a_row} updates in a row"
    whose = "their loss is not finite" if loss.not_finite else "in the last of these updates"
    details = [f"{whose}: {', '.join(first_few(names, 8))}"]
    if weights:
        details.append(f"weights that are not finite: {', '.join(first_few(weights, 4))}")
    return DataError(
        f"{many} had no finite loss or gradient ({reason})",
        details=[*details, f"{log} names those of each update"],
        hint="begin from another checkpoint"
        if weights
        else "look at these, lower training.learning_rate, or set training.gradient_clip",
    )
