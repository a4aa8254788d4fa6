"""`headpond models list`: what each name on this Redis is, who holds it, and what serves it here and elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psutil

from headpond.errors import MalformedDocument
from headpond.models import Holder, ModelRow
from headpond.spec import summary
from headpond.workers import WorkerState
from headpond_workers.rollover.alias_state import AliasState
from headpond_workers.supervision.status import DeploymentStatus, WorkerStatus


class ModelState(StrEnum):
    READY = "ready"
    """As many workers as there should be are ready."""
    PARTLY = "partly"
    """Some of them."""
    STARTING = "starting"
    """None yet."""
    FAILED = "failed"
    """None, and one cannot be."""
    STOPPED = "stopped"
    """By `headpond models stop`, here, and nobody else serves it."""
    UNSERVED = "unserved"
    """Nobody serves it, and here nobody should."""


@dataclass(frozen=True, slots=True)
class ModelLine:
    """One name. ready: workers, of all deployments. wanted: workers of this one; None if its configuration has no such
    model. rss_bytes: host memory of its workers on this machine. device_bytes: what engines say that they take of
    their devices, everywhere. alias: of a model that follows one."""

    name: str
    spec: str
    engine: str
    versions: tuple[str, ...]
    ready: int
    wanted: int | None
    devices: tuple[str, ...]
    rss_bytes: int
    device_bytes: int
    state: ModelState
    holders: tuple[Holder, ...]
    alias: AliasState | None = None

    def document(self) -> dict[str, Any]:
        """As `headpond models list --json` prints it."""
        return {
            "name": self.name,
            "spec": self.spec,
            "engine": self.engine,
            "versions": list(self.versions),
            "alias": None if self.alias is None else self.alias.document(),
            "workers": {"ready": self.ready, "wanted": self.wanted},
            "devices": list(self.devices),
            "rss_bytes": self.rss_bytes,
            "device_bytes": self.device_bytes,
            "state": self.state.value,
            "held_by": [
                {"deployment": h.deployment, "host": h.host, "folder": h.folder, "since_ms": h.since_ms}
                for h in self.holders
            ],
        }


def list_models(
    rows: Mapping[str, ModelRow],
    status: DeploymentStatus,
    *,
    wanted: Mapping[str, int],
    engines: Mapping[str, str],
    stopped: frozenset[str],
    host: str,
) -> list[ModelLine]:
    """rows: of headpond:models. wanted, engines: of this configuration, by model. host: this machine."""
    return [
        _line(
            name, rows.get(name), [worker for worker in status.workers if worker.model == name],
            wanted=wanted.get(name), engine=engines.get(name, ""), stopped=name in stopped, host=host,
            alias=status.alias_of(name),
        )
        for name in sorted({*rows, *wanted})
    ]  # fmt: skip


def _line(
    name: str,
    row: ModelRow | None,
    workers: list[WorkerStatus],
    *,
    wanted: int | None,
    engine: str,
    stopped: bool,
    host: str,
    alias: AliasState | None,
) -> ModelLine:
    ready = [worker for worker in workers if worker.state is WorkerState.READY]
    return ModelLine(
        name=name,
        spec=_summary(row),
        engine=row.engine if row is not None else engine,
        versions=tuple(sorted({worker.version for worker in workers if worker.version})),
        ready=len(ready),
        wanted=wanted,
        devices=tuple(sorted({worker.device for worker in workers if worker.device})),
        rss_bytes=sum(_rss_bytes(worker.pid) for worker in workers if worker.host == host and worker.pid),
        device_bytes=sum(worker.memory_bytes for worker in workers),
        state=_state(workers, len(ready), wanted=wanted or 0, stopped=stopped),
        holders=row.holders if row is not None else (),
        alias=alias,
    )


def _state(workers: list[WorkerStatus], ready: int, *, wanted: int, stopped: bool) -> ModelState:
    if ready >= max(wanted, 1):
        return ModelState.READY
    if ready:
        return ModelState.PARTLY
    if any(worker.state is WorkerState.FAILED for worker in workers) and not stopped:
        return ModelState.FAILED
    if stopped:
        return ModelState.STOPPED
    return ModelState.STARTING if wanted else ModelState.UNSERVED


def _summary(row: ModelRow | None) -> str:
    if row is None or not row.spec:
        return ""
    try:
        return summary(row.spec)
    except MalformedDocument:
        return "(unreadable)"


def _rss_bytes(pid: int) -> int:
    """Resident memory of a process of this machine; 0 if it is none of ours, or gone."""
    try:
        process = psutil.Process(pid)
        if not any("headpond" in word for word in process.cmdline()):
            return 0
        # A worker whose versions change side by side is the child of what its row names.
        return sum(int(each.memory_info().rss) for each in (process, *process.children()))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
