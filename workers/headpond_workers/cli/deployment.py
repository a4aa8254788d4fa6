"""`headpond up`, `down`, `status`, `logs`, `scale`: the deployment of one configuration on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from rich.text import Text

from headpond.cli.config import SetOption
from headpond.errors import ConfigError, DeploymentError, RedisUnavailable
from headpond.settings import CONFIG_NAME, Settings, find_config, load_settings
from headpond.terminal import escape_controls
from headpond.workers import WorkerState
from headpond_workers.cli.log_lines import coming, log_files, recent
from headpond_workers.supervision.deployment import Deployment, describe
from headpond_workers.supervision.run_file import read_run_file
from headpond_workers.supervision.scaling import worker_counts
from headpond_workers.supervision.status import DeploymentStatus
from headpond_workers.supervision.supervisor import SupervisorGone

WATCH_INTERVAL_S = 1.0
INTERRUPTED_STATUS = 130
PLAIN_WIDTH = 160
"""Of tables that go to a file or a pipe."""

_SCALE = re.compile(r"([^=]+)=([0-9]{1,3})")
_STYLES = {
    WorkerState.READY: "green",
    WorkerState.FAILED: "bold red",
    WorkerState.DRAINING: "yellow",
}
_ALARMS = {"suspects": "yellow", "dead": "bold red"}
"""Counts that ask for somebody's attention."""

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help=f"The configuration; default: the nearest {CONFIG_NAME}."),
]


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
    settings = _settings(config, command_line=said or ())
    _prepare_models(settings)
    deployment = Deployment(settings, progress=_say)
    if detach:
        _up_detached(deployment)
    else:
        _up_and_watch(deployment)


def down(config: Config = None) -> None:
    """Stop the workers, each after its drain, then the servers. The data stay.

    Examples:

      headpond down
    """
    if not Deployment(_settings(config), progress=_say).down():
        _say("Nothing runs here.")


def status(
    config: Config = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")] = False,
) -> None:
    """Show queues and workers.

    Jobs that are ready, by priority; of them suspects, which crashed their workers twice. Due are delayed jobs whose
    time has come.

    Examples:

      headpond status

      headpond status --json | jq '.workers[] | select(.state == "failed")'
    """
    found = Deployment(_settings(config)).status()
    if as_json:
        typer.echo(json.dumps(found.document()))
    else:
        _show(found)


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
    paths = log_files(_settings(config), name)
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
    settings = _settings(config)
    wanted = _parse_counts(counts)
    for name in wanted:
        settings.model(name)
    Deployment(settings, progress=_say).scale(wanted)
    found = worker_counts(settings)
    _say(", ".join(f"{name}={found[name]}" for name in wanted))


def _up_detached(deployment: Deployment) -> None:
    try:
        deployment.up()
        found = deployment.wait_ready()
    except KeyboardInterrupt:
        _say("Interrupted. What was started goes on; stop it with: headpond down")
        raise typer.Exit(INTERRUPTED_STATUS) from None
    failed = [worker for worker in found.workers if worker.state is WorkerState.FAILED]
    if failed:
        names = "; ".join(describe(worker) for worker in failed)
        raise DeploymentError(
            f"{len(failed)} of {len(found.workers)} workers failed: {escape_controls(names)}. The others serve. See "
            f"headpond logs {failed[0].model}; then headpond up starts it again."
        )
    _say(f"{len(found.workers)} workers ready")


def _up_and_watch(deployment: Deployment) -> None:
    # SIGTERM, from a service manager, asks for the same as Ctrl-C.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        deployment.up()
        _watch(deployment, deployment.wait_ready())
    except KeyboardInterrupt:
        _say("Stopping; workers may finish what they run. Once more to stop waiting.")
        deployment.down()
    finally:
        signal.signal(signal.SIGTERM, previous)


def _watch(deployment: Deployment, found: DeploymentStatus) -> None:
    """Tell changes of workers until interrupted, or until the deployment is taken down elsewhere."""
    shown = {worker.instance: describe(worker) for worker in found.workers}
    _say(f"{sum(w.state is WorkerState.READY for w in found.workers)} of {len(shown)} workers ready; Ctrl-C stops")
    reachable = True
    while True:
        time.sleep(WATCH_INTERVAL_S)
        try:
            now = {worker.instance: describe(worker) for worker in deployment.status().workers}
        except RedisUnavailable as error:
            if reachable:
                _say(str(error))
            reachable = False
            continue
        except SupervisorGone as error:
            if read_run_file(deployment.folder) is None:
                _say("The deployment was stopped by another command.")
                return
            raise DeploymentError(
                "supervisord ended, and with it all that it ran. Start again with: headpond up. Its last words:\n"
                f"{escape_controls(deployment.supervisor_log(1))}"
            ) from error
        if not reachable:
            _say("Redis answers again")
        reachable = True
        for instance in sorted(now.keys() | shown.keys()):
            if now.get(instance) != shown.get(instance):
                _say(now.get(instance, f"{instance} retired"))
        shown = now


def _prepare_models(settings: Settings) -> None:
    """Fetch and convert catalogued models that are to run and are not there yet."""
    from headpond_workers.models.prepare import prepare

    counts = worker_counts(settings)
    sources = {
        source: name
        for name, model in settings.models.items()
        if counts[name] and (source := getattr(model, "source", None))
    }
    for source, name in sources.items():
        console = Console(stderr=True)
        with Progress(console=console, transient=True) as bar:
            tasks: dict[str, TaskID] = {}

            prepare(source, progress=partial(_show_step, bar, tasks, name))


def _show_step(bar: Progress, tasks: dict[str, TaskID], name: str, step: str, done: int, total: int) -> None:
    if step not in tasks:
        tasks[step] = bar.add_task(f"{name}: {escape_controls(step)}", total=total or None)
    bar.update(tasks[step], completed=done, total=total or None)


def _settings(config: Path | None, *, command_line: Sequence[str] | None = None) -> Settings:
    """command_line: None: what the running deployment was told."""
    file = config or find_config()
    if file is None:
        raise ConfigError(
            f"there is no {CONFIG_NAME} here or in a folder above; write one, or name one with --config",
            where=str(Path.cwd()),
        )
    return load_settings(file, environment=os.environ, command_line=command_line)


def _parse_counts(words: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        match = _SCALE.fullmatch(word)
        if match is None:
            raise DeploymentError(f"'{escape_controls(word)}' is not NAME=N, such as: headpond scale chat=3")
        name, count = match[1], int(match[2])
        if counts.setdefault(name, count) != count:
            raise DeploymentError(f"'{escape_controls(name)}' is given twice, with {counts[name]} and {count} workers.")
    return counts


def _show(found: DeploymentStatus) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    queues = Table("model", box=None, pad_edge=False)
    titles = ("ready", "interactive", "normal", "batch", "suspects", "delayed", "due", "running", "dead")
    for title in titles:
        queues.add_column(title, justify="right")
    for queue in found.queues:
        counts = [(title, getattr(queue.depths, title)) for title in titles]
        queues.add_row(
            Text(escape_controls(queue.model)),
            *(Text(str(count), style=_ALARMS.get(title, "") if count else "") for title, count in counts),
        )
    workers = Table("worker", "version", "host", box=None, pad_edge=False)
    for title in ("pid", "busy", "tokens/s"):
        workers.add_column(title, justify="right")
    workers.add_column("state")
    workers.add_column("last error", overflow="fold")
    for worker in found.workers:
        workers.add_row(
            Text(escape_controls(worker.instance)),
            Text(escape_controls(worker.version)),
            Text(escape_controls(worker.host)),
            str(worker.pid or "-"),
            f"{worker.busy}/{worker.slots}" if worker.slots else "-",
            f"{worker.tokens_per_s:.1f}" if worker.slots else "-",
            Text(worker.state.value, style=_STYLES.get(worker.state, "")),
            Text(escape_controls(worker.last_error)),
        )
    console.print(queues)
    for queue in found.queues:
        if queue.closed:
            console.print(
                Text(f"{escape_controls(queue.model)} is closed: {escape_controls(queue.closed)}", style="bold red")
            )
    console.print()
    console.print(workers if found.workers else "No workers.")


def _say(line: str) -> None:
    typer.echo(escape_controls(line), err=True)
