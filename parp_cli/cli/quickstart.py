"""`parp quickstart`: every stage in one command, within minutes."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from parp_cli.cli import options, render
from parp_cli.cli.options import option
from parp_cli.console import Output, duration, percent, size
from parp_cli.runtime.progress import Notify

if TYPE_CHECKING:
    from parp_cli.stages.finetune import FinetuneResult
    from parp_cli.tasks.ctc.evaluation import Evaluated

_METHODS = {"dense": "dense", "MPI (fixed mask)": "mpi", "PARP": "parp"}
_PATTERN = "tensor"
_UPDATES = 600
_SETTINGS = (
    f"pruning.pattern={_PATTERN}",
    "pruning.interval=10",
    "training.learning_rate=4e-3",
    "training.batch_seconds=8",
    "training.time_mask_probability=0.1",
    "training.channel_mask_probability=0",
)
"""What suits so few updates, chosen on dev-clean for all three methods alike."""


def quickstart(
    run: Annotated[Path, option("--run DIR", "Where everything is written.", default=True)] = Path("parp-quickstart"),
    sparsity: Annotated[float, option("--sparsity -s", "Share of weights to prune, in [0, 1).", default=True)] = 0.5,
    task: Annotated[
        Literal["ctc", "classification"], option("--task -t", "Of speech, or of sentences.", default=True)
    ] = "ctc",
    updates: Annotated[
        int | None, option("--updates", "Of each of the three runs; by default 600, of sentences 100.", min=1)
    ] = None,
    seed: Annotated[int, option("--seed", "Seed of everything random.", min=0, max=2**32 - 1, default=True)] = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Dense, fixed-mask and PARP fine-tuning of the bundled encoder on ten minutes of generated speech.

    Generates the corpus, gives each method the same updates, evaluates each on test-clean without and with a language
    model of the ten minutes' own sentences, and prints one table. Then half of the dense network's attention heads and
    feed-forward units are pruned and removed, for a small and fast ONNX file to keep. With --task classification the
    methods alone, on sentences, by a small BERT.

    [bold]Examples:[/]
      parp quickstart
      parp quickstart --task classification
    """
    output = Output(as_json=as_json, quiet=quiet)
    if task == "classification":
        from parp_cli.cli.quickstart_texts import UPDATES, quickstart_texts

        quickstart_texts(output, run, sparsity=sparsity, updates=updates or UPDATES, seed=seed, device=device)
        return

    from parp_cli.cli.quickstart_small import quickstart_small
    from parp_cli.config.load import load_recipe
    from parp_cli.decoding.choose import Decoding
    from parp_cli.decoding.lm import flashlight
    from parp_cli.runtime.device import select_device
    from parp_cli.stages.evaluate import Options, evaluate
    from parp_cli.stages.lm import build, transcripts
    from parp_cli.stages.mask import mask
    from parp_cli.storage.run_folder import MASK

    updates = updates or _UPDATES
    flashlight("decoder")  # a missing package is named before anything trains
    began = time.monotonic()
    where = select_device(device)
    settings = (*_SETTINGS, f"seed={seed}", f"training.updates={updates}", f"training.validate_every={updates}")
    rows: list[dict[str, Any]] = []
    with output.progress() as notify:
        masked = mask(
            "mini", sparsity=sparsity, out=run / MASK, pattern=_PATTERN, seed=seed, device=where, notify=notify
        )
        data = load_recipe(None).data
        lm = build(transcripts(data, [data.train], notify), out=run / "lm.arpa", notify=notify)
        decodings = {"": Decoding(), "_lm": Decoding(decoder="lexicon", lm=str(lm.path))}
        for name, tuned in fine_tuned(output, run, settings, masked.path, where, notify):
            row: dict[str, Any] = {"method": name, "checkpoint": tuned.path, "seconds": tuned.cost.seconds}
            compared = {}
            for suffix, decoding in decodings.items():
                # Each is compared with the ones before it, on the same utterances.
                against = tuple(before["hypotheses" + suffix] for before in rows)
                results = tuned.path.with_name(f"eval-test-clean{suffix.replace('_', '-')}.jsonl")
                options = Options(decoding=decoding, against=against)
                evaluated = evaluate(tuned.path, out=results, options=options, device=where, notify=notify).as_it_is
                row |= _measured(evaluated, suffix)
                compared[f"word{suffix}"] = [comparison.words for comparison in evaluated.report.comparisons]
            rows.append({**row, "sparsity": evaluated.sparsity, "size": tuned.path.stat().st_size})
    columns: render.Columns = {
        "method": ("method", str),
        "word": ("WER", percent),
        "character": ("CER", percent),
        "word_lm": ("WER with 4-gram", percent),
        "sparsity": ("sparsity", percent),
        "size": ("file", size),
        "seconds": ("time", duration),
    }
    render.rows(output, "Ten minutes of generated English, test-clean", columns, rows)
    output.text("The 4-gram and its lexicon are of the training sentences. Is PARP any different from the others?")
    output.text(*compared["word"], "and with the 4-gram:", *compared["word_lm"])
    kept = quickstart_small(output, run, rows[0], settings, updates=updates, device=where)
    seconds = time.monotonic() - began
    files = ("checkpoint", "hypotheses", "hypotheses_lm")
    written = (masked.path, lm.path, *(row[key] for row in rows for key in files), *(kept["written"] if kept else ()))
    output.text(f"all in {duration(seconds)}; wrote", *(f"  {path}" for path in written))
    output.json({"rows": rows, "compared": compared, "mask": masked.path, "small": kept, "seconds": seconds})


def fine_tuned(
    output: Output, run: Path, settings: Sequence[str], masked: Path, device: Any, notify: Notify
) -> Iterator[tuple[str, "FinetuneResult"]]:
    """Fine-tune by one method after another, each in a folder of its own, from the masked model where it takes a mask;
    with the method's name for people."""
    from parp_cli.config.load import load_recipe
    from parp_cli.pruning.methods import spec_of
    from parp_cli.stages.finetune import finetune

    for number, (name, method) in enumerate(_METHODS.items(), start=1):
        output.note(f"{number} of {len(_METHODS)}: {name}")
        folder = run / method
        yield (
            name,
            finetune(
                load_recipe(None, [*settings, f"pruning.method={method}"]),
                run=folder,
                init=masked if spec_of(method).accepts("magnitude") else None,
                resume=folder.exists(),  # what is finished is not trained again
                device=device,
                notify=notify,
            ),
        )


def _measured(evaluated: "Evaluated", suffix: str) -> dict[str, Any]:
    """Error rates, and where the transcripts are, under names that end in the suffix."""
    rates = {unit: errors.rate for unit in ("words", "characters") if (errors := evaluated.errors(unit)) is not None}
    hypotheses = evaluated.outputs.hypotheses
    measured = {"word": rates["words"], "character": rates["characters"], "hypotheses": hypotheses}
    return {name + suffix: value for name, value in measured.items()}
