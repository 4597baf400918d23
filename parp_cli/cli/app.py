"""The `parp` command: errors become messages and exit codes here, and nowhere else."""

import errno
import sys
import traceback
from typing import Annotated

import typer

import parp_cli
from parp_cli.cli import commands, quickstart
from parp_cli.console import show_error
from parp_cli.errors import Interrupted, ParpError, ResourceError

_HELP = """Prune, adjust and re-prune self-supervised speech models: a sparse recogniser from one fine-tuning run.

Each stage reads and writes one file that holds weights and mask, in a run folder (parp-run).

[bold]In an empty folder:[/]

  parp mask --sparsity 0.5        prune the bundled encoder
  parp finetune recipe.yaml       adjust and re-prune it on labelled speech
  parp eval --split test-clean    count its errors
  parp export --to hf             for transformers

[bold]All of it at once, in six minutes:[/]  parp quickstart
"""

app = typer.Typer(
    name="parp",
    help=_HELP,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        sys.stdout.write(f"parp {parp_cli.__version__}\n")
        raise typer.Exit


app.command()(commands.mask)
app.command()(commands.finetune)
app.command()(commands.reprune)
app.command("eval")(commands.evaluate)
app.command()(commands.export)
app.command()(commands.inspect)
app.command()(commands.pretrain)
app.command()(quickstart.quickstart)


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app()
    except ParpError as error:
        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        show_error(Interrupted("interrupted"))
        sys.exit(Interrupted.exit_code)
    except BrokenPipeError:  # the reader of a pipe has gone, as in `parp inspect FILE | head`
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        known = _out_of_resources(error)
        if known is not None:
            show_error(known)
            sys.exit(known.exit_code)
        traceback.print_exc()
        show_error(ParpError("this is a bug in parp", hint="report it with the lines above"))
        sys.exit(ParpError.exit_code)


def _out_of_resources(error: Exception) -> ResourceError | None:
    """What gave out, if that is what the error is about."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"no space left to write {error.filename or 'a file'}", hint="free some space")
    # torch's own class would have to be imported to be named; it derives from RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error):
        return ResourceError(
            "out of memory", details=str(error).splitlines()[:1], hint="make training.micro_batch_seconds smaller"
        )
    return None
