"""The `parp` command: errors become messages and exit codes here, and nowhere else."""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
import typer.core

import parp_cli
from parp_cli.cli import bench, commands, compare, evaluate, lm, mask, predict, quickstart, reproduce, sweep, transcribe
from parp_cli.cli.options import option
from parp_cli.console import Output, discard, open_streams, show_error
from parp_cli.errors import Interrupted, ParpError, ResourceError, UsageError
from parp_cli.runtime.device import is_out_of_memory, launched

_HELP = """Prune, adjust and re-prune self-supervised models of speech and text: sparse ones from one fine-tuning run.

Each stage reads and writes one file that holds weights and mask, in a run folder (parp-run).

[bold]In an empty folder:[/]

  parp mask --sparsity 0.5        prune the bundled encoder
  parp finetune recipe.yaml       adjust and re-prune it on labelled speech
  parp eval --split test-clean    count its errors
  parp export --to hf             for transformers

[bold]All of it at once, in minutes:[/]  parp quickstart

[bold]Methods side by side:[/]  parp sweep sweep.yaml
"""


_DISTRIBUTED = ("finetune", "pretrain", "eval")  # commands that run under `torchrun`

_LOST_CONTACT = "another process exited without reporting an error"


class _Group(typer.core.TyperGroup):
    """Typer handles Ctrl-C and a closed pipe silently: here they become what `main` handles."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error
        except BrokenPipeError:  # the reader of the pipe has exited, as in `parp inspect FILE | head`
            discard(sys.stdout)  # or Python would report at exit what is still buffered
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
        Output().text(f"parp {parp_cli.__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    # Its own callback runs before a missing command is reported.
    _version: Annotated[
        bool, option("--version", "Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    if launched() and context.invoked_subcommand not in _DISTRIBUTED:
        raise UsageError(
            f"parp {context.invoked_subcommand} does not run under torchrun",
            hint=f"run it without torchrun; only parp {' and parp '.join(_DISTRIBUTED)} run under it",
        )


app.command()(mask.mask)
app.command()(commands.finetune)
app.command()(commands.reprune)
app.command("eval")(evaluate.evaluate)
app.command()(transcribe.transcribe)
app.command()(predict.predict)
app.add_typer(lm.app, name="lm")
app.command()(commands.export)
app.command()(commands.shrink)
app.command()(commands.push)
app.command()(bench.bench)
app.command()(commands.inspect)
app.command()(compare.compare)
app.command()(sweep.sweep)
app.command()(reproduce.reproduce)
app.command()(commands.pretrain)
app.command()(quickstart.quickstart)


def main() -> None:
    """Run the command line and exit with its code."""
    open_streams()
    if not launched():
        _run(lambda _: True)
    # On every rank DDP warns that runs without layer drop need not look for unused parameters.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from parp_cli.runtime.processes import joined

    code: object = 0
    try:
        with joined() as world:
            _run(world.says_first)
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through Python's own exit, which aborts if a gloo thread is still releasing a tensor.
    os._exit(code if isinstance(code, int) else int(code is not None))


def _run(says_first: Callable[[str], bool]) -> NoReturn:
    """Run the command line; an error that several ranks raise is printed by one of them."""
    bug = ""
    try:
        app()
        sys.exit()
    except ParpError as raised:
        error = raised
    except KeyboardInterrupt:
        error = Interrupted("interrupted")
    except Exception as raised:
        known = _known(raised)
        bug = "" if known else traceback.format_exc()
        error = known or ParpError("this is a bug in parp", hint="report it with the lines above")
    # If contact is lost, usually the other rank has printed the reason.
    if (error.message != _LOST_CONTACT or says_first("")) and says_first(error.message):
        show_error(error, bug)
    sys.exit(error.exit_code)


def _known(error: Exception) -> ResourceError | None:
    """The error for a full disk, for memory that ran out, or for another process that exited; None for others."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"no space left to write {error.filename or 'a file'}", hint="free some space")
    first_line = str(error).splitlines()[:1]
    if is_out_of_memory(error):
        return ResourceError("out of memory", details=first_line, hint="make training.micro_batch_seconds smaller")
    if launched():
        from parp_cli.runtime.processes import lost_contact

        if lost_contact(error):
            hint = "the system may have killed it for using too much memory"
            return ResourceError(_LOST_CONTACT, details=first_line, hint=hint)
    return None
