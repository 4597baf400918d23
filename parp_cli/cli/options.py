"""Options that several commands share, each spelled once."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

DEFAULT_RUN = Path("parp-run")


def option(spec: str, help_: str, *, default: str | bool = False, **rest: Any) -> Any:
    """An option such as `-o --out PATH`; `default` is what its help shows as one, True the value itself."""
    names = [word for word in spec.split() if word.startswith("-")]
    metavar = next((word for word in spec.split() if not word.startswith("-")), None)
    return typer.Option(*names, metavar=metavar, help=help_, show_default=default, **rest)


Checkpoint = Annotated[Path | None, typer.Argument(help="By default the newest of the run folder.", show_default=False)]
Run = Annotated[Path, option("--run DIR", "The run folder: stages read and write here.", default=True)]
Out = Annotated[Path | None, option("--out PATH", "Write here instead of the run folder.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    option("--device", "Where to compute; auto takes CUDA where there is one.", default=True),
]
Seed = Annotated[
    int | None,
    option("--seed", "Seed of everything random.", min=0, max=2**32 - 1, default="0, or the recipe's"),
]
NamedCheckpoint = Annotated[Path | None, option("--checkpoint -c", "By default the newest of the run folder.")]
DryRun = Annotated[bool, option("--dry-run", "Show the cells and what is left to do, without training.")]
Resume = Annotated[bool, option("--resume", "Go on with the interrupted run of the run folder.")]
Plot = Annotated[Path | None, option("--plot PATH", "Draw it too: a .png or .svg (extra `plot`).")]
Json = Annotated[bool, option("--json", "Print the result as one JSON object.")]
Quiet = Annotated[bool, option("--quiet -q", "No progress, no notes.")]
Keys = Annotated[bool, option("--keys", "Show every key of a recipe and what it means.")]
BatchSeconds = Annotated[
    float, option("--batch-seconds", "Maximum seconds of audio per forward pass.", min=1.0, default=True)
]
Set = Annotated[list[str] | None, option("--set KEY=VALUE", "Override a recipe key; may be given again.")]
Grid = Annotated[
    list[str] | None,
    option("--grid KEY=[VALUE, ...]", "Other values than the grid has for a key; may be given again."),
]
Workers = Annotated[
    int | None,
    option(
        "--workers",
        "Processes on this machine that run cells at the same time.",
        min=1,
        default="one per GPU; none on the CPU, where cells run one by one",
    ),
]
Cluster = Annotated[
    bool, option("--cluster", "Run cells on a Ray cluster; its machines all see the run folder (extra cluster).")
]
Corpus = Annotated[
    list[str] | None,
    option("--set KEY=VALUE", "Another corpus: data.corpus, data.root, data.manifest."),
]
