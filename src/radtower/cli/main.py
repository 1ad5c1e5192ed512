"""The ``radtower`` command: one group of commands per file, errors as one line, exit codes 0, 1 and 2."""

import sys
from typing import Annotated

import typer
from yaml import YAMLError

from radtower import __version__
from radtower.cli import (
    compare,
    data,
    demo,
    evaluate,
    explain,
    hub,
    index,
    label,
    manifest,
    push,
    report,
    reports,
    train,
    use,
)

SOME_FAILED = 1  # exit code: the good items are done, the bad ones are listed
UNUSABLE_INPUT = 2  # exit code
# FloatingPointError: a training that diverged; its last checkpoint is kept.
USER_ERRORS = (FloatingPointError, ImportError, KeyError, OSError, TypeError, ValueError, YAMLError)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Radiology vision-language models on the Hugging Face Hub. Research use only, not for diagnosis.",
)
for group in (
    demo,
    manifest,
    data,
    reports,
    label,
    train,
    use,
    evaluate,
    compare,
    report,
    explain,
    index,
    hub,
    push,
):
    group.add_commands(app)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"radtower {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that belong to no command."""


def run() -> None:
    """Run a command; what the user can fix is one line on stderr and not a traceback."""
    try:
        app()
    except Exception as error:
        import sqlite3  # its errors: a disk that is full, a file system without locks

        from huggingface_hub.errors import StrictDataclassError  # a model configuration that was refused

        if not isinstance(error, (*USER_ERRORS, StrictDataclassError, sqlite3.OperationalError)):
            raise
        # str() of a KeyError is the repr of its message.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"error: {message}", file=sys.stderr)
        sys.exit(UNUSABLE_INPUT)
