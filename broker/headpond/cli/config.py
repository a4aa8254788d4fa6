"""`headpond config show | check`: what counts, where it was said, and what is wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from headpond.cli.exits import BAD_INPUT
from headpond.cli.jobs import JsonOption
from headpond.config_check import all_problems, all_warnings, tables_of
from headpond.counts import counted
from headpond.errors import ConfigError
from headpond.layers import flattened
from headpond.origins import BUILT_IN, Problem
from headpond.settings import CONFIG_NAME, Examined, Settings, examine, find_config
from headpond.tables import SecretRef, Table
from headpond.terminal import escape_controls
from headpond.toml_places import dotted

NAMES = frozenset({"config"})
MASK = "****"

FileOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help=f"The configuration; default: the nearest {CONFIG_NAME}."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting that beats files and environment, such as chat.slots=8; may be repeated. No secrets.",
    ),
]
RunningOption = Annotated[
    bool, typer.Option("--running", help="With the environment and --set of the `headpond up` that runs.")
]

config_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Show and check the configuration, without starting anything.

    Examples:

      headpond config check

      headpond config show chat --origin
    """,
)


@config_app.command()
def show(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="One model; default: everything.")] = None,
    config: FileOption = None,
    origin: Annotated[bool, typer.Option("--origin", help="Where each value was said.")] = False,
    said: SetOption = None,
    running: RunningOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show every value as `headpond up` would take it now, with this environment and --set.

    Of a secret only its reference is shown.

    Examples:

      headpond config show chat --origin

      HEADPOND_DEFAULTS__SLOTS=8 headpond config show --origin | grep slots

      headpond config show --running --json | jq '.settings[] | select(.key == "models.chat.slots")'
    """
    settings = _examined(config, said, running=running).usable(None if model is None else [model])
    if model is not None:
        settings.model(model)
    shown = _rows(settings, model)
    if as_json:
        typer.echo(json.dumps({"config": str(settings.file), "settings": shown}))
        return
    width = max((len(f"{row['key']} = {_text(row)}") for row in shown), default=0) if origin else 0
    for row in shown:
        line = f"{row['key']} = {_text(row)}"
        typer.echo(escape_controls(f"{line:<{min(width, 60)}}  # {row['origin']}" if origin else line))


@config_app.command()
def check(
    config: FileOption = None, said: SetOption = None, running: RunningOption = False, as_json: JsonOption = False
) -> None:
    """Check all that can be checked without starting: every layer, secrets that are referred to, paths.

    Lists every problem, and warns of secrets that stand in the file itself. Exit codes: 0 there is no problem; 2 there
    are some.

    Examples:

      headpond config check

      headpond config check --config /srv/chat/headpond.toml --set chat.slots=8

      headpond config check --json | jq -r '.problems[].where'
    """
    examined = _examined(config, said, running=running)
    problems, warnings = all_problems(examined), all_warnings(examined)
    settings = examined.settings
    if as_json:
        report = {"config": str(settings.file), "models": list(examined.names)}
        typer.echo(json.dumps(report | {"problems": _fields(problems), "warnings": _fields(warnings)}))
    else:
        for each in problems:
            typer.echo(escape_controls(_told(each)))
        for each in warnings:
            typer.echo(escape_controls(f"warning: {_told(each)}"))
        counts = [_number(len(examined.names), "model"), _number(len(problems), "problem")]
        counts += [counted(len(warnings), "warning")] if warnings else []
        typer.echo(escape_controls(f"{settings.file}: {', '.join(counts)}"), err=True)
    if problems:
        raise typer.Exit(BAD_INPUT)


def _fields(problems: list[Problem]) -> list[dict[str, str]]:
    return [{"where": each.where, "message": each.message, "model": each.model} for each in problems]


def register(app: typer.Typer) -> None:
    app.add_typer(config_app, name="config")


def _examined(config: Path | None, said: list[str] | None, *, running: bool) -> Examined:
    file = config or find_config()
    if file is None:
        raise ConfigError(
            f"there is no {CONFIG_NAME} here or in a folder above; write one, or name one with --config",
            where=str(Path.cwd()),
        )
    if running and said:
        raise typer.BadParameter("takes no --set: what runs was told already", param_hint="--running")
    return examine(file, environment=os.environ, command_line=None if running else said or ())


def _rows(settings: Settings, model: str | None) -> list[dict[str, Any]]:
    shown = []
    for section, table in tables_of(settings):
        if model is not None and section != ("models", model):
            continue
        for path, value in flattened(table).items():
            key = dotted((*section, *path))
            row: dict[str, Any] = {"key": key, "value": _plain(value)}
            if isinstance(value, SecretRef):
                row["reference"] = value.model_dump(mode="json", exclude_none=True)
            row["origin"] = settings.origins.get(key, BUILT_IN).shown(settings.folder)
            shown.append(row)
    return shown


def _plain(value: object) -> object:
    """As JSON has it."""
    if isinstance(value, SecretRef):
        return MASK
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Table):
        return {key: _plain(getattr(value, key)) for key in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    return value


def _text(row: dict[str, Any]) -> str:
    if "reference" in row:
        ((kind, name),) = row["reference"].items()
        return f"{MASK} ({kind} {name})"
    value = row["value"]
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _told(problem: Problem) -> str:
    return f"{problem.where}: {problem.message}"


def _number(count: int, noun: str) -> str:
    return counted(count, noun) if count else f"no {noun}s"
