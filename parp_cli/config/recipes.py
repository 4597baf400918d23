"""What a recipe is read as, by its task."""

from typing import Final

from parp_cli.config.classification import TextRecipe
from parp_cli.config.finetune import AnyRecipe, Recipe, Task
from parp_cli.config.masked_lm import MaskedLmRecipe

RECIPES: Final[dict[Task, type[AnyRecipe]]] = {
    "ctc": Recipe,
    "classification": TextRecipe,
    "masked-lm": MaskedLmRecipe,
}
"""A new task is a new class here, with its own `data` and `training`."""
