"""The program: its commands (package ``commands``), and how each of its errors ends."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer

from equisynth.commands import proof, stages, tasks
from equisynth.errors import UserError

app = typer.Typer(
    name="equisynth",
    help="Image-to-image translation from paired but non-aligned images of two modalities.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # click's, or the copy of it that newer versions of typer hold
INTERRUPTED = 130  # what typer makes of Ctrl-C

app.add_typer(stages.app)
app.add_typer(tasks.app)
app.add_typer(proof.app, name="proof", rich_help_panel=tasks.PANEL)


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"equisynth {installed('equisynth')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        return
    from equisynth.experiment_copies import link_main_repository

    link_main_repository()


def main(arguments: list[str] | None = None) -> None:
    """Entry point: mistakes the user can mend, and a machine that refuses, end in one line and exit code 2.

    Args:
        arguments: by default those of the process.
    """
    try:
        code = app(args=arguments, prog_name="equisynth", standalone_mode=False)
    except UserError as error:
        _stop(str(error))
    except USAGE_ERROR as error:
        where = error.ctx.command_path if error.ctx is not None else "equisynth"
        _stop(f"{error.format_message().rstrip('.')} (see {where} --help)")
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        from equisynth.failures import explained

        line = explained(error)
        if line is None:
            raise
        _stop(line)
    if code == INTERRUPTED:
        _stop("interrupted; run the same command again to continue", INTERRUPTED)
    sys.exit(code)


def _stop(reason: str, code: int = 2) -> NoReturn:
    from equisynth.failures import with_final_names

    _, _, own = reason.rpartition(f"{UserError.__module__}.UserError: ")  # behind a loading process's traceback
    print(f"equisynth: {with_final_names(' '.join(own.split()))}", file=sys.stderr)
    sys.exit(code)
