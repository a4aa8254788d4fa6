"""What the commands of a deployment share: which configuration, and lines for people."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from headpond.errors import ConfigError
from headpond.kept_settings import applied_settings, find_applied
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


def running_settings_of(config: Path | None) -> Settings:
    """As `settings_of`, for what looks at a deployment or ends it: where the configuration is wrong or gone, what the
    deployment applied last."""
    try:
        return settings_of(config)
    except ConfigError as error:
        file = config or find_config() or find_applied()
        applied = None
        if file is not None:
            # If that is damaged too, the first mistake is what to tell.
            with suppress(ConfigError):
                applied = applied_settings(file)
        if applied is None:
            raise
        say(f"{error}. Going by what was applied last.")
        return applied


def say(line: str) -> None:
    """One line for people, beside what programs read."""
    typer.echo(escape_controls(line), err=True)
