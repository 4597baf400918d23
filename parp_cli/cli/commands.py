"""One function per subcommand: read the options, call one stage, show its result.

Stages are imported inside the functions, so that `parp --help` does not wait for torch.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from parp_cli.cli import options, render
from parp_cli.cli.options import option
from parp_cli.console import Output, jsonable, percent, size
from parp_cli.errors import UsageError


def finetune(
    recipe: Annotated[
        Path | None, typer.Argument(help="A YAML file; without one, recipes/mini/10min.", show_default=False)
    ] = None,
    init: Annotated[
        Path | None,
        option(
            "--init CHECKPOINT",
            "Start from this checkpoint; by default from the newest of the run folder that fine-tuning did not "
            "write, else from the recipe's model.",
        ),
    ] = None,
    resume: options.Resume = False,
    dry_run: Annotated[
        bool, option("--dry-run", "Show the resolved recipe and the run in figures; train nothing.")
    ] = False,
    tensorboard: Annotated[
        bool, option("--tensorboard", "Log for TensorBoard too, to its folder in the run folder.")
    ] = False,
    keys: options.Keys = False,
    settings: options.Set = None,
    run: options.Run = options.DEFAULT_RUN,
    out: options.Out = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fine-tune while the mask adjusts (PARP), or by another method of `pruning.method`.

    [bold]Examples:[/]
      parp finetune recipe.yaml
      parp finetune recipe.yaml --set pruning.method=omp --set training.updates=500
      parp finetune recipe.yaml --init parp-run/mask.safetensors --dry-run
      parp finetune --keys --set task=classification
    """
    from parp_cli.config.finetune import AnyRecipe
    from parp_cli.config.load import dump_yaml, load_recipe

    resolved: AnyRecipe = load_recipe(recipe, settings or ())
    if keys:
        render.recipe_keys(Output(as_json=as_json, quiet=quiet), type(resolved))
        return
    if seed is not None:
        resolved = replace(resolved, seed=seed)

    from parp_cli.runtime.device import select_device, with_resolved_precision
    from parp_cli.runtime.processes import current
    from parp_cli.stages.finetune import finetune as stage
    from parp_cli.stages.finetune import plan
    from parp_cli.storage.run_folder import newest_checkpoint
    from parp_cli.training.plan import settle

    world = current()
    output = Output(as_json=as_json, quiet=quiet, mute=not world.is_main)
    where = world.device(select_device(device))
    start = init or newest_checkpoint(run, but_not_by=["finetune"])
    if dry_run:
        with output.progress() as notify:
            resolved = replace(resolved, training=with_resolved_precision(resolved.training, where))
            planned = plan(resolved, init=start, notify=notify)
        resolved = settle(resolved, start)
        resolved = replace(resolved, pruning=replace(resolved.pruning, sparsity=planned.sparsity))
        output.text(dump_yaml(resolved).rstrip())
        render.plan(output, planned)
        output.json({"recipe": resolved, "plan": planned})
        return
    with output.progress() as notify:
        output.note(f"starting from {start or resolved.model or resolved.default_model}")
        result = stage(
            resolved,
            run=run,
            init=start,
            out=out,
            device=where,
            resume=resume,
            tensorboard=tensorboard,
            world=world,
            notify=notify,
        )
    render.finetune(output, result)
    output.json(result)


def reprune(
    checkpoint: options.Checkpoint = None,
    sparsity: Annotated[float | None, option("--sparsity -s", "In [0, 1); by default as before.")] = None,
    pattern: Annotated[
        str | None, option("--pattern", "As of `parp mask`; by default the checkpoint's. Its scope stays.")
    ] = None,
    run: options.Run = options.DEFAULT_RUN,
    out: options.Out = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Prune a checkpoint anew by its current weights, at the same or another sparsity.

    In a finished file pruned weights are zero: only a higher sparsity or another pattern changes its mask much.
    Which weights are worth keeping changes with training: `parp finetune` re-prunes while it trains.

    [bold]Examples:[/]
      parp reprune
      parp reprune parp-run/finetune.safetensors --sparsity 0.7
      parp reprune --pattern 2:4
    """
    from parp_cli.pruning.patterns import check_setting

    check_setting(sparsity, pattern)

    from parp_cli.runtime.device import select_device
    from parp_cli.stages.reprune import reprune as stage
    from parp_cli.storage.run_folder import REPRUNED, checkpoint_or_newest

    del seed  # nothing here is random; taken because every stage takes it
    output = Output(as_json=as_json, quiet=quiet)
    source = checkpoint_or_newest(checkpoint, run)
    result = stage(source, out=out or run / REPRUNED, sparsity=sparsity, pattern=pattern, device=select_device(device))
    amount = result.sparsity
    output.text(f"pruned {amount.pruned:,} of {amount.total:,} weights of {source} ({percent(amount.exact)})")
    output.text(f"revived {result.revived:,}, dropped {result.dropped:,}")
    render.kept_zeros(output, result.kept_zeros, amount)
    output.wrote(result.path)
    output.json(result)


def export(
    to: Annotated[
        Literal["hf", "torchaudio", "small", "onnx", "sherpa", "gguf", "packed", "sparse", "mask"],
        option(
            "--to",
            "A folder for transformers; a state dict; a checkpoint without what the mask emptied; a file for "
            "onnxruntime (extra `onnx`); a folder for sherpa-onnx (extra `sherpa`); a file for crispasr (extra "
            "`gguf`); a checkpoint with only the weights that are kept; one that computes with each matrix as is "
            "fastest on this machine; the mask alone.",
        ),
    ],
    checkpoint: options.Checkpoint = None,
    int8: Annotated[
        bool,
        option(
            "--int8",
            "With onnx, sherpa, gguf and sparse: matrix products of 8-bit integers, which most processors compute "
            "faster.",
        ),
    ] = False,
    values: Annotated[
        Literal["float32", "float16", "bfloat16", "int8"] | None,
        option("--values", "With packed: the number type of kept weights.", default="float32"),
    ] = None,
    split: Annotated[
        str | None,
        option(
            "--split",
            "Then measure it beside the checkpoint and the dense network: load time, memory, speed by length, and "
            "errors on this split.",
        ),
    ] = None,
    run: options.Run = options.DEFAULT_RUN,
    out: options.Out = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint for other tools, zero wherever its mask prunes, or a smaller one.

    Most runtimes compute with zeros as with other numbers. Whole heads and units can be removed: prune with
    pruning.pattern=structures, and --to small writes a checkpoint without them. --to packed leaves zeros out of the
    file. --to sparse measures each matrix dense and as compressed rows, which are faster from about 90 % sparsity on,
    and with --int8 in 8-bit integers; on a GPU, 2:4 matrices on its sparse tensor cores, which `parp eval --precision
    bfloat16` then uses. Every command takes small, packed and sparse checkpoints; eval and transcribe take exported
    masks (--mask). Small, packed, sparse, onnx, sherpa and gguf are compared with the checkpoint before they are
    written. Of texts there are hf, small, onnx, packed and mask. sherpa-onnx (phones, browsers, a dozen languages)
    reads --to sherpa as omnilingual_asr_ctc. crispasr (ggml) reads --to gguf, of networks whose norms are layer norms
    that come first: mini, and the large ones of wav2vec 2.0, XLS-R and HuBERT.

    [bold]Examples:[/]
      parp export --to hf
      parp export --to small
      parp export --to packed --values int8
      parp export --to sparse --int8
      parp export parp-run/small.safetensors --to onnx --int8 --split test-clean
      parp export parp-run/small.safetensors --to sherpa --int8
    """
    from parp_cli.cli.bench import show
    from parp_cli.exporters.measure import runtime_of
    from parp_cli.exporters.targets import target_of
    from parp_cli.runtime.device import select_device
    from parp_cli.stages.bench import bench
    from parp_cli.stages.export import export as stage
    from parp_cli.storage.run_folder import EXPORTS, checkpoint_or_newest

    del seed  # nothing here is random; taken because every stage takes it
    output = Output(as_json=as_json, quiet=quiet)
    source = checkpoint_or_newest(checkpoint, run)
    if split is not None:
        if not target_of(to).benched:
            raise UsageError(f"what --to {to} writes cannot be measured", hint="leave out --split")
        runtime_of(source)  # or it cannot be measured
    with output.progress() as notify:
        name = EXPORTS[f"{to}-int8" if int8 else to]
        # A sparse one of a model without 2:4 matrices is for the CPU; others are made there.
        where = None if device == "auto" else select_device(device)
        result = stage(source, to=to, out=out or run / name, int8=int8, values=values, device=where, notify=notify)
    output.text(f"exported {source} {target_of(to).title}, {size(result.size)}")
    render.export(output, result)
    output.wrote(*filter(None, [result.path, result.card]))
    if split is None:
        output.json(result)
        return
    with output.progress() as notify:
        measured = bench([source, result.path], batches=[1], dense=True, split=split, notify=notify)
    show(output, measured)
    output.json({**jsonable(result), "bench": jsonable(measured)})


def shrink(
    checkpoint: options.Checkpoint = None,
    run: options.Run = options.DEFAULT_RUN,
    out: options.Out = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove the attention heads, units and channels that the mask has emptied: `parp export --to small`.

    The result is a smaller and faster checkpoint, which every command takes.

    [bold]Examples:[/]
      parp finetune recipe.yaml --set pruning.pattern=structures
      parp shrink
    """
    export("small", checkpoint, run=run, out=out, as_json=as_json, quiet=quiet)


def push(
    folder: Annotated[Path, typer.Argument(help="What `parp export --to hf` wrote.")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME; made if it is not there.", metavar="REPO")],
    public: Annotated[
        bool, option("--public/--private", "Whether a new repository can be seen by all.", default=True)
    ] = False,
    message: Annotated[str | None, option("--message TEXT", "Of the commit.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Upload an exported folder to the Hugging Face hub (extra `hub`): the model, its tokenizer and its card.

    Log in once with `hf auth login`, or set HF_TOKEN; HF_ENDPOINT names another hub.

    [bold]Example:[/]
      parp push parp-run/export-hf me/my-sparse-model
    """
    from parp_cli.stages.push import push as stage

    output = Output(as_json=as_json, quiet=quiet)
    result = stage(folder, repository, private=not public, message=message)
    output.text(f"uploaded {', '.join(result.files)}", f"to {result.url}, commit {result.commit}")
    output.json(result)


def inspect(
    checkpoint: options.Checkpoint = None,
    plot: options.Plot = None,
    run: options.Run = options.DEFAULT_RUN,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what a checkpoint holds: architecture, ancestry, sparsity, re-prunings, recipe. Weights are not loaded.

    [bold]Examples:[/]
      parp inspect parp-run/finetune.safetensors
      parp inspect --plot reprunings.png
    """
    from parp_cli.pruning.plots import check_plot, repruning_figure
    from parp_cli.stages.inspect import inspect as stage
    from parp_cli.storage.run_folder import checkpoint_or_newest

    output = Output(as_json=as_json, quiet=quiet)
    source = checkpoint_or_newest(checkpoint, run)
    if plot is not None:
        check_plot(plot)
    result = stage(source)
    if plot is not None:
        if not result.reprunings:
            raise UsageError(f"{source} records no re-prunings to draw", hint="runs of PARP and the like record some")
        repruning_figure(plot, result.reprunings, str(source))
    render.inspection(output, result)
    output.wrote(*filter(None, [plot]))
    output.json(result)


def pretrain(
    recipe: Annotated[Path, typer.Argument(help="A YAML file such as recipes/mini/pretrain.yaml.")],
    resume: options.Resume = False,
    settings: options.Set = None,
    run: options.Run = options.DEFAULT_RUN,
    out: options.Out = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Pre-train an encoder on unlabelled speech: masked prediction of clusters, as HuBERT.

    [bold]Example:[/]
      parp pretrain recipes/mini/pretrain.yaml --run my-encoder
    """
    from parp_cli.config.load import load_recipe
    from parp_cli.config.pretrain import PretrainRecipe
    from parp_cli.runtime.processes import current

    world = current()
    output = Output(as_json=as_json, quiet=quiet, mute=not world.is_main)
    resolved = load_recipe(recipe, settings or (), kind=PretrainRecipe)
    if seed is not None:
        resolved = replace(resolved, seed=seed)

    from parp_cli.runtime.device import select_device
    from parp_cli.stages.pretrain import pretrain as stage
    from parp_cli.storage.run_folder import PRETRAINED

    where, target = world.device(select_device(device)), out or run / PRETRAINED
    with output.progress() as notify:
        result = stage(resolved, run=run, out=target, device=where, resume=resume, world=world, notify=notify)
    render.pretraining(output, result)
    output.json(result)
