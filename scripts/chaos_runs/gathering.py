"""Evidence, read from the server."""

from __future__ import annotations

from evidence import Answer, Event, JobEvidence, QueueEvidence

from headpond.keys import queue_keys
from headpond.queue import JobQueue
from headpond.replies import StreamEntry
from headpond.wire import unpack_event, unpack_result, unpack_tokens


def gather_job(queue: JobQueue, job_id: str) -> JobEvidence:
    """Raises RedisUnavailable, MalformedDocument."""
    row = queue.run_row(job_id)
    if row is None:
        return JobEvidence(job_id, None, 0, 0, "", None, ())
    document = queue.result(job_id)
    answer = None
    if document is not None:
        result = unpack_result(document, durable=row.durable)
        answer = Answer(result.token_ids, result.text)
    events = tuple(event for entry in queue.events(job_id) if (event := _event(entry)) is not None)
    return JobEvidence(job_id, row.state, row.attempt, row.strikes, row.reason, answer, events)


def gather_queue(queue: JobQueue) -> QueueEvidence:
    """Raises RedisUnavailable."""
    keys = queue_keys(queue.name)
    counts = {name.removeprefix("count:"): int(n) for name, n in queue.meta().items() if name.startswith("count:")}
    sets = [*_keys(queue, "ready:*"), keys.named("delayed")]
    waiting = [job_id for key in sets for job_id in _ids(queue.server.read("ZRANGE", key, 0, -1))]
    leased = _ids(queue.server.read("ZRANGE", keys.named("leases"), 0, -1))
    held = [job_id for key in _keys(queue, "held:*") for job_id in _ids(queue.server.read("HKEYS", key))]
    return QueueEvidence(counts, tuple(waiting), tuple(leased), tuple(held))


def _event(entry: StreamEntry) -> Event | None:
    _, fields = entry
    if b"t" in fields:
        return unpack_tokens(fields[b"t"])
    return unpack_event(fields[b"e"]) if b"e" in fields else None


def _keys(queue: JobQueue, pattern: str) -> list[str]:
    return _ids(queue.server.read("KEYS", queue_keys(queue.name).named(pattern)))


def _ids(raw: list[bytes]) -> list[str]:
    return [item.decode() for item in raw]
