"""`parp eval`: recognise, count, compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from parp_cli.cli import options
from parp_cli.cli.options import option
from parp_cli.console import Output, duration, percent
from parp_cli.errors import UsageError

if TYPE_CHECKING:
    from parp_cli.decoding.recognizer import Tuning
    from parp_cli.tasks.ctc.evaluation import Evaluated
    from parp_cli.tasks.evaluation import Evaluation

_TRIALS_SHOWN = 10
_WORST_SHOWN = 3


def evaluate(
    checkpoint: options.Checkpoint = None,
    split: Annotated[
        list[str] | None, option("--split", "May be given again; by default the test split of the checkpoint's recipe.")
    ] = None,
    settings: options.Corpus = None,
    mask: Annotated[
        list[Path] | None,
        option("--mask FILE", "Evaluate under this file's mask too, and compare; may be given again."),
    ] = None,
    against: Annotated[
        list[Path] | None,
        option(
            "--against RESULTS",
            "Results of another system on the same utterances, to test the difference from; may be given again.",
        ),
    ] = None,
    html: Annotated[Path | None, option("--html PATH", "Write a page with plots and alignments.")] = None,
    trn: Annotated[Path | None, option("--trn PREFIX", "Write PREFIX.ref.trn and PREFIX.hyp.trn for sclite.")] = None,
    decoder: Annotated[
        Literal["greedy", "beam", "lexicon"] | None,
        option(
            "--decoder",
            "lexicon finds only the words of a lexicon; beam finds any, and a language model reorders them.",
            default="greedy; with --lm or --lexicon lexicon",
        ),
    ] = None,
    lm: Annotated[
        str | None,
        option(
            "--lm MODEL",
            "An ARPA file, a KenLM binary, librispeech-4gram or -3gram; for beam also hf:NAME, a Transformer.",
        ),
    ] = None,
    lexicon: Annotated[
        Path | None, option("--lexicon PATH", "Words and their letters.", default="the language model's words")
    ] = None,
    beam_size: Annotated[int | None, option("--beam-size", "Hypotheses kept.", default="by decoder", min=1)] = None,
    lm_weight: Annotated[
        float | None, option("--lm-weight", "Weight of the language model.", default="2", min=0.0)
    ] = None,
    word_score: Annotated[float | None, option("--word-score", "Added per word.", default="0")] = None,
    tune: Annotated[bool, option("--tune", "Find both on the validation split of the checkpoint's recipe.")] = False,
    workers: Annotated[
        int | None,
        option("--workers", "Processes that decode.", default="one per core, at most 8, where it pays", min=1),
    ] = None,
    batch_seconds: options.BatchSeconds = 60.0,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        option("--precision", "Of the encoder; with bfloat16 batches may change results by rounding.", default=True),
    ] = "float32",
    run: options.Run = options.DEFAULT_RUN,
    out: options.Out = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Recognise a split and count the errors: WER and CER, or PER; of texts accuracy and the like; with 95 % intervals.

    Utterances that cannot be evaluated are named and left out, the rest is evaluated, and the exit code is 3.

    [bold]Examples:[/]
      parp eval --split test-clean
      parp eval --html report.html --against dense/eval-test-clean.jsonl
      parp eval --lm parp-run/lm.arpa --tune
      parp eval dense/finetune.safetensors --mask parp-a/mask.safetensors --mask parp-b/mask.safetensors
      parp eval model.safetensors --set data.corpus=librispeech --set data.root=~/LibriSpeech --split test-other
    """
    if tune and (lm_weight is not None or word_score is not None):
        raise UsageError("--tune finds the weights that were given", hint="leave out --tune, or the weights")

    from parp_cli.cli.predict import show as show_texts
    from parp_cli.decoding.choose import Decoding
    from parp_cli.runtime.device import select_device
    from parp_cli.runtime.processes import current
    from parp_cli.stages.evaluate import Options
    from parp_cli.stages.evaluate import evaluate as stage
    from parp_cli.storage.checkpoint import read_metadata
    from parp_cli.storage.run_folder import checkpoint_or_newest, require_head
    from parp_cli.tasks.classification.evaluation import TextEvaluation
    from parp_cli.tasks.task import task_class

    world = current()
    output = Output(as_json=as_json, quiet=quiet, mute=not world.is_main)
    source = checkpoint_or_newest(checkpoint, run)
    metadata = read_metadata(source)
    task = require_head(source, metadata)
    data = task_class(task["kind"]).recorded(metadata, settings or ()).data
    splits = tuple(dict.fromkeys(split or [data.test]))
    decoding = Decoding(
        decoder=decoder or ("greedy" if lm is None and lexicon is None else "lexicon"),
        lm=lm,
        lexicon=lexicon,
        beam_size=beam_size,
        lm_weight=lm_weight,
        word_score=word_score,
    )
    asked = Options(
        splits=splits,
        masks=tuple(mask or ()),
        decoding=decoding,
        tuned=tune,
        workers=workers,
        against=tuple(against or ()),
        html=html,
        trn=trn,
        seed=seed or 0,
        precision=precision,
        batch_seconds=batch_seconds,
    )
    searched = [] if decoding.decoder == "greedy" else [decoding.decoder]  # keeps greedy results
    with output.progress() as notify:
        result = stage(
            source,
            out=out or run / f"{'-'.join(['eval', '+'.join(splits), *searched])}.jsonl",
            data=data,
            options=asked,
            device=world.device(select_device(device)),
            world=world,
            notify=notify,
        )
    if isinstance(result, TextEvaluation):
        show_texts(output, result)
    else:
        _show(output, result, data.valid)
    output.json(result)
    if (error := result.error()) is not None and world.is_main:
        raise error


def _show(output: Output, result: "Evaluation[Evaluated]", valid: str) -> None:
    from parp_cli.scoring.tables import side_by_side, systems_table, terminal_tables

    first = result.as_it_is
    for system in result.systems:
        if system.tuning is not None:
            _show_tuning(output, system.tuning, system.report.name, valid)
    reports = [system.report for system in result.systems]
    output.text(f"{', '.join(first.splits)}; decoding: {first.decoding}")
    for table in terminal_tables(reports[0]) if len(reports) == 1 else [systems_table(reports)]:
        output.table(table.title, table.columns, table.rows)
    output.text(*(f"{report.name}: {report.nothing_learned}" for report in reports if report.nothing_learned))
    if len(reports) == 1 and reports[0].worst:
        output.text("Worst utterances")
        output.text(*(line for worst in reports[0].worst[:_WORST_SHOWN] for line in side_by_side(worst, output.width)))
    output.text(*(comparison.words for report in reports for comparison in report.comparisons))
    # Under masks the feature encoder's output is reused: their times are not comparable.
    output.text(
        f"{first.report.name}: {percent(first.sparsity)} sparse, {duration(first.audio_seconds)} of audio in "
        f"{duration(first.seconds)} (real-time factor {first.real_time_factor:.3f})"
    )
    output.text(*(f"{system.report.name}: {percent(system.sparsity)} sparse" for system in result.systems[1:]))
    output.wrote(*(path for system in result.systems for _, path in system.outputs.by_option))


def _show_tuning(output: Output, tuning: "Tuning", name: str, split: str) -> None:
    """The best trials."""
    from parp_cli.decoding.recognizer import best_first

    trials = best_first(tuning.trials)[:_TRIALS_SHOWN]
    rows = [[f"{t.lm_weight:g}", f"{t.word_score:g}", f"{t.errors:,}", percent(t.rate)] for t in trials]
    title = f"{name}, tuned on {split}: the best of {len(tuning.trials)}"
    output.table(title, ("LM weight", "word score", "errors", "WER"), rows)
    best = tuning.best
    output.text(f"took --lm-weight {best.lm_weight:g} --word-score {best.word_score:g}")
