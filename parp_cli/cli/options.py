"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

DEFAULT_RUN = Path("parp-run")
Device = Literal["auto", "cpu", "cuda"]

RunOption = Annotated[
    Path, typer.Option("--run", metavar="DIR", help="The run folder: stages read and write here.", show_default=True)
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="PATH", help="Write here instead of the run folder.", show_default=False)
]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute; auto takes CUDA where there is one.")]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of everything random.", show_default="0, or the recipe's"),
]
PlotOption = Annotated[
    Path | None,
    typer.Option("--plot", metavar="PATH", help="Draw it too: a .png or .svg (extra `plot`).", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")]
KeysOption = Annotated[bool, typer.Option("--keys", help="Show every key of a recipe and what it means.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; may be given again.", show_default=False),
]
CorpusOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another corpus: data.corpus, data.root, data.manifest.",
        show_default=False,
    ),
]
