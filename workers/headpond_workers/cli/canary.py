"""`headpond models canary`: how a version on trial does beside the one that its alias names."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headpond.connections import redis_of
from headpond.errors import ConfigError
from headpond.queue import Server
from headpond.settings import CONFIG_NAME
from headpond.terminal import escape_controls
from headpond_workers.cli.config_option import AsJson, Config, settings_of
from headpond_workers.cli.status_tables import table_console

if TYPE_CHECKING:
    from headpond_workers.checkpoints.alias_document import AliasDocument, Trial
    from headpond_workers.checkpoints.trial_decision import Decision
    from headpond_workers.checkpoints.trial_figures import Figure, SideFigures, TrialFigures

WATCH_INTERVAL_S = 2.0
_PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A trial as it stands. figures, decision: None without a trial. decision: what its bounds say now."""

    model: str
    alias: AliasDocument | None
    trial: Trial | None = None
    figures: TrialFigures | None = None
    decision: Decision | None = None


def canary(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A model of the configuration, whose source is an alias.")
    ],
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the trial ends, or Ctrl-C.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Compare a version on trial with the one that the alias names: failed jobs, speed, first token, length.

    In brackets stand 95 % intervals. Both sides count the jobs that ended since the trial began, at most the last 2000
    of each. With --json --watch each look is one line.

    Examples:

      headpond models canary chat

      headpond models canary chat --watch

      headpond models canary chat --json | jq .figures.trial.failed_share
    """
    looks = _looks(name, config)
    if as_json:
        for seen in looks:
            typer.echo(json.dumps(document(seen)))
            if not watch or seen.trial is None:
                return
    elif not watch:
        table_console().print(_shown(next(looks)))
    else:
        _follow(looks)


def register(models_app: typer.Typer) -> None:
    models_app.command()(canary)


def document(seen: Seen) -> dict[str, Any]:
    """As `--json` prints it. A bound of an interval that there is not is null."""
    alias, trial, figures = seen.alias, seen.trial, seen.figures
    return {
        "model": seen.model,
        "alias": None if alias is None else alias.alias,
        "to": None if alias is None else alias.to,
        "trial": None if trial is None else asdict(trial),
        "figures": None
        if figures is None
        else {"trial": _side_fields(figures.trial), "other": _side_fields(figures.other)},
        "decision": None
        if seen.decision is None
        else {"ruling": seen.decision.ruling.value, "reason": seen.decision.reason},
    }


def _looks(name: str, config: Path | None) -> Iterator[Seen]:
    """The trial as it is now, and again every WATCH_INTERVAL_S. Raises ConfigError."""
    # The other commands do not pay for what storage needs.
    from headpond_workers.checkpoints.aliases import Aliases
    from headpond_workers.checkpoints.registry import Registry
    from headpond_workers.checkpoints.resolving import open_storage
    from headpond_workers.checkpoints.trial_decision import decide
    from headpond_workers.checkpoints.trial_figures import figures_of

    settings = settings_of(config)
    source = settings.model(name).version_source
    if source is None or source.alias is None:
        raise ConfigError(
            f"the model '{name}' follows no alias, so there is no canary of it. Write: source = \"s3:{name}@prod\"",
            where=f"{settings.file or CONFIG_NAME} [models.{name}]",
        )
    aliases = Aliases(Registry(open_storage(settings), source.name, writer="headpond models canary"))
    with closing(Server(redis_of(settings))) as server:
        queue = server.queue(name)
        while True:
            at = aliases.get(source.alias)
            trial = None if at is None else at.document.trial
            if at is None or trial is None:
                yield Seen(name, None if at is None else at.document)
            else:
                outcomes = queue.read_outcomes()
                tried, other = str(trial.version), str(at.document.to)
                ruled = None if trial.bounds is None else decide(outcomes, trial.bounds, trial=tried, other=other)
                yield Seen(name, at.document, trial, figures_of(outcomes, trial=tried, other=other), ruled)
            time.sleep(WATCH_INTERVAL_S)


def _follow(looks: Iterator[Seen]) -> None:
    """On a terminal one table that changes; elsewhere one after the other."""
    console = table_console()
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        for seen in looks:
            if live is None:
                console.print(_shown(seen))
            else:
                live.update(_shown(seen), refresh=True)
            if seen.trial is None:
                return


def _shown(seen: Seen) -> Group:
    if seen.alias is None or seen.trial is None or seen.figures is None:
        last = None if seen.alias is None or not seen.alias.history else seen.alias.history[-1]
        ended = "" if last is None else f" Its alias was last changed by {last.who} ({last.cause.value}): {last.note}"
        return Group(
            Text(f"{escape_controls(seen.model)} has no canary."),
            *([Text(escape_controls(ended.strip()))] if ended else []),
            Text(f"Begin one with: headpond models promote {escape_controls(seen.model)} VERSION --share 10%"),
        )
    trial, figures = seen.trial, seen.figures
    since = datetime.fromtimestamp(trial.since_ms / 1000).astimezone().isoformat(sep=" ", timespec="seconds")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column(f"version {trial.version}, on trial", justify="right")
    table.add_column(f"version {seen.alias.to}", justify="right")
    for title, of in _ROWS:
        table.add_row(title, of(figures.trial), of(figures.other))
    lines: list[Text | Table] = [
        Text(
            f"{escape_controls(seen.model)}@{seen.alias.alias}: version {trial.version} gets "
            f"{trial.share_permille / 10:g} % of unpinned jobs since {since}"
        ),
        table,
    ]
    if seen.decision is not None:
        lines.append(Text(f"By its bounds: {seen.decision.ruling.value}; {seen.decision.reason}"))
    else:
        lines.append(Text(f"People decide: headpond models promote {escape_controls(seen.model)} {trial.version}"))
    return Group(*lines)


def _of(figure: Figure | None, *, times: float = 1.0, digits: int = 1) -> str:
    if figure is None:
        return "-"
    value = f"{figure.value * times:.{digits}f}"
    if not figure.bounded:
        return f"{value} (?)"
    return f"{value} ({figure.low * times:.{digits}f} to {figure.high * times:.{digits}f})"


_ROWS: tuple[tuple[str, Any], ...] = (
    ("ended jobs", lambda side: str(side.jobs)),
    ("failed, %", lambda side: _of(side.failed_share, times=_PERCENT)),
    ("tokens/s", lambda side: _of(side.tokens_per_s)),
    ("first token, ms", lambda side: _of(side.first_token_ms)),
    ("answer, tokens", lambda side: _of(side.answer_tokens)),
)


def _side_fields(side: SideFigures) -> dict[str, Any]:
    figures = {
        "failed_share": side.failed_share,
        "tokens_per_s": side.tokens_per_s,
        "token_ms": side.token_ms,
        "first_token_ms": side.first_token_ms,
        "answer_tokens": side.answer_tokens,
    }
    return {
        "version": side.version,
        "jobs": side.jobs,
        "failed": side.failed,
        **{name: None if figure is None else _figure_fields(figure) for name, figure in figures.items()},
    }


def _figure_fields(figure: Figure) -> dict[str, Any]:
    low, high = (figure.low, figure.high) if figure.bounded else (None, None)
    return {"value": figure.value, "low": low, "high": high, "count": figure.count}
