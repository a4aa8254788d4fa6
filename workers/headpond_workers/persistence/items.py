"""What a model's state comes to, one job, commit of a session or session at a time. Pure.

Items are what a snapshot holds and what a restore writes. `key` sorts them: `<kind>/<id>`, by code points.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from headpond.errors import MalformedDocument
from headpond.jobs import JobState
from headpond_workers.persistence.progress import tokens_bytes
from headpond_workers.persistence.records import take_state
from headpond_workers.storage.sealed import MAX_TEXT, Fields, check_counts, check_tokens, require

PART_SCHEMA = "headpond/part"
JOB, COMMIT, SESSION = "job", "commit", "session"


@dataclass(frozen=True, slots=True)
class JobItem:
    """A job. state: None if it has not ended, then ids and pieces (shape (n,)) are its tokens; else the state it ended
    in, and `result` its document `headpond/result`, which has them; empty if it ended without one.

    data: as in Redis; empty if storage never had it. row: its run row as it was read last, empty if it was not. It may
    be ahead of the item, where a change was not in the chain yet: what the item says itself is what counts. due_ms,
    deadline_ms: 0 for none.
    """

    kind: ClassVar[str] = JOB

    id: str
    data: bytes = field(repr=False)
    row: bytes = field(default=b"", repr=False)
    due_ms: int = 0
    deadline_ms: int = 0
    ids: tuple[int, ...] = field(default=(), repr=False)
    pieces: tuple[str, ...] = field(default=(), repr=False)
    state: JobState | None = None
    result: bytes = field(default=b"", repr=False)

    @property
    def key(self) -> str:
        return f"{JOB}/{self.id}"

    def size(self) -> int:
        """About how many bytes it takes in a part."""
        return (
            100 + len(self.id) + len(self.data) + len(self.row) + len(self.result)
            + tokens_bytes(self.ids, self.pieces)
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CommitItem:
    """A commit of a session."""

    kind: ClassVar[str] = COMMIT

    id: str
    document: bytes = field(repr=False)

    @property
    def key(self) -> str:
        return f"{COMMIT}/{self.id}"

    def size(self) -> int:
        return 50 + len(self.id) + len(self.document)


@dataclass(frozen=True, slots=True)
class SessionItem:
    """A session. id: its name."""

    kind: ClassVar[str] = SESSION

    id: str
    row: bytes = field(repr=False)

    @property
    def key(self) -> str:
        return f"{SESSION}/{self.id}"

    def size(self) -> int:
        return 50 + len(self.id) + len(self.row)


@dataclass(frozen=True, slots=True)
class DroppedItem:
    """What was there and is removed: of a list of changes only, no snapshot holds it. kind: of what it was."""

    kind: str
    id: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.id}"


Item = JobItem | CommitItem | SessionItem


def pack_item(item: Item) -> dict[str, object]:
    match item:
        case JobItem():
            job: dict[str, object] = {
                "kind": JOB, "id": item.id, "data": item.data, "row": item.row, "due_ms": item.due_ms,
                "deadline_ms": item.deadline_ms,
            }  # fmt: skip
            if item.state is None:
                return {**job, "ids": item.ids, "pieces": item.pieces}
            return {**job, "state": item.state.value, "result": item.result}
        case CommitItem():
            return {"kind": COMMIT, "id": item.id, "document": item.document}
        case SessionItem():
            return {"kind": SESSION, "id": item.id, "row": item.row}


def unpack_item(fields: Fields) -> Item:
    """Raises MalformedDocument."""
    kind, name = fields.take("kind", str), fields.take("id", str)
    require(0 < len(name) <= MAX_TEXT, fields.schema, f"an id of {len(name)} characters")
    match kind:
        case "job":
            return _unpack_job(fields, name)
        case "commit":
            return CommitItem(name, fields.take("document", bytes))
        case "session":
            return SessionItem(name, fields.take("row", bytes))
        case _:
            raise MalformedDocument(fields.schema, f"unknown kind of item {kind[:40]!r}")


def _unpack_job(fields: Fields, name: str) -> JobItem:
    data, row = fields.take("data", bytes), fields.take("row", bytes)
    due_ms, deadline_ms = fields.take("due_ms", int), fields.take("deadline_ms", int)
    check_counts(fields.schema, due_ms=due_ms, deadline_ms=deadline_ms)
    if fields.take_any("state") is not None:
        state = take_state(fields)
        require(state.ended, fields.schema, f"'{state}' is not the end of a job")
        return JobItem(name, data, row, due_ms, deadline_ms, state=state, result=fields.take("result", bytes))
    ids, pieces = tuple(fields.take_list("ids", int)), tuple(fields.take_list("pieces", str))
    check_tokens(fields.schema, ids, pieces)
    return JobItem(name, data, row, due_ms, deadline_ms, ids, pieces)
