"""`parp compare`: what the masks of several checkpoints have in common."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from parp_cli.cli.options import JsonOption, PlotOption, QuietOption
from parp_cli.console import Output, percent

if TYPE_CHECKING:
    from parp_cli.pruning.overlap import Overlap, Pair
    from parp_cli.stages.compare import Comparison

_MANY_PAIRS = 3
"""Above these, columns of pairs have numbers for heads and no decimals, to stay within a terminal."""


def compare(
    checkpoints: Annotated[list[Path], typer.Argument(help="Two or more, of one architecture.", show_default=False)],
    plot: PlotOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare masks: intersection over union (IoU) of the kept weights, and agreement.

    IoU: of what either keeps, the share that both keep. Agreement: of all weights, those both keep or both prune.

    Beside each is the level by chance: of masks that are random within each tensor and prune as much of it.

    --json also has the pooled level, of masks that are random over all weights at once. Weights are not loaded.

    [bold]Examples:[/]

      parp compare mpi/mask.safetensors parp/finetune.safetensors

      parp compare mpi.safetensors omp.safetensors parp.safetensors --plot overlap.png
    """
    from parp_cli.stages.compare import compare as stage

    output = Output(as_json=as_json, quiet=quiet)
    if plot is not None:
        from parp_cli.pruning.plots import check_plot, overlap_heatmap

        check_plot(plot)
    result = stage(checkpoints)
    if plot is not None:
        overlap_heatmap(plot, result.pairs)
    _show(output, result)
    if plot is not None:
        output.text(f"wrote {plot}")
    output.json(result)


def _show(output: Output, result: "Comparison") -> None:
    files = [[f.label, percent(f.sparsity), f"{f.total - f.pruned:,}", f"{f.total:,}", f.stage] for f in result.files]
    output.table("Masks", ("", "sparsity", "kept", "of", "by"), files)
    rows = [
        [
            name,
            percent(pair.overall.iou),
            percent(pair.overall.iou_by_chance),
            percent(pair.overall.agreement),
            percent(pair.overall.agreement_by_chance),
        ]
        for name, pair in zip(_names(result), result.pairs, strict=True)
    ]
    output.table("Overlap of the kept weights", ("", "IoU", "by chance", "agreement", "by chance"), rows)
    output.text("by chance: masks that are random within each tensor, at its own two sparsities")
    _groups(output, result, "layer", lambda pair: pair.by_layer)
    _groups(output, result, "kind", lambda pair: pair.by_kind)
    if result.left_out:
        count = len(result.left_out)
        tensors = "1 tensor" if count == 1 else f"{count} tensors"
        output.text(f"left out {tensors} that only some of the masks cover, such as {result.left_out[0]}")


def _groups(
    output: Output, result: "Comparison", what: str, grouped: Callable[["Pair"], Mapping[str, "Overlap"]]
) -> None:
    many = len(result.pairs) > _MANY_PAIRS
    digits = 0 if many else 1
    # rich reads square brackets in column heads as markup.
    heads = [f"{number}" if many else escape(name) for number, name in enumerate(_names(result), start=1)]
    rows = [
        [label, *(_with_chance(grouped(pair)[label], digits) for pair in result.pairs)]
        for label in grouped(result.pairs[0])
    ]
    title = "IoU in % (by chance), by " + {"layer": "layer", "kind": "kind of module"}[what]
    output.table(title, (what, *heads), rows)


def _names(result: "Comparison") -> list[str]:
    """Of the pairs; with their numbers where tables refer to these."""
    names = [f"{pair.first} – {pair.second}" for pair in result.pairs]
    if len(names) <= _MANY_PAIRS:
        return names
    return [f"{number:2}  {name}" for number, name in enumerate(names, start=1)]


def _with_chance(overlap: "Overlap", digits: int) -> str:
    return f"{100 * overlap.iou:.{digits}f} ({100 * overlap.iou_by_chance:.{digits}f})"
