"""What one worker process says of itself, as its queue and `headpond status` show it."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable

from headpond.errors import HeadpondError, UpstreamClosed
from headpond.operations import QueuePolicy, Retention
from headpond.queue import JobQueue
from headpond.tables import ModelTable, TenantRetention
from headpond.workers import WorkerRow, WorkerState, pack_worker
from headpond_workers.engines.protocol import DeviceUse
from headpond_workers.totals import Totals

logger = logging.getLogger(__name__)

BESIDE = "+"
"""Ends the instance name of a worker that is beside another one of the same name, for as long as it is."""


def _nothing() -> int:
    return 0


def _no_error() -> str:
    return ""


def _open() -> UpstreamClosed | None:
    return None


class OwnRow:
    """The row of this process. Its parts are set by whoever knows them, in whatever thread.

    version: '' until it is known. last_error: of loading. busy: leases held. engine_error: of jobs; beats last_error.
    closed: why the server behind a proxy is not asked. redact: takes secrets out of what is shown.
    """

    def __init__(
        self, table: ModelTable, model: str, instance: str, *, boot: str, deployment: str, redact: Callable[[str], str],
        pid: int | None = None,
    ) -> None:  # fmt: skip
        """pid: what a supervisor knows this worker by; None: its own."""
        self.table = table
        """Of now: what it says of the queue goes with each announcement."""
        self.model, self.instance, self.boot, self.deployment = model, instance, boot, deployment
        self.host, self.pid = socket.gethostname(), os.getpid() if pid is None else pid
        self.state, self.version, self.last_error = WorkerState.STARTING, "", ""
        self.beside = False
        self.device = DeviceUse()
        self.totals = Totals()
        self.busy: Callable[[], int] = _nothing
        self.engine_error: Callable[[], str] = _no_error
        self.closed: Callable[[], UpstreamClosed | None] = _open
        self._redact = redact
        self._started_ms = int(time.time() * 1000)

    def announce(self, queue: JobQueue, state: WorkerState, *, fingerprint: str = "") -> None:
        """Write the row, if the server can be reached; each renewal writes it again."""
        self.state = state
        try:
            queue.register(self.make(), policy_of(self.table), fingerprint=fingerprint)
        except HeadpondError as error:
            logger.warning("announce_failed state=%s error=%s", state.value, error)

    def packed(self) -> bytes:
        """As renewals send it."""
        return pack_worker(self.make())

    def make(self) -> WorkerRow:
        closed = self.closed()
        own_error = self.engine_error() or self._redact(self.last_error)
        return WorkerRow(
            boot=self.boot,
            model=self.model,
            version=self.version,
            host=self.host,
            pid=self.pid,
            instance=self.instance + (BESIDE if self.beside else ""),
            slots=self.table.slots,
            busy=self.busy(),
            state=self._shown_state(closed),
            last_error=self._redact(f"claims nothing: {closed}") if closed else own_error,
            started_ms=self._started_ms,
            tokens=self.totals.tokens,
            jobs=self.totals.jobs,
            tokens_per_s=self.totals.tokens_per_s(),
            device=self.device.device,
            memory_bytes=self.device.memory_bytes,
            deployment=self.deployment,
        )

    def _shown_state(self, closed: UpstreamClosed | None) -> WorkerState:
        if self.state is WorkerState.READY and closed is not None and closed.needs_operator:
            return WorkerState.FAILED
        return self.state


def policy_of(table: ModelTable) -> QueuePolicy:
    """What a model's table says of its queue."""
    return QueuePolicy(
        lease_s=table.lease_s,
        retention_s=table.retention_s,
        stream_retention_s=min(table.stream_retention_s, table.retention_s),
        suspect_wait_s=table.suspect_wait_s,
        version_wait_s=table.version_wait_s,
        weights=table.tenant_weights,
        storage_retention_s=table.storage_retention_s,
        session_retention_s=table.session_retention_s,
        tenant_retention={tenant: _retention(table.retention_of(tenant)) for tenant in table.tenant_retention},
    )


def _retention(whole: TenantRetention) -> Retention:
    return Retention(whole.retention_s or 0.0, whole.storage_retention_s or 0.0, whole.session_retention_s or 0.0)
