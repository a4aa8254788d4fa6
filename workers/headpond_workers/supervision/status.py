"""What runs: the workers' own rows in Redis, joined with what supervisord sees of their processes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from headpond.spooled import StorageTrouble
from headpond.switching import Switch
from headpond.upkeep import Depths
from headpond.workers import WorkerRow, WorkerState
from headpond_workers.own_row import BESIDE
from headpond_workers.rollover.alias_state import AliasState
from headpond_workers.supervision.programs import WORKER_ENDS_FOR_GOOD, split_worker_name
from headpond_workers.supervision.supervisor import Process, ProcessState

SILENT_AFTER_S = 15.0
"""A ready worker renews its row with its leases; one that says nothing for longer, or for two leases, is stuck
or gone."""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """How many jobs of one model stand where. closed: why nothing is handed out; empty if the queue is open.
    switch: of a model that follows an alias, once its queue knows it. trouble: what storage lacks while it is away."""

    model: str
    depths: Depths
    closed: str = ""
    switch: Switch | None = None
    trouble: StorageTrouble | None = None


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker. instance: its program, `chat-0`. pid: 0 if no process runs. version: empty until loaded.
    tokens_per_s: of late, all slots together. device, memory_bytes: what its engine says that it takes. here: it is a
    program of this deployment's supervisord. deployment: whose it is; empty if nobody said."""

    instance: str
    model: str
    version: str
    pid: int
    host: str
    slots: int
    busy: int
    state: WorkerState
    last_error: str
    tokens_per_s: float = 0.0
    device: str = ""
    memory_bytes: int = 0
    here: bool = False
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """now_ms: the server's time."""

    queues: tuple[QueueStatus, ...]
    workers: tuple[WorkerStatus, ...]
    now_ms: int = 0

    def alias_of(self, model: str) -> AliasState | None:
        """Where a model stands that follows an alias; None for any other."""
        switch = next((queue.switch for queue in self.queues if queue.model == model), None)
        ready = [w.version for w in self.workers if w.model == model and w.state is WorkerState.READY]
        return None if switch is None else AliasState(switch, ready)

    def document(self) -> dict[str, Any]:
        """As `headpond status --json` prints it."""
        return {
            "queues": [
                {
                    "model": queue.model,
                    "ready": queue.depths.ready,
                    **asdict(queue.depths),
                    "storage": None if queue.trouble is None else trouble_document(queue.trouble, now_ms=self.now_ms),
                    "alias": None if (alias := self.alias_of(queue.model)) is None else alias.document(),
                }
                for queue in self.queues
            ],
            "workers": [
                {
                    "instance": worker.instance,
                    "model": worker.model,
                    "version": worker.version,
                    "pid": worker.pid,
                    "host": worker.host,
                    "slots": worker.slots,
                    "busy": worker.busy,
                    "tokens_per_s": worker.tokens_per_s,
                    "state": worker.state.value,
                    "last_error": worker.last_error,
                }
                for worker in self.workers
            ],
        }


def trouble_document(trouble: StorageTrouble, *, now_ms: int) -> dict[str, Any]:
    """loss_window_s: how much of the past the loss of all of Redis would cost, beside what a spool has."""
    since_ms = trouble.since_ms
    return {
        "away_since_ms": trouble.away_since_ms,
        "loss_window_s": max(0, now_ms - since_ms) / 1000,
        "spool": None if trouble.spooled is None else asdict(trouble.spooled),
    }


def closed_reason(meta: Mapping[str, str]) -> str:
    """From a queue's meta: why it hands nothing out. Empty if it is open, or nobody has used it yet."""
    state = meta.get("state", "open")
    if state == "open":
        return ""
    if state == "restoring":
        return "it is being restored from storage; if that was interrupted, run again: headpond restore"
    if state == "reconciling":
        return "its server went back in time, and what storage has is being put back"
    return meta.get("closed_reason") or "the persister has not compared it with storage yet"


def join(
    processes: Mapping[str, Process],
    rows: Iterable[WorkerRow],
    *,
    host: str,
    deployment: str = "",
    now_ms: int,
    lease_s: Mapping[str, float],
    last_log_line: Callable[[str], str],
) -> list[WorkerStatus]:
    """Every worker of this machine's supervisord, and every other one that was heard of lately, by instance.

    A row counts for a process only if it names its pid: rows of a program's earlier lives may linger. Where
    there is none, the process' state stands in for it. deployment: the id of this one: another one on this host may
    have workers of the same names. lease_s: of each model of the configuration.
    last_log_line: the end of a program's log, by name.
    """
    rows = list(rows)

    def silent_s(row: WorkerRow) -> float:
        seconds = (now_ms - row.seen_ms) / 1000
        return seconds if seconds > max(SILENT_AFTER_S, 2 * lease_s.get(row.model, 0.0)) else 0.0

    def ours(row: WorkerRow) -> bool:
        return row.deployment in ("", deployment)

    found: list[WorkerStatus] = []
    matched: set[str] = set()
    for name, process in processes.items():
        split = split_worker_name(name)
        if split is None:
            continue
        of_instance = [row for row in rows if row.instance == name and ours(row)]
        row = next((row for row in of_instance if process.pid and row.pid == process.pid), None)
        if row is None:
            # A worker that was loaded beside another one, in the moment before it takes over its name.
            beside = (row for row in rows if row.instance == name + BESIDE and row.pid == process.pid and ours(row))
            row = next(beside, None)
        if row is not None and not process.state.ended:
            matched.add(row.boot)
            found.append(replace(_from_row(row, silent_s=silent_s(row), here=True), instance=name))
        else:
            latest = max((row for row in of_instance if row.host == host), key=lambda row: row.started_ms, default=None)
            found.append(_from_process(process, split[0], latest, host=host, last_log_line=last_log_line))
    elsewhere = [
        _from_row(row, silent_s=silent_s(row), here=False)
        for row in rows
        if row.boot not in matched
        and not (row.host == host and row.instance in processes and ours(row))
        and not silent_s(row)
    ]
    return sorted(found + elsewhere, key=lambda worker: (worker.model, worker.host, _order(worker.instance)))


def _from_row(row: WorkerRow, *, silent_s: float, here: bool) -> WorkerStatus:
    # One that is loading says nothing until it has loaded.
    awaited = silent_s and row.state in (WorkerState.READY, WorkerState.DRAINING)
    silent = f"silent for {silent_s:.0f} s" if awaited else ""
    return WorkerStatus(
        instance=row.instance,
        model=row.model,
        version=row.version,
        pid=row.pid,
        host=row.host,
        slots=row.slots,
        busy=row.busy,
        state=row.state,
        last_error="; ".join(text for text in (silent, row.last_error) if text),
        # What it made when it was last heard of says nothing of now.
        tokens_per_s=0.0 if awaited else row.tokens_per_s,
        device=row.device,
        memory_bytes=row.memory_bytes,
        here=here,
        deployment=row.deployment,
    )


def _from_process(
    process: Process, model: str, latest: WorkerRow | None, *, host: str, last_log_line: Callable[[str], str]
) -> WorkerStatus:
    match process.state:
        case ProcessState.STARTING | ProcessState.RUNNING:
            state, error = WorkerState.STARTING, ""
        case ProcessState.BACKOFF:
            state, error = WorkerState.STARTING, last_log_line(process.name)
        case ProcessState.STOPPING:
            state, error = WorkerState.DRAINING, ""
        case ProcessState.STOPPED:
            state, error = WorkerState.FAILED, "it was stopped; start it with: headpond up"
        case ProcessState.EXITED if process.exit_status not in WORKER_ENDS_FOR_GOOD:
            state, error = WorkerState.STARTING, last_log_line(process.name)  # supervisord starts it again at once
        case _:
            own_words = latest.last_error if latest is not None and latest.state is WorkerState.FAILED else ""
            state = WorkerState.FAILED
            error = own_words or last_log_line(process.name) or f"it ended with status {process.exit_status}"
    return WorkerStatus(
        instance=process.name,
        model=model,
        version="",
        pid=process.pid,
        host=host,
        slots=0,
        busy=0,
        state=state,
        last_error=error,
        here=True,
    )


def _order(instance: str) -> tuple[str, int]:
    return split_worker_name(instance) or (instance, -1)
