"""`headpond up`, `down`, `status`, `logs`, `scale`: the deployment of one configuration on this machine."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from headpond.cli.config import SetOption
from headpond.cli.exits import INTERRUPTED
from headpond.errors import ConfigError, InvalidRequest
from headpond.terminal import escape_controls
from headpond_workers.cli.config_option import AsJson, Config, running_settings_of, say, settings_of
from headpond_workers.cli.log_lines import coming, log_files, recent
from headpond_workers.cli.preparing import prepare_models
from headpond_workers.cli.status_tables import show_status
from headpond_workers.cli.watching import LEFT_RUNNING, up_and_watch, up_detached
from headpond_workers.supervision.deployment import Deployment
from headpond_workers.supervision.scaling import MOST_WORKERS, worker_counts

_SCALE = re.compile(r"([^=]+)=([0-9]{1,3})")


def register(app: typer.Typer) -> None:
    """Add the commands to the one CLI."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(logs)
    app.command()(scale)


def up(
    config: Config = None,
    *,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once every worker is ready or has failed.")
    ] = False,
    said: SetOption = None,
) -> None:
    """Start the workers, and the servers that the configuration does not name.

    Stays and shows changes until Ctrl-C, which stops everything; with --detach it goes on in the background.
    A second call brings what runs in line with a changed configuration, environment and --set.

    Examples:

      headpond up

      headpond up --detach && headpond status

      headpond up --config /srv/chat/headpond.toml

      headpond up --set chat.slots=8 --set defaults.lease_s=5
    """
    settings = settings_of(config, command_line=said or ())
    deployment = Deployment(settings, progress=say)
    deployment.refuse_wrong()
    prepare_models(settings)
    if detach:
        up_detached(deployment)
    else:
        up_and_watch(deployment)


def down(config: Config = None) -> None:
    """Stop the workers, each after its drain, then the servers. The data stay.

    Examples:

      headpond down
    """
    try:
        settings = running_settings_of(config)
    except ConfigError as error:
        # Nothing was ever applied. Whatever is wrong with a model, or with what `headpond up` was told, what it has
        # started can be stopped.
        settings = settings_of(config, command_line=(), needed=())
        say(str(error))
    try:
        ran = Deployment(settings, progress=say).down()
    except KeyboardInterrupt:
        say(LEFT_RUNNING)
        raise typer.Exit(INTERRUPTED) from None
    if not ran:
        say("Nothing runs here.")


def status(
    config: Config = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show queues and workers.

    Jobs that are ready, by priority; of them suspects, which crashed their workers twice. Due are delayed jobs whose
    time has come.

    Examples:

      headpond status

      headpond status --json | jq '.workers[] | select(.state == "failed")'
    """
    found = Deployment(running_settings_of(config)).status()
    if as_json:
        typer.echo(json.dumps(found.document()))
    else:
        show_status(found)


def logs(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model, or: persister, valkey, seaweedfs, supervisord.")
    ],
    config: Config = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, max=10_000, help="Of each worker.")] = 50,
) -> None:
    """Show what a model's workers, or another program, wrote.

    Examples:

      headpond logs chat

      headpond logs chat --follow

      headpond logs persister -n 200
    """
    paths = log_files(running_settings_of(config), name)
    for line in recent(paths, lines):
        typer.echo(line)
    if not follow:
        return
    try:
        for line in coming(paths):
            typer.echo(line)
    except KeyboardInterrupt:
        return


def scale(
    counts: Annotated[list[str], typer.Argument(metavar="NAME=N...", help="How many workers a model is to have.")],
    config: Config = None,
) -> None:
    """Start or retire workers of models. The others keep running; retired ones drain first.

    The counts hold for later calls of `headpond up` too, until the configuration's own count is changed.

    Examples:

      headpond scale chat=3

      headpond scale chat=2 code=0
    """
    settings = settings_of(config)
    wanted = _parse_counts(counts)
    for name in wanted:
        settings.model(name)
    Deployment(settings, progress=say).scale(wanted)
    found = worker_counts(settings)
    say(", ".join(f"{name}={found[name]}" for name in wanted))


def _parse_counts(words: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        match = _SCALE.fullmatch(word)
        if match is None:
            raise InvalidRequest(
                f"'{escape_controls(word)}' is not NAME=N with N from 0 to {MOST_WORKERS}, such as: headpond scale "
                "chat=3",
                field="counts",
            )
        name, count = match[1], int(match[2])
        if count > MOST_WORKERS:
            raise InvalidRequest(
                f"'{escape_controls(word)}': a model has 0 to {MOST_WORKERS} workers on one machine, such as: headpond "
                "scale chat=3",
                field="counts",
            )
        if counts.setdefault(name, count) != count:
            raise InvalidRequest(
                f"'{escape_controls(name)}' is given twice, with {counts[name]} and {count} workers. Give it once, "
                "such as: headpond scale chat=3",
                field="counts",
            )
    return counts
