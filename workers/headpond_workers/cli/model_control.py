"""`headpond models start`, `stop`, `restart`, `list`, `forget`: single models, while the others go on."""

from __future__ import annotations

import json
import socket
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from headpond.cli.exits import INTERRUPTED
from headpond.connections import redis_of
from headpond.counts import counted
from headpond.queue import Server
from headpond.settings import Settings
from headpond.terminal import escape_controls
from headpond_workers.cli.config_option import AsJson, Config, running_settings_of, say, settings_of
from headpond_workers.cli.preparing import prepare_models
from headpond_workers.cli.status_tables import table_console
from headpond_workers.cli.watching import await_workers
from headpond_workers.naming.forgetting import Waiting, forget_holder, forget_name
from headpond_workers.supervision.deployment import Deployment
from headpond_workers.supervision.model_list import ModelLine, ModelState, list_models
from headpond_workers.supervision.observation import configured_models
from headpond_workers.supervision.scaling import started_counts
from headpond_workers.supervision.single_models import SingleModels
from headpond_workers.supervision.stopped import read_stopped

Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Models of the configuration.")]

_STYLES = {
    ModelState.READY: "green",
    ModelState.PARTLY: "yellow",
    ModelState.FAILED: "bold red",
    ModelState.STOPPED: "dim",
}


def register(models_app: typer.Typer) -> None:
    """Add the commands to `headpond models`."""
    for command in (start, stop, restart, forget):
        models_app.command()(command)
    models_app.command("list")(show)


def start(names: Names, config: Config = None, *, as_json: AsJson = False) -> None:
    """Start models that are stopped, or new in the configuration, and wait until they are ready.

    Others are left alone. Exit codes: 0 ready; 1 a worker failed; 2 no such model, or its name is another's.

    Examples:

      headpond models start chat

      headpond models start chat code --json
    """
    settings, models = _known(settings_of(config), names)
    deployment = Deployment(settings, progress=say)
    deployment.running()
    deployment.refuse_wrong(models)
    prepare_models(settings, models)
    SingleModels(deployment).start(models)
    _await(deployment, models, as_json=as_json)


def stop(names: Names, config: Config = None, *, as_json: AsJson = False) -> None:
    """Stop models, each worker after its drain. They stay stopped, also over `headpond up`, until they are started.

    Their jobs wait, and new ones are accepted. Their names are given up: another deployment may take them.

    Examples:

      headpond models stop chat
    """
    settings, models = _known(running_settings_of(config), names)
    SingleModels(Deployment(settings, progress=say)).stop(models)
    if as_json:
        typer.echo(json.dumps({"models": [{"name": name, "state": ModelState.STOPPED.value} for name in models]}))
    else:
        say(f"stopped: {', '.join(models)}")


def restart(names: Names, config: Config = None, *, as_json: AsJson = False) -> None:
    """Restart the workers of models, one by one, with the settings that the configuration has now.

    Each drains first, so that no job is lost; jobs that are submitted meanwhile wait. Others are left alone.

    Examples:

      headpond models restart chat
    """
    settings, models = _known(settings_of(config), names)
    deployment = Deployment(settings, progress=say)
    deployment.running()
    deployment.refuse_wrong(models)
    prepare_models(settings, models)
    SingleModels(deployment).restart(models)
    _await(deployment, models, as_json=as_json)


def show(config: Config = None, *, as_json: AsJson = False) -> None:
    """Show every model on this Redis: what it is, what serves it, and which deployments hold its name.

    Memory is that of the workers' processes on this machine, and what engines say of their devices.

    Examples:

      headpond models list

      headpond models list --json | jq '.models[] | select(.state != "ready") | .name'
    """
    settings = running_settings_of(config)
    deployment = Deployment(settings, progress=say)
    status = deployment.status()
    lines = list_models(
        configured_models(settings),
        status,
        wanted=started_counts(settings),
        engines={name: table.engine for name, table in settings.models.items()},
        stopped=read_stopped(settings.state_folder),
        host=socket.gethostname(),
    )
    if as_json:
        typer.echo(json.dumps({"models": [line.document() for line in lines]}))
    else:
        _table(lines)


def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model on this Redis, of whatever deployment.")],
    config: Config = None,
    *,
    deployment: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Take the name from this deployment alone, which is never coming back."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also while jobs wait: they stay, for whoever takes the name next.")
    ] = False,
) -> None:
    """Forget a name that nobody serves any more: it is no model's, and submits to it are refused.

    Refused while a worker of it lives, and without --force while jobs wait. Jobs and results are not removed.

    Examples:

      headpond models forget old-chat

      headpond models forget chat --deployment 5f3a0c9d1b2e4f60
    """
    server = Server(redis_of(settings_of(config)))
    try:
        if deployment is not None:
            forget_holder(server, name, deployment)
            say(f"{deployment} no longer holds {name}")
        else:
            forget_name(server, name, waiting=Waiting.LEAVE if force else Waiting.KEEP)
            say(f"forgotten: {name}")
    finally:
        server.close()


def _known(settings: Settings, names: list[str]) -> tuple[Settings, list[str]]:
    models = list(dict.fromkeys(names))
    for name in models:
        settings.model(name)
    return settings, models


def _await(deployment: Deployment, models: list[str], *, as_json: bool) -> None:
    try:
        workers = await_workers(deployment, models)
    except KeyboardInterrupt:
        say("Interrupted. What was started goes on; see headpond status.")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        found = [
            {"name": name, "workers": [{"instance": w.instance, "pid": w.pid} for w in workers if w.model == name]}
            for name in models
        ]
        typer.echo(json.dumps({"models": found}))
    else:
        say(f"{counted(len(workers), 'worker')} ready")


def _table(lines: list[ModelLine]) -> None:
    table = Table("name", "what", "version", "alias", box=None, pad_edge=False)
    for title in ("workers", "memory"):
        table.add_column(title, justify="right")
    for title in ("device", "state", "held by"):
        table.add_column(title, overflow="fold")
    for line in lines:
        wanted = "-" if line.wanted is None else str(line.wanted)
        device = ", ".join(line.devices) or "-"
        if line.device_bytes:
            device += f" {_size(line.device_bytes)}"
        table.add_row(
            Text(escape_controls(line.name)),
            Text(escape_controls(line.spec or line.engine)),
            Text(escape_controls(" ".join(line.versions)) or "-"),
            Text("-" if line.alias is None else escape_controls(str(line.alias)), style=_alias_style(line)),
            f"{line.ready}/{wanted}",
            _size(line.rss_bytes) if line.rss_bytes else "-",
            Text(escape_controls(device)),
            Text(line.state.value, style=_STYLES.get(line.state, "")),
            Text(escape_controls(", ".join(f"{h.deployment} on {h.host}" for h in line.holders)) or "-"),
        )
    console = table_console()
    console.print(table if lines else "No models.")


def _alias_style(line: ModelLine) -> str:
    if line.alias is None or not (line.alias.switch.refused or line.alias.rolls_over):
        return ""
    return "bold red" if line.alias.switch.target in line.alias.switch.refused else "yellow"


def _size(count: int) -> str:
    mib = count / (1 << 20)
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
