"""Methods that train to find a mask, go back to the weights they began from, and train again under it."""

from __future__ import annotations

import math
from typing import Any

from parp_cli.pruning.methods.spec import TIMES, MethodSpec, Run
from parp_cli.pruning.patterns import GROWING


def _imp_runs(recipe: Any, sparsity: float) -> tuple[Run, ...]:
    """Each round trains under the mask so far, prunes by the outcome, and goes back.

    A round's settings do not say what the target is, so that a sparser run's first rounds are this one's.
    """
    training, rounds = recipe.training, recipe.pruning.rounds
    short = {
        "updates": rounds.updates or max(1, round(training.updates / 6)),
        "learning_rate": rounds.learning_rate or training.learning_rate,
        "head_learning_rate": training.head_learning_rate if rounds.learning_rate is None else None,
        "freeze_encoder_updates": 0,
    }
    count = max(1, math.ceil(sparsity / rounds.step - 1e-9))
    runs = [Run(name=f"round 1 of {count}", method="dense", training=short)]
    for done in range(1, count):
        share = round(done * rounds.step, 12)
        masked = {"sparsity": share, "rewind": recipe.pruning.rewind}
        name = f"round {done + 1} of {count}"
        runs.append(Run(name=name, method="fixed", pruning=masked, training=short, prune_to=share))
    return (*runs, Run(name="imp", prune_to=sparsity))


OMP = MethodSpec(
    name="omp",
    description="as fixed, with a mask of the magnitudes after a dense fine-tuning; trains from the pre-trained "
    "weights again",
    reads=("sparsity", "rewind"),
    starts_from="nothing",
    runs=lambda _, sparsity: (Run(name="dense", method="dense"), Run(name="omp", prune_to=sparsity)),
)
IMP = MethodSpec(
    name="imp",
    description="as omp, after rounds that prune some more each",
    reads=("sparsity", "rewind", "rounds"),
    starts_from="nothing",
    patterns=GROWING,
    runs=_imp_runs,
)
PAP = MethodSpec(
    name="pap",
    description="as omp, with the last mask of parp",
    reads=("sparsity", "initial", "found_on", *TIMES, "final", "rewind"),
    starts_from="nothing",
    runs=lambda *_: (Run(name="parp", method="parp"), Run(name="pap")),
)
