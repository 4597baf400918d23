"""`parp compare`: what the masks of several checkpoints have in common."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from parp_cli.cli import options
from parp_cli.console import Output, percent

if TYPE_CHECKING:
    from parp_cli.pruning.overlap import Overlap
    from parp_cli.stages.compare import Comparison

_MANY_PAIRS = 3  # above these, columns of pairs have numbers for heads and no decimals, to stay within a terminal


def compare(
    checkpoints: Annotated[list[Path], typer.Argument(help="Two or more, of one architecture.")],
    plot: options.Plot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
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
    output.wrote(*filter(None, [plot]))
    output.json(result)


def _show(output: Output, result: "Comparison") -> None:
    from parp_cli.scoring.intervals import counted

    files = [[f.label, percent(f.sparsity), f"{f.total - f.pruned:,}", f"{f.total:,}", f.stage] for f in result.files]
    output.table("Masks", ("", "sparsity", "kept", "of", "by"), files)
    names = [f"{pair.first} – {pair.second}" for pair in result.pairs]
    heads, digits = [escape(name) for name in names], 1  # rich reads square brackets in heads as markup
    if len(names) > _MANY_PAIRS:
        heads, digits = [f"{number}" for number, _ in enumerate(names, start=1)], 0
        names = [f"{head:>2}  {name}" for head, name in zip(heads, names, strict=True)]
    rows = [
        [name, *map(percent, (of.iou, of.iou_by_chance, of.agreement, of.agreement_by_chance))]
        for name, of in zip(names, (pair.overall for pair in result.pairs), strict=True)
    ]
    output.table("Overlap of the kept weights", ("", "IoU", "by chance", "agreement", "by chance"), rows)
    output.text("by chance: masks that are random within each tensor, at its own two sparsities")
    for what, title, groups in (
        ("layer", "layer", [pair.by_layer for pair in result.pairs]),
        ("kind", "kind of module", [pair.by_kind for pair in result.pairs]),
    ):
        rows = [[label, *(_with_chance(overlaps[label], digits) for overlaps in groups)] for label in groups[0]]
        output.table(f"IoU in % (by chance), by {title}", (what, *heads), rows)
    if result.left_out:
        tensors = counted(len(result.left_out), "tensor")
        output.text(f"left out {tensors} that only some of the masks cover, such as {result.left_out[0]}")


def _with_chance(overlap: "Overlap", digits: int) -> str:
    return f"{100 * overlap.iou:.{digits}f} ({100 * overlap.iou_by_chance:.{digits}f})"
