"""`parp mask`: a mask over a model, new or made from other checkpoints' masks."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parp_cli.cli.options import (
    DEFAULT_RUN,
    DeviceOption,
    JsonOption,
    OutOption,
    QuietOption,
    RunOption,
)
from parp_cli.console import Output, percent
from parp_cli.errors import UsageError
from parp_cli.pruning.limits import DEFAULT_PATTERN, DEFAULT_SCOPE, check_setting
from parp_cli.pruning.methods.spec import FirstMask

if TYPE_CHECKING:
    from parp_cli.stages.mask import MaskResult

_NEW = "A new mask"
_COMBINED = "A mask combined from others"

_Sparsity = Annotated[
    float | None,
    typer.Option(
        "--sparsity",
        "-s",
        help="Share of the prunable weights to prune, in [0, 1).",
        show_default="0.5, or the pattern's",
        rich_help_panel=_NEW,
    ),
]
_Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="mini, another architecture's name, a Hugging Face folder or hub name, or a file.",
        show_default="mini",
        rich_help_panel=_NEW,
    ),
]
_Architecture = Annotated[
    str | None,
    typer.Option("--architecture", help="What the model is, where its file does not tell.", show_default=False),
]
_Method = Annotated[
    FirstMask | None,
    typer.Option(
        "--method",
        help="Prune the smallest weights, random ones, or those at the places of an untrained network's smallest.",
        show_default="magnitude",
        rich_help_panel=_NEW,
    ),
]
_Biases = Annotated[
    bool | None,
    typer.Option(
        "--biases/--no-biases", help="Whether biases are pruned too.", show_default="biases", rich_help_panel=_NEW
    ),
]
_Scope = Annotated[
    str | None,
    typer.Option(
        "--scope",
        help="transformer, attention, feed-forward, front-end, everything, or names such as '*.layers.[0-5].*'.",
        show_default=DEFAULT_SCOPE,
        rich_help_panel=_NEW,
    ),
]
_Pattern = Annotated[
    str | None,
    typer.Option(
        "--pattern",
        help="Which weights compete: global, layer, tensor, row, N:M such as 2:4, blocks such as 16x16.",
        show_default=DEFAULT_PATTERN,
        rich_help_panel=_NEW,
    ),
]
_Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=2**32 - 1, help="Of a random choice.", show_default="0", rich_help_panel=_NEW),
]
_From = Annotated[
    Path | None,
    typer.Option(
        "--from", metavar="A", help="Begin with this checkpoint's mask.", show_default=False, rich_help_panel=_COMBINED
    ),
]
_Union = Annotated[
    list[Path] | None,
    typer.Option(
        "--union", metavar="B", help="Also keep what this mask keeps.", show_default=False, rich_help_panel=_COMBINED
    ),
]
_Intersect = Annotated[
    list[Path] | None,
    typer.Option(
        "--intersect",
        metavar="B",
        help="Keep only what this mask keeps too.",
        show_default=False,
        rich_help_panel=_COMBINED,
    ),
]
_Minus = Annotated[
    list[Path] | None,
    typer.Option(
        "--minus", metavar="B", help="Prune what this mask keeps.", show_default=False, rich_help_panel=_COMBINED
    ),
]
_Apply = Annotated[
    str | None,
    typer.Option(
        "--apply",
        metavar="MODEL",
        help="Lay the mask over this model's or checkpoint's weights, not A's.",
        show_default=False,
        rich_help_panel=_COMBINED,
    ),
]


def mask(
    sparsity: _Sparsity = None,
    model: _Model = None,
    architecture: _Architecture = None,
    method: _Method = None,
    biases: _Biases = None,
    scope: _Scope = None,
    pattern: _Pattern = None,
    source: _From = None,
    union: _Union = None,
    intersect: _Intersect = None,
    minus: _Minus = None,
    apply: _Apply = None,
    run: RunOption = DEFAULT_RUN,
    out: OutOption = None,
    device: DeviceOption = "auto",
    seed: _Seed = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prune a model: write its weights and a mask.

    With --from the mask is combined from other checkpoints' masks: all --union first, then --intersect, then --minus.

    A checkpoint keeps the weights that it has no mask for, so --minus prunes them.

    A's pruned weights are zero, even where the combined mask keeps them; --apply mini brings their values back.

    [bold]Examples:[/]

      parp mask --sparsity 0.5

      parp mask --model wav2vec2-base --pattern 2:4 --run base24

      parp mask --from es.safetensors --union fr.safetensors --apply mini
    """
    output = Output(as_json=as_json, quiet=quiet)
    new = {"sparsity": sparsity, "model": model, "method": method, "biases": biases, "scope": scope, "pattern": pattern}
    combined = {"union": union, "intersect": intersect, "minus": minus, "apply": apply}
    _refuse_mixture(source, new | {"seed": seed}, combined)
    check_setting(sparsity, pattern)

    # Only now, as they load torch.
    from parp_cli.config.finetune import DEFAULT_MODEL
    from parp_cli.runtime.device import select_device
    from parp_cli.stages.mask import combine
    from parp_cli.stages.mask import mask as stage
    from parp_cli.storage.run_folder import MASK

    path = out or run / MASK
    with output.progress() as notify:
        if source is None:
            result = stage(
                model or DEFAULT_MODEL,
                sparsity=sparsity,
                out=path,
                method=method or "magnitude",
                biases=biases is not False,
                scope=scope or DEFAULT_SCOPE,
                pattern=pattern or DEFAULT_PATTERN,
                seed=seed or 0,
                architecture=architecture,
                device=select_device(device),
                notify=notify,
            )
        else:
            result = combine(
                source,
                out=path,
                unions=union or (),
                intersections=intersect or (),
                minuses=minus or (),
                apply=apply,
                architecture=architecture,
                notify=notify,
            )
    _notes(output, result, pattern)
    amount = result.sparsity
    output.text(f"pruned {amount.pruned:,} of {amount.total:,} weights of {result.model} ({percent(amount.exact)})")
    output.text(f"wrote {result.path}")
    output.json(result)


def _notes(output: Output, result: "MaskResult", pattern: str | None) -> None:
    """Say what may be unexpected about the mask."""
    if unfit := result.cannot_hold:
        where = "biases" if all(name.endswith("bias") for name in unfit) else f"tensors such as {next(iter(unfit))}"
        output.note(f"{sum(unfit.values()):,} weights in {where} cannot hold {pattern} and are not pruned")
    for file, names in result.completed.items():
        tensors = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
        output.note(f"{file} has no mask for {tensors} that others mask, such as {names[0]}: it keeps them whole")


def _refuse_mixture(source: Path | None, new: Mapping[str, object], combined: Mapping[str, object]) -> None:
    """Refuse options of a new mask together with those of one combined from others."""
    if source is not None and (given := [name for name, value in new.items() if value is not None]):
        options = ", ".join(f"--{name}" for name in given)
        raise UsageError(
            f"--from takes an existing mask, {options} would choose a new one",
            hint="drop one of them; to put the mask on other weights use --apply",
        )
    if source is None and (given := [name for name, value in combined.items() if value]):
        raise UsageError(f"--{given[0]} needs a mask to begin with", hint="name its checkpoint with --from")
