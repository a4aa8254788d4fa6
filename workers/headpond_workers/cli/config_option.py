"""What the commands of a deployment share: which configuration, and lines for people."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import typer

from headpond.errors import ConfigError
from headpond.settings import CONFIG_NAME, Settings, find_config, load_settings
from headpond.terminal import escape_controls

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help=f"The configuration; default: the nearest {CONFIG_NAME}."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")]


def settings_of(
    config: Path | None, *, command_line: Sequence[str] | None = None, needed: Collection[str] | None = None
) -> Settings:
    """The settings to work with. command_line: what followed each --set; None: what the running deployment was told.
    needed: the models that count; a table of another one may be wrong. None: all.

    Raises ConfigError, also if there is no configuration.
    """
    file = config or find_config()
    if file is None:
        raise ConfigError(
            f"there is no {CONFIG_NAME} here or in a folder above; write one, or name one with --config",
            where=str(Path.cwd()),
        )
    return load_settings(file, environment=os.environ, command_line=command_line, needed=needed)


def say(line: str) -> None:
    """One line for people, beside what programs read."""
    typer.echo(escape_controls(line), err=True)
