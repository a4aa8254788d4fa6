"""Records of a segment: what happened to one job, commit of a session, or session. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from headpond.errors import MalformedDocument
from headpond.jobs import JobState
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.storage.sealed import MAX_TEXT, Fields, check_counts, require

SEGMENT_SCHEMA = "headpond/segment"
MAX_RECORD_BYTES = 48 << 20
"""Of one record's bytes: far above the largest request and answer."""


@dataclass(frozen=True, slots=True)
class SubmitRecord:
    """A job was accepted: whatever was known of its id before is over.

    data: its entry in Redis, packed. row: its run row when it was read, which may be later than the entry; empty if it
    had none, or in what an older headpond wrote. due_ms: 0 if it was not delayed. deadline_ms: 0 for none.
    """

    journal_id: JournalId
    id: str
    data: bytes = field(repr=False)
    row: bytes = field(default=b"", repr=False)
    due_ms: int = 0
    deadline_ms: int = 0

    def __post_init__(self) -> None:
        _check(self.id, self.data, self.row)
        check_counts(SEGMENT_SCHEMA, due_ms=self.due_ms, deadline_ms=self.deadline_ms)


@dataclass(frozen=True, slots=True)
class EndRecord:
    """A job ended. result: document `headpond/result`; empty if it ended without one."""

    journal_id: JournalId
    id: str
    state: JobState
    result: bytes = field(repr=False)
    row: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        _check(self.id, self.result, self.row)
        require(self.state.ended, SEGMENT_SCHEMA, f"'{self.state}' is not the end of a job")


@dataclass(frozen=True, slots=True)
class BackRecord:
    """A lease ended and its job did not: it waits again, with its tokens."""

    journal_id: JournalId
    id: str
    row: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check(self.id, self.row)


@dataclass(frozen=True, slots=True)
class DropRecord:
    """All of a job was removed, by somebody and not by the end of its retention."""

    journal_id: JournalId
    id: str

    def __post_init__(self) -> None:
        _check(self.id)


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """A turn of a session. id: of the commit. document: empty if it was removed."""

    journal_id: JournalId
    id: str
    document: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check(self.id, self.document)


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session changed. id: its name. row: empty if it was deleted."""

    journal_id: JournalId
    id: str
    row: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check(self.id, self.row)


Record = SubmitRecord | EndRecord | BackRecord | DropRecord | CommitRecord | SessionRecord


def _check(name: str, *payloads: bytes) -> None:
    require(0 < len(name) <= MAX_TEXT, SEGMENT_SCHEMA, f"an id of {len(name)} characters")
    for payload in payloads:
        require(len(payload) <= MAX_RECORD_BYTES, SEGMENT_SCHEMA, f"'{name}' has {len(payload)} bytes")


def record_bytes(record: Record) -> int:
    """About how many it takes in a segment."""
    size = 100 + len(record.id)
    match record:
        case SubmitRecord():
            return size + len(record.data) + len(record.row)
        case EndRecord():
            return size + len(record.result) + len(record.row)
        case BackRecord() | SessionRecord():
            return size + len(record.row)
        case CommitRecord():
            return size + len(record.document)
        case DropRecord():
            return size


def pack_record(record: Record) -> dict[str, object]:
    common = {"journal_id": str(record.journal_id), "id": record.id}
    match record:
        case SubmitRecord():
            return {
                "kind": "submit", **common, "data": record.data, "row": record.row, "due_ms": record.due_ms,
                "deadline_ms": record.deadline_ms,
            }  # fmt: skip
        case EndRecord():
            return {"kind": "end", **common, "state": record.state.value, "result": record.result, "row": record.row}
        case BackRecord():
            return {"kind": "back", **common, "row": record.row}
        case DropRecord():
            return {"kind": "drop", **common}
        case CommitRecord():
            return {"kind": "commit", **common, "document": record.document}
        case SessionRecord():
            return {"kind": "session", **common, "row": record.row}


def unpack_record(fields: Fields, *, v: int) -> Record:
    """v: of the segment. Raises MalformedDocument."""
    journal_id = JournalId.parse(fields.take("journal_id", str))
    name = fields.take("id", str)
    kind = fields.take("kind", str)
    match kind:
        case "submit" if v == 1:
            return SubmitRecord(journal_id, name, fields.take("data", bytes))
        case "submit":
            return SubmitRecord(
                journal_id, name, fields.take("data", bytes), fields.take("row", bytes), fields.take("due_ms", int),
                fields.take("deadline_ms", int),
            )  # fmt: skip
        case "end":
            row = b"" if v == 1 else fields.take("row", bytes)
            return EndRecord(journal_id, name, take_state(fields), fields.take("result", bytes), row)
        case "back":
            return BackRecord(journal_id, name, fields.take("row", bytes))
        case "drop":
            return DropRecord(journal_id, name)
        case "commit":
            return CommitRecord(journal_id, name, fields.take("document", bytes))
        case "session":
            return SessionRecord(journal_id, name, fields.take("row", bytes))
        case _:
            raise MalformedDocument(SEGMENT_SCHEMA, f"unknown kind of record {kind[:40]!r}")


def take_state(fields: Fields) -> JobState:
    """Raises MalformedDocument."""
    try:
        return JobState(fields.take("state", str))
    except ValueError as error:
        raise MalformedDocument(fields.schema, f"unknown state of a job: {str(error)[:80]}") from error
