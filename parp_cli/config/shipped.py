"""The recipes that come with parp."""

from pathlib import Path

from parp_cli.errors import RecipeError

PACKAGE = Path(__file__).parents[1]


def shipped(name: str) -> Path:
    """A file of recipes/, such as `mini/10min.yaml`: an installed package holds the folder, a clone has it beside.

    Raises RecipeError: it is not there.
    """
    for folder in (PACKAGE, PACKAGE.parent):
        if (path := folder / "recipes" / name).is_file():
            return path
    raise RecipeError(f"parp is installed without its recipe {name}", hint="install it again, or name another recipe")
