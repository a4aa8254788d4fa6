"""The worker side's part of the `headpond` command."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of operators. Called through the entry-point group `headpond.commands`."""
    from headpond_workers.cli import deployment, processes
    from headpond_workers.cli.models import models_app

    deployment.register(app)
    processes.register(app)
    app.add_typer(models_app, name="models")
