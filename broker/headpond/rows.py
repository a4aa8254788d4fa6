"""What scripts write of a job: where it stands, and how its leases ended. docs/format.md describes both. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from headpond.codec import MAX_ROW_BYTES, split_first, unpack, unpack_row
from headpond.errors import MalformedDocument
from headpond.jobs import JobState


@dataclass(frozen=True, slots=True)
class RunRow:
    """Where one job stands: the entry of `run`, written by scripts alone. Field order is that of the row, which is two
    arrays, one after the other; RUN_HEAD elements are in the first."""

    state: JobState
    fence: str
    gen: int
    offset: int
    entries: int
    claimed_offset: int
    band: str
    attempt: int
    strikes: int
    worker: str
    tag: float
    lane: str
    submitted_ms: int
    claimed_ms: int
    ended_ms: int
    durable: bool
    reason: str
    parked: str
    fingerprint: str
    host: str
    faults: int
    struck: str
    pinned: str
    served_by: str
    session: str = ""
    place: int = 0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One lease of a job that ended without an end of the job.

    boot: of the worker's process. host: where that was. version, fingerprint: of its model. how: 'expired', 'killed' or
    'failed' (faults), 'parked', 'preempted', 'unnamed' or 'left'. from_offset, to_offset: tokens of the job when it
    began and ended.
    """

    attempt: int
    boot: str
    host: str
    version: str
    fingerprint: str
    claimed_ms: int
    ended_ms: int
    how: str
    from_offset: int
    to_offset: int
    reason: str


RUN_HEAD = 8
"""Elements of a run row's first array, its version included: what each step of an engine reads and writes."""
_RUN_FIELDS = len(fields(RunRow))
_RUN_TAIL = 1 + _RUN_FIELDS - RUN_HEAD
_LATER = ("", 0)
"""Of the last fields, which a row that an older release wrote does not have."""
_ATTEMPT_FIELDS = len(fields(Attempt))
_STORED: dict[object, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),  # Lua's numbers are stored as integers where they are whole
    "bool": (int,),
    "JobState": (str,),
}
"""How msgpack holds a field, by its annotation."""


def _check_types(kind: str, row: type[RunRow] | type[Attempt], values: Sequence[Any]) -> None:
    for field, value in zip(fields(row), values, strict=True):
        if type(value) not in _STORED[field.type]:
            raise MalformedDocument(kind, f"{field.name} is of type {type(value).__name__}")


def unpack_run(data: bytes) -> RunRow:
    """Raises MalformedDocument."""
    first, rest = split_first(data, kind="run row")
    head = unpack_row(first, kind="run row", length=RUN_HEAD)[1:RUN_HEAD]
    tail = unpack(rest, kind="run row", max_bytes=MAX_ROW_BYTES)
    least = _RUN_TAIL - len(_LATER)
    if not isinstance(tail, list) or len(tail) < least:
        raise MalformedDocument("run row", f"its second part is no array of {least} elements")
    values = [*head, *tail[:_RUN_TAIL], *_LATER[max(0, len(tail) - least) :]]
    _check_types("run row", RunRow, values)
    row = dict(zip(RunRow.__slots__, values, strict=True))
    try:
        return RunRow(**row | {"state": JobState(row["state"]), "durable": bool(row["durable"])})
    except ValueError as error:
        raise MalformedDocument("run row", str(error)) from error


def unpack_attempts(data: bytes) -> tuple[Attempt, ...]:
    """The log of a job's attempts, oldest first. Raises MalformedDocument."""
    records = []
    for record in unpack_row(data, kind="attempts", length=1)[1:]:
        if not isinstance(record, list) or len(record) < _ATTEMPT_FIELDS:
            raise MalformedDocument("attempts", f"a record is no array of {_ATTEMPT_FIELDS} elements")
        values = record[:_ATTEMPT_FIELDS]
        _check_types("attempts", Attempt, values)
        records.append(Attempt(*values))
    return tuple(records)
