"""`headpond status` as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headpond.spooled import StorageTrouble
from headpond.terminal import escape_controls
from headpond.workers import WorkerState
from headpond_workers.cli.sizes import shown_size
from headpond_workers.supervision.status import DeploymentStatus

PLAIN_WIDTH = 160
"""Of tables that go to a file or a pipe."""

_STYLES = {
    WorkerState.READY: "green",
    WorkerState.FAILED: "bold red",
    WorkerState.DRAINING: "yellow",
}
_ALARMS = {"suspects": "yellow", "dead": "bold red"}
"""Counts that ask for somebody's attention."""


def table_console() -> Console:
    """Where tables go: as wide as the terminal, or as a file may be."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def trouble_line(model: str, trouble: StorageTrouble, *, now_ms: int) -> str:
    """What storage lacks of a model, and what a loss of Redis would take."""
    away_s, lack_s = ((now_ms - ms) / 1000 for ms in (trouble.away_since_ms or now_ms, trouble.since_ms))
    away = f"storage cannot be reached since {away_s:.0f} s; " if trouble.away_since_ms is not None else ""
    line = f"{model}: {away}the loss of all of Redis would cost the last {lack_s:.0f} s"
    spooled = trouble.spooled
    if spooled is None:
        return line
    return f"{line}, but for {shown_size(spooled.bytes)} in the spool of {spooled.host} ({spooled.folder})"


def show_status(found: DeploymentStatus) -> None:
    """Queues, then workers."""
    console = table_console()
    queues = Table("model", box=None, pad_edge=False)
    titles = ("ready", "interactive", "normal", "batch", "waiting", "suspects", "delayed", "due", "running", "dead")
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
        if queue.trouble is not None:
            line = trouble_line(queue.model, queue.trouble, now_ms=found.now_ms)
            console.print(Text(escape_controls(line), style="bold red"))
        if (alias := found.alias_of(queue.model)) is not None:
            console.print(Text(f"{escape_controls(queue.model)} serves {escape_controls(str(alias))}"))
    console.print()
    console.print(workers if found.workers else "No workers.")
