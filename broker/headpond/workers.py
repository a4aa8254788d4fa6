"""What a worker process says of itself, in the hash `workers` of its queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from headpond.codec import MAX_ROW_BYTES
from headpond.errors import MalformedDocument, UnsupportedSchema
from headpond.wire import ROW_VERSION, pack, unpack

SILENT_AFTER_S = 15.0
"""A worker that says nothing for so long, or for two leases, no longer lives."""


class WorkerState(StrEnum):
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """boot: names one life of one process. instance: its name under supervisor, `chat-0`. seen_ms: server time
    of its last word. tokens, jobs: made and ended since it began. tokens_per_s: of late, all slots together.
    device: what its engine runs on, `cpu` or `cuda:0`; empty if it does not say. memory_bytes: of that device, taken
    by this worker; 0 if its engine does not know. deployment: whose worker it is; empty if nobody's."""

    boot: str
    model: str
    version: str
    host: str
    pid: int
    instance: str
    slots: int
    busy: int
    state: WorkerState
    last_error: str
    started_ms: int
    seen_ms: int = 0
    tokens: int = 0
    jobs: int = 0
    tokens_per_s: float = 0.0
    device: str = ""
    memory_bytes: int = 0
    deployment: str = ""


_LEAST_ELEMENTS = 13
_ADDED: tuple[str | int, ...] = ("", 0, "")
"""What stands for elements that rows of older workers lack."""


def pack_worker(row: WorkerRow) -> bytes:
    """A row as scripts read it: host, instance and deployment are elements 3, 5 and 16, counted from 1."""
    return pack(
        [1, row.version, row.host, row.pid, row.instance, row.slots, row.busy, row.state.value, row.last_error,
         row.started_ms, row.tokens, row.jobs, round(row.tokens_per_s, 1), row.device, row.memory_bytes, row.deployment]
    )  # fmt: skip


def unpack_workers(model: str, fields: Mapping[bytes, bytes]) -> list[WorkerRow]:
    """The rows of a `workers` hash, by instance."""
    rows = []
    for key, value in fields.items():
        boot = key.decode()
        if ":" in boot:
            continue
        raw = unpack(value, kind="worker row", max_bytes=MAX_ROW_BYTES)
        if not isinstance(raw, list) or not raw or not isinstance(raw[0], int):
            raise MalformedDocument("worker row", f"of {boot}")
        if raw[0] > ROW_VERSION:
            raise UnsupportedSchema("worker row", found=raw[0], supported=ROW_VERSION)
        if len(raw) < _LEAST_ELEMENTS:
            raise MalformedDocument("worker row", f"{len(raw)} elements instead of {_LEAST_ELEMENTS}, of {boot}")
        whole = [*raw, *_ADDED[max(0, len(raw) - _LEAST_ELEMENTS) :]]
        _, version, host, pid, instance, slots, busy, state, last_error, started_ms, tokens, jobs, rate = whole[:13]
        device, memory_bytes, deployment = whole[13:16]
        try:
            seen_ms = int(fields.get(f"{boot}:seen".encode(), b"0"))
            known_state = WorkerState(state)
        except ValueError as error:
            raise MalformedDocument("worker row", f"{error}, of {boot}") from error
        rows.append(
            WorkerRow(boot, model, version, host, pid, instance, slots, busy, known_state, last_error, started_ms,
                      seen_ms, tokens, jobs, rate, device, memory_bytes, deployment)
        )  # fmt: skip
    return sorted(rows, key=lambda row: (row.host, row.instance))


def living(rows: Iterable[WorkerRow], *, now_ms: int, lease_ms: int) -> list[WorkerRow]:
    """Those that were heard of lately and have not failed. now_ms: the server's time. lease_ms: of their queue."""
    silent_ms = max(SILENT_AFTER_S * 1000, 2 * lease_ms)
    return [row for row in rows if row.state is not WorkerState.FAILED and now_ms - row.seen_ms <= silent_ms]
