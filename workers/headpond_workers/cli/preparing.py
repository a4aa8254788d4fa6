"""Weights that a configuration names by `source`, fetched before their workers start."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from rich.console import Console
from rich.progress import Progress, TaskID

from headpond.settings import Settings
from headpond.terminal import escape_controls
from headpond_workers.supervision.scaling import worker_counts


def prepare_models(settings: Settings, models: Collection[str] | None = None) -> None:
    """Fetch and convert catalogued models that are to run and are not there yet. models: these alone, whatever runs."""
    from headpond_workers.models.prepare import prepare

    counts = worker_counts(settings)
    sources = {
        source: name
        for name, model in settings.models.items()
        if (counts[name] if models is None else name in models)
        and model.version_source is None
        and (source := getattr(model, "source", None))
    }
    for source, name in sources.items():
        console = Console(stderr=True)
        # Where nobody watches, an empty line would be left of it.
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            tasks: dict[str, TaskID] = {}

            prepare(source, progress=partial(_show_step, bar, tasks, name))


def _show_step(bar: Progress, tasks: dict[str, TaskID], name: str, step: str, done: int, total: int) -> None:
    if step not in tasks:
        tasks[step] = bar.add_task(f"{name}: {escape_controls(step)}", total=total or None)
    bar.update(tasks[step], completed=done, total=total or None)
