"""`parp lm`: language models for decoding."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parp_cli.cli import options
from parp_cli.cli.options import option
from parp_cli.console import Output
from parp_cli.errors import UsageError

if TYPE_CHECKING:
    from parp_cli.stages.lm import LmResult

app = typer.Typer(
    name="lm",
    help="Language models for `parp eval --lm`.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EXAMPLES = 5


@app.callback()
def root() -> None:
    # With a callback, `build` stays a command of its own however few there are.
    """Language models for `parp eval --lm`."""


@app.command()
def build(
    texts: Annotated[
        list[Path] | None, typer.Argument(help="Text files, one sentence per line, plain or .gz; - is stdin.")
    ] = None,
    order: Annotated[int, option("--order", "Words of the longest n-grams.", min=1, max=6, default=True)] = 4,
    split: Annotated[
        list[str] | None,
        option("--split", "Transcripts of this split; may be given again.", default="the training one"),
    ] = None,
    recipe: Annotated[Path | None, option("--recipe FILE", "Whose corpus the splits are of.")] = None,
    settings: options.Corpus = None,
    lexicon: Annotated[
        Path | None, option("--lexicon PATH", "Where the words with their letters go.", default="beside the model")
    ] = None,
    run: options.Run = options.DEFAULT_RUN,
    out: options.Out = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Build an n-gram language model (ARPA, modified Kneser-Ney) and a lexicon from transcripts or text.

    Text is made upper case, as transcripts are. What you test on must not be in it.

    [bold]Examples:[/]
      parp lm build
      parp lm build --set data.corpus=librispeech --split train-clean-100 --order 3 --out lm.arpa.gz
      zcat books.txt.gz | parp lm build -
    """
    from parp_cli.config.load import load_recipe
    from parp_cli.stages.lm import STDIN, lines, transcripts
    from parp_cli.stages.lm import build as stage

    if texts and (split or recipe or settings):
        raise UsageError("text files and a corpus at once", hint="name text files, or --split, --recipe and --set")
    output = Output(as_json=as_json, quiet=quiet)
    sources: dict[str, Path | list[Path]] = {}
    with output.progress() as notify:
        if texts:
            sentences = lines(texts)
            sources["the text"] = [text for text in texts if text != STDIN]
        else:
            data = load_recipe(recipe, settings or ()).data
            sentences = transcripts(data, split or [data.train], notify)
            sources |= {"--recipe": recipe} if recipe else {}
            sources |= {"data.manifest": Path(data.manifest)} if data.manifest else {}
        result = stage(
            sentences, out=out or run / "lm.arpa", lexicon=lexicon, order=order, sources=sources, notify=notify
        )
    _show(output, result)
    output.json(result)


def _show(output: Output, result: "LmResult") -> None:
    output.text(f"counted {result.sentences:,} sentences, {result.words:,} words, {result.vocabulary:,} different ones")
    rows = [[f"{number}", f"{count:,}"] for number, count in enumerate(result.ngrams, start=1)]
    output.table("n-grams", ("order", "n-grams"), rows)
    if result.fallback_orders:
        orders = ", ".join(map(str, result.fallback_orders))
        output.note(f"too little or too regular text to estimate the discounts of order {orders}: took 0.5, 1 and 1.5")
    if result.unusual:
        examples = " ".join(result.unusual[:_EXAMPLES])
        output.note(
            f"warning: {len(result.unusual):,} words have digits, punctuation or other signs, such as {examples}"
        )
    output.wrote(result.path, result.lexicon)
