"""The worker side's part of the `headpond` command."""

from __future__ import annotations

from importlib.util import find_spec

import typer

from headpond.errors import DeploymentError

OPERATOR_COMMANDS = (
    "up",
    "down",
    "status",
    "logs",
    "scale",
    "reload",
    "worker",
    "persister",
    "models",
    "replay",
    "verify",
    "storage",
    "restore",
)
WORKER_EXTRA = ("boto3", "supervisor", "psutil", "pyfastcdc")


def register(app: typer.Typer) -> None:
    """Add the commands of operators. Called through the entry-point group `headpond.commands`.

    A producer's installation has this package, but not what it needs: there the commands say what to install.
    """
    if not all(map(find_spec, WORKER_EXTRA)):
        anything = {"allow_extra_args": True, "ignore_unknown_options": True}
        for name in OPERATOR_COMMANDS:
            app.command(name, hidden=True, context_settings=anything)(_not_installed)
        return
    from headpond_workers.cli import deployment, processes, reload, replay, restore, verify
    from headpond_workers.cli.models import models_app
    from headpond_workers.cli.storage import storage_app

    deployment.register(app)
    reload.register(app)
    processes.register(app)
    replay.register(app)
    verify.register(app)
    restore.register(app)
    app.add_typer(models_app, name="models")
    app.add_typer(storage_app, name="storage")


def _not_installed(context: typer.Context) -> None:
    raise DeploymentError(
        f"headpond {context.info_name} needs the worker side. Install it with: pip install 'headpond[worker]'"
    )
