"""What can be read of one queue, beside the calls that change it: jobs, streams, sessions, the journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from headpond import operations as ops
from headpond import session_operations, switching, upkeep
from headpond.commits import Chain, Commit, SessionRow, unpack_commit, unpack_session
from headpond.connections import BLOCK_S
from headpond.errors import JobGone, MalformedDocument, QueueMending
from headpond.journal_mark import JournalMark
from headpond.keys import queue_keys
from headpond.replies import StreamEntry, parse_entries, parse_read, parse_scores, retry_after_s
from headpond.spooled import StorageTrouble, parse_trouble
from headpond.wire import Attempt, RunRow, unpack_attempts, unpack_run
from headpond.workers import WorkerRow, living, unpack_workers

if TYPE_CHECKING:
    from headpond.queue import Server

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One durable change. kind: 'submit', 'end', 'back', 'drop', 'commit' or 'session'. job_id: of the job, else of the
    commit, or the session's name. at_ms: when it was made. row: of a session, as the change left it; empty if it was
    deleted."""

    journal_id: str
    kind: str
    job_id: str
    at_ms: int = 0
    row: bytes = b""


@dataclass(slots=True)
class QueueReads:
    """Of one queue on one server. Thread-safe. Each read raises RedisUnavailable, QueueError."""

    server: Server
    name: str

    def run(self, operation: ops.Operation[T]) -> T:
        return self.server.run(self.name, operation)

    def run_all(self, operations: Sequence[ops.Operation[T]]) -> list[T]:
        """Several operations in one round trip; see `Server.run_all`."""
        return self.server.run_all(self.name, operations)

    def ids(self) -> list[str]:
        """Ids of all jobs that the server holds, ended ones included."""
        return [raw.decode() for raw in self.server.read("HKEYS", queue_keys(self.name).named("run"))]

    def read_switch(self) -> switching.Switch | None:
        """The queue's copy of an alias; None if nobody has said one."""
        return switching.parse_switch(self.server.read("HGETALL", queue_keys(self.name).named("switch")))

    def read_outcomes(self) -> list[switching.Outcome]:
        """How jobs ended while the last trial was on, at most 2,000 of each version."""
        return switching.parse_outcomes(self.server.read("HGETALL", queue_keys(self.name).named("outcomes")))

    def run_row(self, job_id: str) -> RunRow | None:
        raw = self.server.read("HGET", queue_keys(self.name).named("run"), job_id)
        return None if raw is None else unpack_run(raw)

    def session_row(self, name: str) -> bytes | None:
        """A session's row as it is packed; None without one."""
        return cast("bytes | None", self.server.read("HGET", queue_keys(self.name).named("sessions"), name))

    def session(self, name: str) -> SessionRow | None:
        """Raises MalformedDocument."""
        row = self.session_row(name)
        return None if row is None else unpack_session(name, row)

    def session_names(self, *, limit: int) -> list[str]:
        """Those that changed last come first."""
        found = self.server.read("ZREVRANGE", queue_keys(self.name).named("changed"), 0, limit - 1)
        return [name.decode() for name in found]

    def session_jobs(self, name: str) -> list[str]:
        """Ids of the jobs of a session that have not ended, in their order."""
        return [raw.decode() for raw in self.server.read("LRANGE", queue_keys(self.name).session(name), 0, -1)]

    def turn(self, commit_id: str) -> bytes | None:
        """The document of a commit; None if it is not there."""
        return cast("bytes | None", self.server.read("HGET", queue_keys(self.name).named("turns"), commit_id))

    def commit(self, commit_id: str) -> Commit | None:
        """Raises MalformedDocument."""
        document = self.turn(commit_id)
        return None if document is None else unpack_commit(commit_id, document)

    def chain(self, session: str, head: str) -> list[Commit]:
        """The commits up to a head, the first turn first. session: named in errors.

        Raises CommitGone, MalformedDocument.
        """
        chain = Chain(session, head)
        while chain.onward:
            chain.add(self.run(session_operations.chain(chain.onward)))
        return chain.commits()

    def data(self, job_id: str) -> bytes | None:
        return cast("bytes | None", self.server.read("HGET", queue_keys(self.name).named("data"), job_id))

    def result(self, job_id: str) -> bytes | None:
        return cast("bytes | None", self.server.read("HGET", queue_keys(self.name).named("result"), job_id))

    def events(self, job_id: str, *, after: str = "-") -> list[StreamEntry]:
        """All entries of a job's stream, or those after an entry id."""
        start = after if after == "-" else f"({after}"
        return parse_entries(self.server.read("XRANGE", queue_keys(self.name).events(job_id), start, "+"))

    def has_event(self, job_id: str, entry_id: str) -> bool:
        """Whether an entry that was read stands in a job's stream still."""
        return bool(self.server.read("XRANGE", queue_keys(self.name).events(job_id), entry_id, entry_id))

    def last_event(self, job_id: str) -> str:
        found = self.server.read("XREVRANGE", queue_keys(self.name).events(job_id), "+", "-", "COUNT", 1)
        return parse_entries(found)[0][0] if found else "0-0"

    def wait_for_events(self, job_id: str, *, after: str, block_s: float) -> list[StreamEntry]:
        """Entries after an id, waiting up to block_s for the first."""
        block_ms = max(1, round(min(block_s, BLOCK_S) * 1000))
        key = queue_keys(self.name).events(job_id)
        found = self.server.read_blocking("XREAD", "BLOCK", block_ms, "COUNT", 512, "STREAMS", key, after)
        return parse_read(found)

    def attempts(self, job_id: str) -> tuple[Attempt, ...]:
        """The leases of a job that ended without its end, oldest first; the latest 32 of them."""
        raw = self.server.read("HGET", queue_keys(self.name).named("attempts"), job_id)
        return () if raw is None else unpack_attempts(raw)

    def dead(self, *, limit: int = 1000) -> list[tuple[str, int]]:
        """Ids of quarantined jobs with the time of their end in ms, the latest first."""
        found = self.server.read("ZREVRANGE", queue_keys(self.name).named("dead"), 0, limit - 1, "WITHSCORES")
        return parse_scores(found)

    def depths(self) -> upkeep.Depths:
        return self.run(upkeep.depths())

    def retry_after_s(self) -> float:
        """When a place in a full queue may be free: the usual time between two ends of late."""
        raw = self.server.read("HMGET", queue_keys(self.name).named("meta"), "end_gap_ms")
        return retry_after_s(raw[0])

    def workers(self) -> list[WorkerRow]:
        """Rows of the processes that serve, or served, this queue."""
        return unpack_workers(self.name, self.server.read("HGETALL", queue_keys(self.name).named("workers")))

    def living(self) -> list[WorkerRow]:
        """Rows of the workers that were heard of lately and have not failed."""
        lease_ms = int(self.meta().get("lease_ms", "0"))
        return living(self.workers(), now_ms=self.server.now_ms(), lease_ms=lease_ms)

    def packed(self, name: str, ids: Sequence[str]) -> list[bytes | None]:
        """What a hash of this queue (`data`, `run`, `result`) holds of some ids, as it is packed."""
        return cast("list[bytes | None]", self.server.read("HMGET", queue_keys(self.name).named(name), *ids))

    def times(self, name: str, ids: Sequence[str]) -> list[int]:
        """The times of some ids in a zset of this queue (`delayed`, `deadlines`), in ms; 0 where one is not in it."""
        found = self.server.read("ZMSCORE", queue_keys(self.name).named(name), *ids)
        return [0 if score is None else int(float(score)) for score in found]

    def leased(self) -> list[str]:
        """Ids of the jobs that run."""
        return [raw.decode() for raw in self.server.read("ZRANGE", queue_keys(self.name).named("leases"), 0, -1)]

    def absence(self, job_id: str) -> JobGone | QueueMending:
        """Why the server does not hold a job: it is gone, or storage may have it and it is not back yet."""
        state = self.server.read("HGET", queue_keys(self.name).named("meta"), "state")
        return self.server.address.absence(job_id, self.name, state)

    def meta(self) -> dict[str, str]:
        raw = cast("dict[bytes, bytes]", self.server.read("HGETALL", queue_keys(self.name).named("meta")))
        return {key.decode(): value.decode() for key, value in raw.items()}

    def tenant_retention(self) -> dict[str, str]:
        """Tenants that have times of their own: in Redis, in storage, of sessions; ms, as one text."""
        raw = cast("dict[bytes, bytes]", self.server.read("HGETALL", queue_keys(self.name).named("retention")))
        return {tenant.decode(): times.decode() for tenant, times in raw.items()}

    def journal(self, *, limit: int) -> list[JournalEntry]:
        """The oldest entries of the journal."""
        found = self.server.read("XRANGE", queue_keys(self.name).named("journal"), "-", "+", "COUNT", limit)
        entries = []
        for journal_id, fields in parse_entries(found):
            if not {b"k", b"i", b"t"} <= fields.keys():
                raise MalformedDocument("journal entry", f"{journal_id} lacks its kind, id or time")
            kind, name, at_ms = (fields[field].decode() for field in (b"k", b"i", b"t"))
            if not at_ms.isdecimal():
                raise MalformedDocument("journal entry", f"{journal_id} has no time")
            entries.append(JournalEntry(journal_id, kind, name, int(at_ms), fields.get(b"r", b"")))
        return entries

    def journal_length(self) -> int:
        return int(self.server.read("XLEN", queue_keys(self.name).named("journal")))

    def storage_trouble(self) -> StorageTrouble | None:
        """What of the journal storage lacks, and since when; None while it can be reached and nothing is spooled."""
        key = queue_keys(self.name).named("meta")
        return parse_trouble(*self.server.read("HMGET", key, "storage_away", "spool"))

    def journal_mark(self) -> JournalMark:
        """Where the journal ends. What was accepted before the call is at or before that."""
        keys = queue_keys(self.name)
        # In this order: what has left the journal by then is in storage, or in the spool that meta names afterwards.
        last = parse_entries(self.server.read("XREVRANGE", keys.named("journal"), "+", "-", "COUNT", 1))
        inc, spool = self.server.read("HMGET", keys.named("meta"), "inc", "spool")
        return JournalMark.of(inc, last, spool)

    def wait_for_commits(self, *, after: str, block_s: float) -> list[str]:
        """Journal ids after one up to which storage has the journal, waiting up to block_s for the first."""
        block_ms = max(1, round(min(block_s, BLOCK_S) * 1000))
        key = queue_keys(self.name).named("commits")
        found = self.server.read_blocking("XREAD", "BLOCK", block_ms, "STREAMS", key, after)
        return [journal_id for journal_id, _ in parse_read(found)]
