"""`headpond verify`: whether what is stored and installed now still gives a stored result."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from headpond.cli.exits import BAD_INPUT, INTERNAL, exit_code
from headpond.cli.jobs import JobArgument, UrlOption
from headpond.errors import ConfigError, HeadpondError
from headpond.jobs import JobId
from headpond.settings import CONFIG_NAME, find_config, load_settings
from headpond.terminal import escape_controls
from headpond_workers.cli.config_option import AsJson, Config
from headpond_workers.replay.events import Event, Loaded, Step
from headpond_workers.verification.verdicts import Check, Verdict, Verification

DIFFERS, UNTOLD = 1, 2
_CODES = {Verdict.SAME: 0, Verdict.DIFFERS: DIFFERS, Verdict.UNKNOWN: UNTOLD}
_STYLES = {Verdict.SAME: "green", Verdict.DIFFERS: "red", Verdict.UNKNOWN: "yellow"}
_SUMMARY = {
    Verdict.SAME: "As stored: what could be compared is the same.",
    Verdict.DIFFERS: "What is here now does not give this result.",
    Verdict.UNKNOWN: "Whether it is as stored cannot be told.",
}
_SHOWN_CHARS = 80
_NAME_CHARS = 15


def verify(
    job: JobArgument,
    from_storage: Annotated[
        bool, typer.Option("--from-storage", help="Read request and result from S3, also once Redis has forgotten it.")
    ] = False,
    config: Config = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A table [models.NAME] to verify with; default: the job's model.")
    ] = None,
    as_json: AsJson = False,
    redis: UrlOption = None,
) -> None:
    """Say whether the stored request, the model's files and the engine still give the digests that a result names.

    The model is loaded from the configuration, in a process of its own; its weights are hashed anew. Where its engine
    gives the same tokens again, the job is run once more, alone, and the tokens are compared; where it does not, that
    is said. Nothing is written.

    Exit codes: 0 as stored; 1 something differs; 2 it cannot be told; 3 a server cannot be reached; 4 no such job.

    Examples:

      headpond verify chat/order-17

      headpond verify chat/order-17 --from-storage --json | jq '.checks[] | select(.verdict != "same")'

      headpond verify chat/order-17 --model chat-candidate
    """
    try:
        found = _verified(JobId.parse(job), from_storage=from_storage, config=config, model=model, redis=redis,
                          quiet=as_json)  # fmt: skip
    except HeadpondError as error:
        # 1 means here that something differs, and an error did not find that.
        if exit_code(error) not in (INTERNAL, BAD_INPUT):
            raise
        typer.echo(f"headpond: {escape_controls(str(error))}", err=True)
        raise typer.Exit(UNTOLD) from error
    if as_json:
        typer.echo(json.dumps(found.document()))
    else:
        _show(found)
    raise typer.Exit(_CODES[found.verdict])


def register(app: typer.Typer) -> None:
    app.command()(verify)


def _verified(
    job_id: JobId, *, from_storage: bool, config: Path | None, model: str | None, redis: str | None, quiet: bool
) -> Verification:
    # Other commands do not pay for what storage needs.
    from headpond_workers.verification.of_version import version_check
    from headpond_workers.verification.stored_job import read_from_redis, read_from_storage
    from headpond_workers.verification.verify import Place
    from headpond_workers.verification.verify import verify as verify_job

    source = config or find_config()
    if source is None:
        raise ConfigError("no such file here or above; name one with --config", where=CONFIG_NAME)
    name = model or job_id.model
    settings = load_settings(source, environment=os.environ, needed=[name])
    table = settings.model(name)
    job = read_from_storage(job_id, config=source) if from_storage else read_from_redis(job_id, url=redis)
    check = partial(version_check, settings=settings, table_name=name)
    with tempfile.TemporaryFile() as log, _progress(quiet=quiet) as shown:
        place = Place(source, name, table, log, on_event=shown.heard)
        return verify_job(job, place, version_check=check)


class _Shown:
    """Says what a verification is at: nothing, or one line a stage, unless `bars` are on a terminal."""

    def __init__(self, bars: Progress | None, *, quiet: bool) -> None:
        self._bars, self._quiet = bars, quiet
        self._task = None if bars is None else bars.add_task("loading the model", total=None)

    def heard(self, event: Event) -> None:
        if isinstance(event, Loaded):
            if self._bars is not None and self._task is not None:
                self._bars.update(self._task, description="making its tokens again", completed=0, total=None)
            elif not self._quiet:
                typer.echo(f"{event.engine} is loaded, fingerprint {event.fingerprint[:12]}", err=True)
        elif isinstance(event, Step) and self._bars is not None and self._task is not None:
            self._bars.advance(self._task, event.made)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[_Shown]:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _Shown(None, quiet=quiet)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        yield _Shown(bars, quiet=quiet)


def _show(found: Verification) -> None:
    of = f", version {found.version}, {found.tokens} tokens" if found.version else ""
    typer.echo(escape_controls(f"{found.id}, {found.state}{of}"))
    for check in found.checks:
        told = _told(check)
        verdict = f"{check.verdict.value:<9} " if told else check.verdict.value
        typer.echo(f"  {check.name:<{_NAME_CHARS}} {typer.style(verdict, fg=_STYLES.get(check.verdict))}{told}")
    for line in found.died:
        typer.echo(escape_controls(f"  | {line}"), err=True)
    typer.echo(typer.style(_SUMMARY[found.verdict], fg=_STYLES[found.verdict], bold=True))


def _told(check: Check) -> str:
    shown = _cut(check.stored)
    if check.verdict is Verdict.DIFFERS and (check.stored or check.found):
        shown = f"{_cut(check.stored) or '-'} in the result, {_cut(check.found) or '-'} now"
    return "; ".join(part for part in (shown, escape_controls(check.reason)) if part)


def _cut(text: str) -> str:
    line = " ".join(escape_controls(text).split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[: _SHOWN_CHARS - 3]}..."
