"""`headpond worker` and `headpond persister`: one process in the foreground, for other supervisors than ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headpond.errors import ConfigError
from headpond.settings import CONFIG_NAME, find_config

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help=f"The configuration; default: the nearest {CONFIG_NAME}."),
]


def worker(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A table [models.NAME] of the configuration.")],
    config: ConfigOption = None,
    instance: Annotated[str | None, typer.Option(help="This worker's name, such as chat-0.")] = None,
) -> None:
    """Serve one model's queue in this process until SIGTERM, which drains.

    Exit codes: 0 drained; 78 the configuration or the model cannot be loaded.

    Example:  headpond worker chat --config /srv/chat/headpond.toml
    """
    from headpond_workers.worker import main

    main(["--config", str(_found(config)), "--model", model, *(["--instance", instance] if instance else [])])


def persister(config: ConfigOption = None) -> None:
    """Commit the journals of all models to storage, in this process, until SIGTERM.

    Example:  headpond persister --config /srv/chat/headpond.toml
    """
    from headpond_workers.persister import main

    main(["--config", str(_found(config))])


def register(app: typer.Typer) -> None:
    app.command()(worker)
    app.command()(persister)


def _found(config: Path | None) -> Path:
    file = config or find_config()
    if file is None:
        raise ConfigError("no such file here or above; name one with --config", where=CONFIG_NAME)
    return file
