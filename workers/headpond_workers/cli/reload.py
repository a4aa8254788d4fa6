"""`headpond reload`: a changed configuration, applied to what runs."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headpond.cli.exits import INTERRUPTED
from headpond_workers.cli.config_option import AsJson, Config, say, settings_of
from headpond_workers.cli.preparing import prepare_models
from headpond_workers.cli.watching import await_workers
from headpond_workers.supervision.deployment import Deployment
from headpond_workers.supervision.scaling import started_counts


def register(app: typer.Typer) -> None:
    app.command()(reload)


def reload(
    config: Config = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Apply a changed configuration to what runs, and wait until every worker is ready.

    Shows what differs: models added (+) and removed (-), keys changed (~). Models without a difference keep running
    with their pids. A changed one is restarted worker by worker, each after its drain; settings of its queue are taken
    over without a restart. Secret files are read again. A configuration that is wrong changes nothing.

    Examples:

      headpond reload --dry-run

      headpond reload

      headpond reload --json | jq .changed
    """
    settings = settings_of(config)
    deployment = Deployment(settings, progress=say)
    changes = deployment.pending()
    notices = deployment.stale_secrets()
    if not as_json:
        for line in changes.lines(started_counts(settings)) or ["Nothing differs from what runs."]:
            say(line)
    for line in notices:
        say(line)
    if not dry_run:
        prepare_models(settings)
        try:
            changes = deployment.reload()
            await_workers(deployment)
        except KeyboardInterrupt:
            say("Interrupted. What was begun goes on; call headpond reload again to end it.")
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps({**changes.document(), "applied": not dry_run, "notices": notices}))
