"""`headpond models pull`, `verify`: a version from storage into a folder, and a version looked through in storage."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from headpond.cli.exits import INTERNAL, INTERRUPTED
from headpond.tables import VersionSource
from headpond.terminal import escape_controls
from headpond_workers.checkpoints.pulls.pull import pull as pull_version
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.checkpoints.resolving import open_storage, resolve
from headpond_workers.checkpoints.verify import verify as verify_version
from headpond_workers.cli.config_option import AsJson, Config, say, settings_of
from headpond_workers.cli.storage_blobs import writer_name
from headpond_workers.cli.transfer_progress import shown_transfer

Version = Annotated[
    str, typer.Argument(metavar="NAME@V", help="A version by its number, chat@3, or by an alias, chat@prod.")
]
_MEGABYTE = 1_000_000


def register(models_app: typer.Typer) -> None:
    """Add the commands to `headpond models`."""
    for command in (pull, verify):
        models_app.command()(command)


def pull(
    version: Version,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the files of the version.")],
    config: Config = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Pull a version from storage into a new folder, each chunk checked.

    DIR has its name only once all is there and right. A pull that was interrupted goes on where it was when it is
    called again. A version that is damaged in storage is quarantined, and nothing loads it any more.

    Exit codes: 0 it is there; 1 the version is missing or damaged, or the disk refused; 2 wrong input; 3 storage
    cannot be reached.

    Examples:

      headpond models pull chat@3 ./chat-3

      headpond models pull chat@prod /srv/weights/chat --json | jq .seconds
    """
    registry, number = _opened(version, config)
    name = f"{registry.model}@{number}"
    started_s = time.monotonic()
    try:
        with shown_transfer(name) as progress:
            pulled = pull_version(registry, number, folder, progress=progress)
    except KeyboardInterrupt:
        say("Interrupted. What was pulled stays; the same command goes on from there.")
        raise typer.Exit(INTERRUPTED) from None
    seconds = time.monotonic() - started_s
    document = pulled.document
    if as_json:
        found = {
            "version": name,
            "folder": str(pulled.folder),
            "model_digest": document.model_digest,
            "files": document.files,
            "bytes": document.size_bytes,
            "seconds": round(seconds, 3),
        }
        typer.echo(json.dumps(found))
    else:
        typer.echo(f"{name}  {escape_controls(str(pulled.folder))}  {_pace(document.size_bytes, seconds)}")


def verify(version: Version, config: Config = None, *, as_json: AsJson = False) -> None:
    """Read every byte of a version from storage and check it: each chunk, and each file as a whole.

    Nothing is kept. A version that is damaged is quarantined: nothing loads it any more.

    Exit codes: 0 it is as it was pushed; 1 it is damaged or missing; 2 wrong input; 3 storage cannot be reached.

    Examples:

      headpond models verify chat@3

      headpond models verify chat@prod --json | jq '.damage[]'
    """
    registry, number = _opened(version, config)
    name = f"{registry.model}@{number}"
    started_s = time.monotonic()
    with shown_transfer(name) as progress:
        verified = verify_version(registry, number, progress=progress)
    seconds = time.monotonic() - started_s
    if as_json:
        found = {
            "version": name,
            "sound": verified.error is None,
            "model_digest": verified.document.model_digest,
            "files": verified.document.files,
            "chunks": verified.chunks,
            "bytes": verified.bytes,
            "seconds": round(seconds, 3),
            "damage": list(verified.damage),
        }
        typer.echo(json.dumps(found))
        if verified.error is not None:
            raise typer.Exit(INTERNAL)
        return
    if verified.error is not None:
        for place in verified.damage:
            say(f"damaged: {place}")
        raise verified.error
    pace = _pace(verified.bytes, seconds)
    typer.echo(f"{name} is as it was pushed: {verified.document.files} files, {verified.chunks} chunks, {pace}")


def _opened(version: str, config: Path | None) -> tuple[Registry, int]:
    """The model's registry, and the number that is meant. Raises InvalidRequest, ConfigError, VersionMissing."""
    source = VersionSource.parse_version(version)
    # Whatever is wrong with tables of models does not matter here: a version is named by its name in storage.
    blobs = open_storage(settings_of(config, needed=()))
    registry = Registry(blobs, source.name, writer=writer_name())
    return registry, resolve(source, blobs)


def _pace(count: int, seconds: float) -> str:
    return f"{count / _MEGABYTE:.1f} MB in {seconds:.1f} s, {count / _MEGABYTE / max(seconds, 1e-3):.0f} MB/s"
