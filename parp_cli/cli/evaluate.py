"""`parp eval`: recognise, count, compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from parp_cli.cli.options import (
    DEFAULT_RUN,
    CorpusOption,
    DeviceOption,
    JsonOption,
    OutOption,
    QuietOption,
    RunOption,
    SeedOption,
)
from parp_cli.console import Output, duration, percent
from parp_cli.errors import UsageError

if TYPE_CHECKING:
    from parp_cli.decoding.tune import Tuning
    from parp_cli.stages.evaluate import Evaluated, EvaluateResult

_TRIALS_SHOWN = 10
_WORST_SHOWN = 3


def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="By default the newest of the run folder.", show_default=False)
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            help="May be given again; by default the test split of the checkpoint's recipe.",
            show_default=False,
        ),
    ] = None,
    settings: CorpusOption = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            "--mask",
            metavar="FILE",
            help="Evaluate under this file's mask too, and compare; may be given again.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="RESULTS",
            help="Results of another system on the same utterances, to test the difference from; may be given again.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="PATH", help="Write a page with plots and alignments.", show_default=False),
    ] = None,
    trn: Annotated[
        Path | None,
        typer.Option(
            "--trn", metavar="PREFIX", help="Write PREFIX.ref.trn and PREFIX.hyp.trn for sclite.", show_default=False
        ),
    ] = None,
    decoder: Annotated[
        Literal["greedy", "beam", "lexicon"] | None,
        typer.Option(
            "--decoder",
            help="lexicon finds the words of a lexicon alone; beam finds any, and a language model reorders them.",
            show_default="greedy; with --lm or --lexicon lexicon",
        ),
    ] = None,
    lm: Annotated[
        str | None,
        typer.Option(
            "--lm",
            metavar="MODEL",
            help="An ARPA file, a KenLM binary, librispeech-4gram or -3gram; for beam also hf:NAME, a Transformer.",
            show_default=False,
        ),
    ] = None,
    lexicon: Annotated[
        Path | None,
        typer.Option(
            "--lexicon", metavar="PATH", help="Words and their letters.", show_default="the language model's words"
        ),
    ] = None,
    beam_size: Annotated[
        int | None, typer.Option("--beam-size", min=1, help="Hypotheses kept.", show_default="by decoder")
    ] = None,
    lm_weight: Annotated[
        float | None, typer.Option("--lm-weight", min=0.0, help="Of the language model.", show_default="2")
    ] = None,
    word_score: Annotated[
        float | None, typer.Option("--word-score", help="Added for each word.", show_default="0")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Find both on the validation split of the checkpoint's recipe.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=1, help="Processes that decode.", show_default="one a core, 8 at most, where it pays"
        ),
    ] = None,
    batch_seconds: Annotated[
        float,
        typer.Option("--batch-seconds", min=1.0, help="Most audio in one forward pass, in seconds. Changes no result."),
    ] = 60.0,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option("--precision", help="Of the encoder; with bfloat16 batches may change results by rounding."),
    ] = "float32",
    run: RunOption = DEFAULT_RUN,
    out: OutOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Recognise a split and count the errors: WER and CER, or PER, with 95 % intervals.

    Utterances that cannot be judged by are named and left out, the rest is evaluated, and the exit code is 3.

    [bold]Examples:[/]

      parp eval --split test-clean

      parp eval --html report.html --against dense/eval-test-clean.jsonl

      parp eval --lm parp-run/lm.arpa --tune

      parp eval dense/finetune.safetensors --mask parp-a/mask.safetensors --mask parp-b/mask.safetensors

      parp eval model.safetensors --set data.corpus=librispeech --set data.root=~/LibriSpeech --split test-other
    """
    if tune and (lm_weight is not None or word_score is not None):
        raise UsageError("--tune finds the weights that were given", hint="leave out --tune, or the weights")

    from parp_cli.decoding.choose import Decoding
    from parp_cli.runtime.device import select_device
    from parp_cli.runtime.processes import current
    from parp_cli.stages.evaluate import Options, recorded_recipe
    from parp_cli.stages.evaluate import evaluate as stage
    from parp_cli.storage.checkpoint import read_metadata
    from parp_cli.storage.run_folder import checkpoint_or_newest, require_head

    world = current()
    output = Output(as_json=as_json, quiet=quiet, mute=not world.is_main)
    source = checkpoint_or_newest(checkpoint, run)
    metadata = read_metadata(source)
    require_head(source, metadata)
    recipe = recorded_recipe(metadata, settings or ())
    splits = tuple(dict.fromkeys(split or [recipe.data.test]))
    decoding = Decoding(
        decoder=decoder or ("greedy" if lm is None and lexicon is None else "lexicon"),
        lm=lm,
        lexicon=lexicon,
        beam_size=beam_size,
        lm_weight=lm_weight,
        word_score=word_score,
    )
    options = Options(
        splits=splits,
        masks=tuple(mask or ()),
        decoding=decoding,
        tuned=tune,
        workers=workers,
        against=tuple(against or ()),
        html=html,
        trn=trn,
        seed=0 if seed is None else seed,
        precision=precision,
        batch_seconds=batch_seconds,
    )
    searched = [] if decoding.decoder == "greedy" else [decoding.decoder]  # lest it replace what was found greedily
    with output.progress() as notify:
        result = stage(
            source,
            out=out or run / f"{'-'.join(['eval', '+'.join(splits), *searched])}.jsonl",
            data=recipe.data,
            options=options,
            device=world.device(select_device(device)),
            world=world,
            notify=notify,
        )
    _show(output, result, recipe.data.valid)
    output.json(
        {
            "systems": [this.to_json() for this in result.systems],
            "left_out": result.left_out,
            "notes": result.notes,
        }
    )
    if (error := result.error()) is not None and world.is_main:
        raise error


def _show(output: Output, result: "EvaluateResult", valid: str) -> None:
    from parp_cli.scoring.tables import side_by_side, systems_table, terminal_tables

    for this in result.systems:
        if this.tuning is not None:
            _show_tuning(output, this.tuning, this.report.name, valid)
    reports = [this.report for this in result.systems]
    tables = terminal_tables(reports[0]) if len(reports) == 1 else [systems_table(reports)]
    output.text(f"{', '.join(result.as_it_is.splits)}; decoding: {result.as_it_is.decoding}")
    for table in tables:
        output.table(table.title, table.columns, table.rows)
    if len(reports) == 1 and reports[0].worst:
        output.text("Worst utterances")
        for aligned in reports[0].worst[:_WORST_SHOWN]:
            for line in side_by_side(aligned, output.width):
                output.text(line)
    for report in reports:
        for comparison in report.comparisons:
            output.text(comparison.words)
    # Under masks, what the front end makes of the data is there already: their time is not to be compared.
    _show_cost(output, result.as_it_is)
    for this in result.systems[1:]:
        output.text(f"{this.report.name}: {percent(this.sparsity)} sparse")
    for this in result.systems:
        for _, path in this.outputs.by_option:
            output.text(f"wrote {path}")


def _show_cost(output: Output, this: "Evaluated") -> None:
    output.text(
        f"{this.report.name}: {percent(this.sparsity)} sparse, {duration(this.audio_seconds)} of audio in "
        f"{duration(this.seconds)} (real-time factor {this.real_time_factor:.3f})"
    )


def _show_tuning(output: Output, tuning: "Tuning", name: str, split: str) -> None:
    """What was tried, the best first."""
    from parp_cli.decoding.tune import best_first

    trials = best_first(tuning.trials)[:_TRIALS_SHOWN]
    rows = [[f"{t.lm_weight:g}", f"{t.word_score:g}", f"{t.errors:,}", percent(t.rate)] for t in trials]
    title = f"{name}, tuned on {split}: the best of {len(tuning.trials)}"
    output.table(title, ("LM weight", "word score", "errors", "WER"), rows)
    best = tuning.best
    output.text(f"took --lm-weight {best.lm_weight:g} --word-score {best.word_score:g}")
