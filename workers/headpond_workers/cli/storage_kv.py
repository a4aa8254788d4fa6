"""`headpond storage kv`: what stored keys and values of prompts take, and what they were good for."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from headpond.errors import HeadpondError
from headpond.terminal import escape_controls
from headpond_workers.cli.config_option import AsJson, Config, say, settings_of
from headpond_workers.cli.sizes import shown_size
from headpond_workers.cli.status_tables import table_console
from headpond_workers.prefixes.counts import Counts
from headpond_workers.prefixes.folders import kv_folder
from headpond_workers.prefixes.usage import LocalUse, StoredUse, local_use, stored_use
from headpond_workers.storage.settings import has_storage

_NONE_HERE, _NONE_STORED = LocalUse(0, 0, 0, Counts()), StoredUse(0, 0)


def register(app: typer.Typer) -> None:
    app.command()(kv)


def kv(config: Config = None, *, as_json: AsJson = False) -> None:
    """Show what stored keys and values take, for each model, and how often workers of this machine used them.

    Hits are prompts that went on from stored keys and values, and tokens those of them that were not computed. Where
    there is no storage, or it is away, what is on this machine is shown all the same.

    Examples:

      headpond storage kv

      headpond storage kv --json | jq '.models.chat.local.hit_tokens'
    """
    settings = settings_of(config, needed=())
    here = local_use(kv_folder(settings.state_folder))
    stored: dict[str, StoredUse] | None = None
    if has_storage(settings):
        # boto3 takes a while to import.
        from headpond_workers.cli.storage_blobs import storage_blobs

        try:
            stored = stored_use(storage_blobs(config))
        except HeadpondError as error:
            say(f"storage was not asked: {error}")
    names = sorted({*here, *(stored or {})})
    if as_json:
        models = {
            name: {
                "local": here.get(name, _NONE_HERE).as_json(),
                "storage": None if stored is None else _stored_json(stored.get(name, _NONE_STORED)),
            }
            for name in names
        }
        typer.echo(json.dumps({"models": models}))
        return
    if not names:
        say('no keys and values are stored; write kv = "local" or kv = "storage" in the table of a model')
        return
    _show(names, here, stored)


def _stored_json(use: StoredUse) -> dict[str, int]:
    return {"prefixes": use.prefixes, "bytes": use.bytes}


def _show(names: list[str], here: dict[str, LocalUse], stored: dict[str, StoredUse] | None) -> None:
    table = Table("model", box=None, pad_edge=False)
    for title in ("files", "bytes", "to upload", "in storage", "hits", "tokens", "misses", "slower", "refused"):
        table.add_column(title, justify="right")
    for name in names:
        use = here.get(name, _NONE_HERE)
        counts = use.counts
        table.add_row(
            escape_controls(name), str(use.files), shown_size(use.bytes), str(use.waiting),
            "-" if stored is None else shown_size(stored.get(name, _NONE_STORED).bytes),
            str(counts.hits), str(counts.hit_tokens), str(counts.missed), str(counts.slower), str(counts.refused),
        )  # fmt: skip
    table_console().print(table)
