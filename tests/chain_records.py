"""Records and commits of a made-up journal, for tests of the chain of segments."""

from __future__ import annotations

from headpond.jobs import JobState
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.records import EndRecord, Record, SubmitRecord
from headpond_workers.persistence.segments import HeadAt, StateStore

INC = 5


def submit(seq: int, job: str = "", *, inc: int = INC) -> SubmitRecord:
    name = job or f"m/job-{seq}"
    return SubmitRecord(JournalId(inc, seq), name, b"request of " + name.encode())


def end(seq: int, job: str, *, state: JobState = JobState.FINISHED, inc: int = INC) -> EndRecord:
    return EndRecord(JournalId(inc, seq), job, state, b"result of " + job.encode())


def commit(store: StateStore, at: HeadAt, *records: Record, writer: str = "a", inc: int = INC) -> HeadAt:
    return store.commit(at, batch(*records, inc=inc), writer=writer)


def batch(*records: Record, inc: int = INC) -> Batch:
    return Batch(first=records[0].journal_id, last=records[-1].journal_id, inc=inc, records=records)


def journal(store: StateStore) -> list[int]:
    """The seq of each record in the chain of the stored head, oldest first; the chain is verified on the way."""
    at = store.read_head()
    assert at is not None
    return [record.journal_id.seq for record in store.records(at.head)][::-1]
