"""`headpond models delete`: a version that is not needed any more."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headpond.jobs import check_model_name
from headpond_workers.checkpoints.aliases import Aliases
from headpond_workers.checkpoints.delete import delete_version
from headpond_workers.checkpoints.registry import Registry
from headpond_workers.cli.config_option import AsJson, Config, say
from headpond_workers.cli.storage_blobs import storage_blobs, writer_name


def register(models_app: typer.Typer) -> None:
    models_app.command("delete")(delete)


def delete(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model with versions in storage.")],
    version: Annotated[int, typer.Argument(metavar="V", min=1, help="The number of a version.")],
    config: Config = None,
    *,
    force: Annotated[bool, typer.Option("--force", help="Also if a rollback of an alias would go to it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a version of a model. Its number is never given again.

    Refused while an alias names it. If it is killed amid it, call it again. Its bytes stay until `headpond storage gc`
    finds that no other version needs them.

    Examples:

      headpond models delete chat 2

      headpond models delete chat 2 --force --json
    """
    registry = Registry(storage_blobs(config), check_model_name(name), writer=writer_name())
    document = delete_version(Aliases(registry), version, force=force)
    if as_json:
        typer.echo(json.dumps({"model": name, "version": version, "state": document.state.value}))
    else:
        say(f"deleted: {name}@{version}")
