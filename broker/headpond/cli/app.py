"""Composition root of the command line: collects commands, turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from importlib.metadata import entry_points, version
from typing import Annotated, NoReturn

import typer

from headpond.cli import config, dead, exits, fsck, jobs, sessions
from headpond.cli.interrupts import leave_at_once, raise_interrupts
from headpond.cli.output import OutputError, give_up_output, watched
from headpond.errors import HeadpondError
from headpond.terminal import escape_controls

COMMANDS_GROUP = "headpond.commands"
DEBUG = "HEADPOND_DEBUG"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headpond {version('headpond')}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Durable LLM inference on your own machines: one queue a model, no token lost or repeated.

    The server is the one that --redis names, else HEADPOND_REDIS_URL, else [redis] url of the nearest headpond.toml,
    else the deployment that `headpond up` runs beside that file.

    Exit codes: 0 done; 2 wrong input or configuration; 3 a server cannot be reached; 4 no such job or session; 5 the
    job ended without an answer; 6 not yet (a time-out, a full queue, a session in use); 7 fsck left faults; 8 a
    replay's model is not the bundle's; 9 a replay's process died; 1 anything else.
    """


def build_app() -> typer.Typer:
    """All commands that are installed."""
    app = typer.Typer(
        name="headpond",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        callback=_root,
        rich_markup_mode=None,
    )
    for part in (jobs, sessions, dead, fsck, config):
        part.register(app)
    if not set(sys.argv[1:2]) & (jobs.NAMES | sessions.NAMES | dead.NAMES | fsck.NAMES | config.NAMES):
        # What an operator's commands import is a third of the time that a producer's command takes.
        for point in entry_points(group=COMMANDS_GROUP):
            point.load()(app)
    return app


def main() -> NoReturn:
    """Run one command and exit."""
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(name)s %(message)s")
    if sys.stdout is None:
        sys.exit(_run())  # It was closed by whoever called: nobody reads what is printed.
    sys.stdout = watched(sys.stdout)
    code = _run()
    try:
        # What is still in a buffer would fail where nobody hears of it.
        sys.stdout.flush()
    except OutputError as error:
        code = _output_failed(error)
    leave_at_once()
    sys.exit(code)


def _run() -> int:
    """Its exit code."""
    try:
        # It imports: there an interrupt would be a traceback of whatever callback it meets.
        leave_at_once()
        app = build_app()
        raise_interrupts()
        app()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except HeadpondError as error:
        # A message may quote what a model, a template or a server said.
        _say(f"headpond: {escape_controls(str(error))}")
        return exits.exit_code(error)
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except OutputError as error:
        return _output_failed(error)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        _say(
            f"headpond: unexpected {type(error).__name__}: {error}\nThis is a defect of headpond. For its trace set "
            f"{DEBUG}=1 and run the command again."
        )
        return exits.INTERNAL
    return 0


def _output_failed(error: OutputError) -> int:
    give_up_output()
    if error.reader_left:
        return 0
    _say(f"headpond: The output could not be written: {error}. Free some space, or write elsewhere.")
    return exits.INTERNAL


def _say(text: str) -> None:
    # Where stderr cannot be written either, the exit code has to do.
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
