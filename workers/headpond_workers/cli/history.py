"""`headpond models history`: every change of an alias that storage still has."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from headpond.errors import VersionMissing
from headpond.terminal import escape_controls
from headpond_workers.checkpoints.alias_document import AliasDocument, Cause, Move
from headpond_workers.cli.config_option import AsJson, Config, settings_of
from headpond_workers.cli.status_tables import table_console
from headpond_workers.cli.version_storage import who
from headpond_workers.rollover.followed_alias import FollowedAlias

_STYLES = {Cause.ROLLBACK: "yellow", Cause.AUTOMATIC: "bold red", Cause.CANARY: "cyan"}


def register(models_app: typer.Typer) -> None:
    """Add the command to `headpond models`."""
    models_app.command()(history)


def history(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model: of the configuration, or in storage.")],
    config: Config = None,
    *,
    alias: Annotated[
        str | None, typer.Option("--alias", metavar="ALIAS", help="Default: what the model follows, else prod.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show who moved an alias, when, from which version to which, and why; the newest change first.

    The last 64 changes are kept. A change with the cause canary began or ended a trial: the version stayed.

    Examples:

      headpond models history chat

      headpond models history chat --alias staging

      headpond models history chat --json | jq '.moves[] | select(.cause == "automatic") | .note'
    """
    followed = FollowedAlias.of(settings_of(config, needed=(name,)), name, alias, who=who())
    document = followed.aliases.recorded(followed.alias)
    if document is None:
        raise _unknown(followed)
    if as_json:
        typer.echo(json.dumps(_fields(document)))
    else:
        _show(document)


def _unknown(followed: FollowedAlias) -> VersionMissing:
    if not followed.registry.numbers():
        return VersionMissing(
            followed.shown,
            f"storage has no version of a model '{followed.name}'. Push one with: headpond models push "
            f"{followed.name} PATH",
        )
    names = ", ".join(document.alias for document in followed.aliases.all())
    return VersionMissing(
        followed.shown,
        f"this alias was never moved. Aliases of {followed.name}: {names or 'none'}. Let it name a version with: "
        f"headpond models promote {followed.name} VERSION --alias {followed.alias}",
    )


def _fields(document: AliasDocument) -> dict[str, Any]:
    trial = document.trial
    return {
        "name": document.model,
        "alias": document.alias,
        "version": document.to,
        "previous": document.previous,
        "seq": document.seq,
        "trial": None if trial is None else {"version": trial.version, "share_permille": trial.share_permille},
        "moves": [
            {
                "seq": move.seq,
                "from": move.left,
                "to": move.to,
                "cause": move.cause.value,
                "who": move.who,
                "at_ms": move.at_ms,
                "note": move.note,
            }
            for move in reversed(document.history)
        ],
    }


def _show(document: AliasDocument) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("seq", "from", "to"):
        table.add_column(title, justify="right")
    for title in ("cause", "when", "who", "note"):
        table.add_column(title, overflow="fold")
    for move in reversed(document.history):
        table.add_row(*_row(move))
    console = table_console()
    named = f"names version {document.to}" if document.to else "names no version"
    before = f", {document.previous} before" if document.previous else ""
    trial = document.trial
    tried = "" if trial is None else f"; {trial.share_permille / 10:g} % of the jobs try version {trial.version}"
    console.print(Text(escape_controls(f"{document.model}@{document.alias} {named}{before}{tried}")))
    console.print(table)
    if older := document.seq - len(document.history):
        console.print(Text(f"{older} older {'change is' if older == 1 else 'changes are'} no longer kept."))


def _row(move: Move) -> tuple[str | Text, ...]:
    return (
        str(move.seq),
        str(move.left or "-"),
        str(move.to or "-"),
        Text(move.cause.value, style=_STYLES.get(move.cause, "")),
        datetime.fromtimestamp(move.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        Text(escape_controls(move.who)),
        Text(escape_controls(move.note)),
    )
