"""`headpond models push`: files become a version of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from headpond.cli.exits import INTERRUPTED
from headpond.errors import StorageUnavailable
from headpond.jobs import check_model_name
from headpond_workers.checkpoints.description import describe
from headpond_workers.checkpoints.pushes.pushing import How, OnProgress, Pushed, Stage, Unchanged, push
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.cli.config_option import AsJson, Config, say, settings_of
from headpond_workers.cli.sizes import shown_size
from headpond_workers.cli.storage_blobs import storage_blobs
from headpond_workers.cli.version_storage import who
from headpond_workers.models.prepare import digest_cache

INTERRUPTION = "The push was interrupted. The same command goes on with it: what was sent is not sent again."


def register(models_app: typer.Typer) -> None:
    models_app.command("push")(push_version)


def push_version(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model; it need not be in the configuration.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file or a folder.")],
    config: Config = None,
    *,
    note: Annotated[str, typer.Option(metavar="TEXT", help="Kept with the version, for people.")] = "",
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which engine it is for; default: as the configuration or the files say."),
    ] = None,
    force_new: Annotated[
        bool, typer.Option("--force-new", help="Make another version of the files that the newest one has.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Push files to storage as the next version of a model. No alias is moved: see `headpond models promote`.

    Only what no version of the model has is sent. Interrupted, even by kill -9, the same command goes on where it
    stopped. Files that the newest version has already make no new one; the command names that version.

    Exit codes: 0 the version is complete; 1 the files are refused; 2 wrong input or configuration; 3 storage cannot be
    reached.

    Examples:

      headpond models push chat ./chat-finetuned --note "third epoch"

      headpond models push chat model-Q4_K_M.gguf

      headpond models push chat ./chat-finetuned --json | jq '{version, sent_bytes}'
    """
    settings = settings_of(config, needed=[check_model_name(name)])
    description = describe(settings.models.get(name), path, engine=engine, note=note, digests=digest_cache())
    blobs = storage_blobs(config)
    blobs.ensure_bucket()
    try:
        with _shown_progress(name) as on_progress:
            pushed = push(
                Registry(blobs, name, writer=who()),
                path,
                description,
                unchanged=Unchanged.NEW_VERSION if force_new else Unchanged.NO_VERSION,
                on_progress=on_progress,
            )
    except StorageUnavailable:
        say(INTERRUPTION)
        raise
    except KeyboardInterrupt:
        say(INTERRUPTION)
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(_document(pushed)))
    else:
        _tell(pushed)


def _document(pushed: Pushed) -> dict[str, object]:
    document = pushed.document
    return {
        "version": f"{document.model}@{pushed.number}",
        "model": document.model,
        "number": pushed.number,
        "how": pushed.how.value,
        "digest": document.model_digest,
        "files": document.files,
        "size_bytes": document.size_bytes,
        "engine": document.engine,
        "parent": document.parent,
        "note": document.note,
        "new_bytes": pushed.new_bytes,
        "sent_bytes": pushed.sent_bytes,
        "hash_s": round(pushed.hash_s, 3),
        "send_s": round(pushed.send_s, 3),
        "left_out": list(pushed.left_out),
    }


def _tell(pushed: Pushed) -> None:
    document = pushed.document
    if pushed.left_out:
        shown = ", ".join(pushed.left_out[:5]) + (", ..." if len(pushed.left_out) > 5 else "")
        say(f"left out, since no loader reads hidden files: {shown}")
    version = f"{document.model}@{pushed.number}"
    match pushed.how:
        case How.UNCHANGED:
            say(f"{version} has these very files; nothing was sent. To make another version of them: --force-new")
        case How.RESUMED:
            say(f"{version} is complete: an earlier push of these files had sent everything")
        case How.NEW:
            rate = f", {shown_size(pushed.sent_bytes / pushed.send_s)}/s" if pushed.sent_bytes else ""
            say(
                f"{version}: {shown_size(document.size_bytes)} in {document.files} files, "
                f"{shown_size(pushed.new_bytes)} of it new, {shown_size(pushed.sent_bytes)} sent{rate}"
            )
    typer.echo(version)


@contextmanager
def _shown_progress(model: str) -> Iterator[OnProgress]:
    """A bar with the rate on a terminal; elsewhere one line a stage."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _stage_lines(model)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[Stage, TaskID] = {}

        def show(stage: Stage, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{model}: {stage.value}", total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def _stage_lines(model: str) -> OnProgress:
    seen: set[Stage] = set()

    def show(stage: Stage, done: int, total: int) -> None:
        if stage not in seen:
            seen.add(stage)
            say(f"{model}: {stage.value} {shown_size(total)}")

    return show
