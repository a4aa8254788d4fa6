"""A job as it is stored, in Redis or in storage: what was asked, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from headpond.errors import InvalidRequest, JobGone, MalformedDocument, NotStored, SessionError
from headpond.jobs import JobId, JobState, Result
from headpond.operators import Operator
from headpond.requests import JobRequest, parse_request
from headpond.submission import GENERATE
from headpond.whole_request import Conversations, whole_request
from headpond.wire import Header, unpack_entry, unpack_result
from headpond_workers.persistence.reading import find_job, open_store
from headpond_workers.persistence.stored_sessions import StoredSessions


@dataclass(frozen=True, slots=True)
class StoredJob:
    """data: the packed request. document: the packed result; None or empty if no worker wrote one. durable: it was read
    from storage, or is known to be there. shown: of a session's job, its request with the conversation that it went on
    from; None if that is not known, and why_not says why."""

    id: str
    state: JobState
    data: bytes
    document: bytes | None
    durable: bool
    shown: JobRequest | None = None
    why_not: str = ""

    def asked(self) -> tuple[Header, JobRequest]:
        """Raises MalformedDocument for what cannot be read as a request of a model."""
        header, call = unpack_entry(self.data)
        if call.actor != GENERATE:
            raise MalformedDocument("call", f"'{call.actor[:100]}' is an actor of its own, and no job of a model")
        try:
            return header, parse_request(call.kwargs.get("request"))
        except InvalidRequest as error:
            raise MalformedDocument("request", str(error)) from error

    def result(self) -> Result | None:
        """None if no worker wrote one. Raises MalformedDocument."""
        return unpack_result(self.document, durable=self.durable) if self.document else None


def read_from_redis(job_id: JobId, *, url: str | None) -> StoredJob:
    """url: as for `headpond.Client`. Raises JobGone, UnknownModel, RedisUnavailable, MalformedDocument."""
    with Operator(url) as operator:
        queue = operator.queue(job_id.model)
        row, data = queue.run_row(str(job_id)), queue.data(str(job_id))
        if row is None or data is None:
            raise JobGone(str(job_id))
        job = StoredJob(str(job_id), row.state, data, queue.result(str(job_id)), row.durable)
        return _with_session(job, lambda: queue)


def _with_session(job: StoredJob, sessions: Callable[[], Conversations]) -> StoredJob:
    """sessions: asked for if the job is a turn of one."""
    try:
        header, request = job.asked()
        result = job.result()
        if header.turn is None:
            return job
        told = None if result is None else result.turn
        return replace(job, shown=whole_request(sessions(), job.id, job.state, header.turn, request, told))
    except (MalformedDocument, SessionError) as error:
        # Damage of the job itself is the verification's to find.
        return replace(job, why_not=str(error))


def read_from_storage(job_id: JobId, *, config: Path | None) -> StoredJob:
    """From the newest submit and end of this id. config: the configuration; None: the nearest.

    Raises NotStored, ConfigError, StorageUnavailable, BlobCorrupt.
    """
    store = open_store(job_id.model, config=config)
    found = find_job(store, str(job_id))
    if found is None:
        raise NotStored(str(job_id))
    data, state, document = found
    job = StoredJob(str(job_id), state, data, document, durable=True)
    return _with_session(job, lambda: StoredSessions(store))
