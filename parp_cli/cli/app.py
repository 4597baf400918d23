"""The `parp` command: errors become messages and exit codes here, and nowhere else."""

import errno
import os
import sys
import traceback
from typing import Annotated, Any

import typer
import typer.core

import parp_cli
from parp_cli.cli import commands, compare, mask, quickstart, sweep
from parp_cli.console import show_error
from parp_cli.errors import Interrupted, ParpError, ResourceError

_HELP = """Prune, adjust and re-prune self-supervised speech models: a sparse recogniser from one fine-tuning run.

Each stage reads and writes one file that holds weights and mask, in a run folder (parp-run).

[bold]In an empty folder:[/]

  parp mask --sparsity 0.5        prune the bundled encoder
  parp finetune recipe.yaml       adjust and re-prune it on labelled speech
  parp eval --split test-clean    count its errors
  parp export --to hf             for transformers

[bold]All of it at once, in minutes:[/]  parp quickstart

[bold]Methods side by side:[/]  parp sweep sweep.yaml
"""


class _Group(typer.core.TyperGroup):
    """Typer answers Ctrl-C and a closed pipe itself, and says nothing: here they become what `main` knows."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error
        except BrokenPipeError:  # the reader of a pipe has gone, as in `parp inspect FILE | head`
            # Whatever is left in the buffer goes nowhere, or Python would complain about it at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)


app = typer.Typer(
    name="parp",
    cls=_Group,
    help=_HELP,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"parp {parp_cli.__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    # With a callback of its own it is answered before a command is missed.
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    del version


app.command()(mask.mask)
app.command()(commands.finetune)
app.command()(commands.reprune)
app.command("eval")(commands.evaluate)
app.command()(commands.export)
app.command()(commands.inspect)
app.command()(compare.compare)
app.command()(sweep.sweep)
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
