"""`headpond storage spool`: what waits on disks for storage to come back, and how a lost one is given up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from headpond import upkeep
from headpond.connections import redis_of
from headpond.errors import InvalidRequest, SpoolError
from headpond.queue import JobQueue, Server
from headpond.settings import SPOOL_FOLDER, Settings
from headpond.spooled import StorageTrouble
from headpond.terminal import escape_controls
from headpond.upkeep import SpoolAnswer
from headpond_workers.cli.config_option import AsJson, Config, say, settings_of
from headpond_workers.cli.status_tables import trouble_line
from headpond_workers.persistence.spool import Spool
from headpond_workers.supervision.status import trouble_document


@dataclass(frozen=True, slots=True)
class Waiting:
    """What storage lacks of one model. now_ms: the server's time."""

    model: str
    trouble: StorageTrouble
    now_ms: int

    def document(self) -> dict[str, Any]:
        return {"model": self.model, **trouble_document(self.trouble, now_ms=self.now_ms)}


def spool(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="One model; default: all.")] = "",
    config: Config = None,
    *,
    give_up: Annotated[
        bool, typer.Option("--give-up", help="The spool of MODEL will not come back: go on without it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it, having read what it costs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what storage lacks while it is away, and which host has it on its disk. Or give up a spool that is lost.

    While a host has entries of a model's journal, nothing of that model is committed before them. They come into
    storage by themselves once that host's persister reaches storage again. If its disk is lost, give the spool up: the
    queue then journals anew all jobs that it holds and whose end storage lacks, so nothing is lost as long as Redis is
    not. Removals (dead drop, purge) that only the spool had are to be repeated.

    Exit codes: 0 done; 2 no such spool, or --yes is missing; 6 a persister of this host is at work with it.

    Examples:

      headpond storage spool

      headpond storage spool chat --give-up --yes
    """
    settings = settings_of(config, needed=())
    server = Server(redis_of(settings))
    try:
        found = _waiting(server, only=model)
        if not give_up:
            _show(found, as_json=as_json)
            return
        waiting = next((each for each in found if each.trouble.spooled is not None), None)
        if not model or waiting is None:
            raise InvalidRequest(
                f"'{model}' has no spool; those that are: headpond storage spool"
                if model
                else "name the model whose spool is to be given up",
                field="model",
            )
        if not yes:
            raise InvalidRequest(f"{_line(waiting)}. To go on without it, add --yes.", field="yes")
        _give_up(server.queue(model, storage=True), waiting, settings)
    finally:
        server.close()
    if as_json:
        typer.echo(json.dumps({"given_up": waiting.document()}))
    else:
        say(f"given up; the queue of '{model}' journals anew what it holds")


def _waiting(server: Server, *, only: str) -> list[Waiting]:
    seconds, microseconds = server.read("TIME")
    now_ms = int(seconds) * 1000 + int(microseconds) // 1000
    models = server.models()
    if only and only not in models:
        raise InvalidRequest(
            f"no model is named '{only[:100]}' here; there are: {', '.join(sorted(models)) or 'none'}", field="model"
        )
    # Read, never opened: looking at a queue must not change what it is.
    troubles = {name: JobQueue(server, name).storage_trouble() for name in sorted(models) if only in ("", name)}
    return [Waiting(name, trouble, now_ms) for name, trouble in troubles.items() if trouble is not None]


def _give_up(queue: JobQueue, waiting: Waiting, settings: Settings) -> None:
    """Raises SpoolBusy, SpoolError."""
    spooled = waiting.trouble.spooled
    if spooled is None:
        return
    here = Spool(settings.state_folder / SPOOL_FOLDER, queue.name)
    try:
        if here.identity() == spooled.id:
            with here.locked(whole=False):
                _tell(queue, spooled.id)
                here.clear()
            return
    except OSError as error:
        raise SpoolError(queue.name, f"{here.folder} cannot be used: {error.strerror or error}") from error
    _tell(queue, spooled.id)


def _tell(queue: JobQueue, spool_id: str) -> None:
    if queue.run(upkeep.give_up_spool(spool_id)) is SpoolAnswer.OTHER:
        raise SpoolError(queue.name, f"another spool of '{queue.name}' was begun meanwhile; look at it again")


def _show(found: list[Waiting], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"models": [each.document() for each in found]}))
        return
    for each in found:
        typer.echo(escape_controls(_line(each)))
    if not found:
        typer.echo("Nothing waits for storage but the last second.")


def _line(waiting: Waiting) -> str:
    return trouble_line(waiting.model, waiting.trouble, now_ms=waiting.now_ms)
