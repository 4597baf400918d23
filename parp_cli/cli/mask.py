"""`parp mask`: a mask over a model, new or made from other checkpoints' masks."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from parp_cli.cli import options, render
from parp_cli.cli.options import option
from parp_cli.console import Output, percent
from parp_cli.errors import UsageError
from parp_cli.pruning.methods.spec import FirstMask
from parp_cli.pruning.patterns import DEFAULT_PATTERN, DEFAULT_SCOPE, check_setting

if TYPE_CHECKING:
    from parp_cli.stages.mask import MaskResult


_new = partial(option, rich_help_panel="A new mask")
_combined = partial(option, rich_help_panel="A mask combined from others")


def mask(
    sparsity: Annotated[
        float | None,
        _new("--sparsity -s", "Share of the prunable weights to prune, in [0, 1).", default="0.5, or the pattern's"),
    ] = None,
    model: Annotated[
        str | None,
        _new(
            "--model -m",
            "mini, another architecture's name, a Hugging Face folder or hub name, or a file.",
            default="mini",
        ),
    ] = None,
    architecture: Annotated[
        str | None, option("--architecture", "What the model is, where its file does not say.")
    ] = None,
    method: Annotated[
        FirstMask | None,
        _new(
            "--method",
            "Prune the smallest weights, random ones, or those at the places of an untrained network's smallest.",
            default="magnitude",
        ),
    ] = None,
    biases: Annotated[
        bool | None, _new("--biases/--no-biases", "Whether biases are pruned too.", default="biases")
    ] = None,
    scope: Annotated[
        str | None,
        _new(
            "--scope",
            "transformer, attention, feed-forward, front-end, everything, or names such as '*.layers.[0-5].*'.",
            default=DEFAULT_SCOPE,
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        _new(
            "--pattern",
            "Which weights compete: global, layer, tensor, row, N:M such as 2:4, blocks such as 16x16; or whole "
            "attention heads, feed-forward units, and channels of the feature encoder (scope everything): structures, "
            "heads, units, channels.",
            default=DEFAULT_PATTERN,
        ),
    ] = None,
    source: Annotated[Path | None, _combined("--from A", "Begin with this checkpoint's mask.")] = None,
    union: Annotated[list[Path] | None, _combined("--union B", "Also keep what this mask keeps.")] = None,
    intersect: Annotated[list[Path] | None, _combined("--intersect B", "Keep only what this mask keeps too.")] = None,
    minus: Annotated[list[Path] | None, _combined("--minus B", "Prune what this mask keeps.")] = None,
    apply: Annotated[
        str | None, _combined("--apply MODEL", "Apply the mask to this model's or checkpoint's weights, not A's.")
    ] = None,
    run: options.Run = options.DEFAULT_RUN,
    out: options.Out = None,
    device: options.Device = "auto",
    seed: Annotated[int | None, _new("--seed", "Of a random choice.", min=0, max=2**32 - 1, default="0")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
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
    render.kept_zeros(output, result.kept_zeros, amount)
    output.wrote(result.path)
    output.json(result)


def _notes(output: Output, result: "MaskResult", pattern: str | None) -> None:
    """Say what may be unexpected about the mask."""
    from parp_cli.scoring.intervals import counted

    if unfit := result.cannot_hold:
        where = "biases" if all(name.endswith("bias") for name in unfit) else f"tensors such as {next(iter(unfit))}"
        output.note(f"{sum(unfit.values()):,} weights in {where} cannot hold {pattern} and are not pruned")
    if result.replaced is not None:
        output.note(
            f"{result.model} has a mask that prunes {percent(result.replaced)}; the new one replaces it "
            f"(`parp mask --from {result.model}` keeps it)"
        )
    for file, names in result.completed.items():
        tensors = counted(len(names), "tensor")
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
