"""Puts items of storage into a queue: in calls that are small, several on their way at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from headpond.errors import QueueError
from headpond.queue import JobQueue
from headpond.restoring import JOURNAL_START, MAX_ITEMS, PutIn, StoredJob, put_in, rejournal
from headpond_workers.persistence.items import COMMIT, CommitItem, DroppedItem, Item, JobItem, SessionItem
from headpond_workers.persistence.restoring.stored_jobs import beside_stream, stored_job, stored_session, stored_turn
from headpond_workers.persistence.restoring.tally import Tally

CALL_BYTES = 1 << 20
"""Of the jobs of one call, but for one job that is larger: others are served between two calls."""
CALLS_AT_ONCE = 8
TRIES = 100
"""Of one job whose stream grows while it is looked at."""
OnJobs = Callable[[int], None]
"""Told how many items are in by now."""


@dataclass(slots=True)
class Filling:
    """inc: the incarnation under which it began; when the server goes back, ServerWentBack is raised. beside: whether
    the server may have streams of these jobs."""

    queue: JobQueue
    inc: int
    beside: bool
    on_jobs: OnJobs = lambda _: None
    tally: Tally = field(default_factory=Tally)
    _done: int = 0

    def put(self, items: Iterable[Item | DroppedItem]) -> None:
        """Raises ServerWentBack, RedisUnavailable, MalformedDocument."""
        calls: list[list[StoredJob]] = []
        for call in _calls(self._jobs(items)):
            calls.append(call)
            if len(calls) == CALLS_AT_ONCE:
                self._send(calls)
                calls = []
        if calls:
            self._send(calls)

    def count(self, items: Iterable[Item]) -> None:
        """As `put`, but nothing is put in: what it would do to an empty server."""
        for job in self._jobs(items):
            self.tally.note(job, PutIn.NEW)

    def rejournal(self) -> None:
        """Bring what was journaled meanwhile up to this incarnation. Raises ServerWentBack, RedisUnavailable."""
        after: str | None = JOURNAL_START
        while after is not None:
            after = self.queue.run(rejournal(inc=self.inc, after=after))

    def _jobs(self, items: Iterable[Item | DroppedItem]) -> Iterator[StoredJob]:
        for item in items:
            if isinstance(item, DroppedItem) and item.kind == COMMIT:
                continue  # no head leads to it any more, and none is put back for it
            found = _stored(item)
            if found is None:
                self.tally.note_unusable(item.id)
            else:
                yield found

    def _beside(self, job: StoredJob) -> StoredJob:
        return job if job.of_session else beside_stream(job, self.queue.events(job.id))

    def _send(self, calls: list[list[StoredJob]]) -> None:
        for _ in range(TRIES):
            if self.beside:
                calls = [[self._beside(job) for job in call] for call in calls]
            answers = self.queue.run_all([put_in(call, inc=self.inc) for call in calls])
            again: list[StoredJob] = []
            for call, told in zip(calls, answers, strict=True):
                for job, answer in zip(call, told, strict=True):
                    if answer is PutIn.AGAIN:
                        again.append(job)
                    else:
                        self.tally.note(job, answer)
                        self._done += 1
            self.on_jobs(self._done)
            if not again:
                return
            calls = [again[at : at + MAX_ITEMS] for at in range(0, len(again), MAX_ITEMS)]
        raise QueueError(f"the stream of '{again[0].id}' grew {TRIES} times while it was looked at")


def _stored(item: Item | DroppedItem) -> StoredJob | None:
    match item:
        case JobItem() | DroppedItem(kind="job"):
            return stored_job(item)
        case CommitItem():
            return stored_turn(item)
        case SessionItem():
            return stored_session(item)
        case DroppedItem():
            return StoredJob("session", item.id)


def _calls(jobs: Iterable[StoredJob]) -> Iterator[list[StoredJob]]:
    call: list[StoredJob] = []
    size = 0
    for job in jobs:
        if call and (len(call) == MAX_ITEMS or size + job.size > CALL_BYTES):
            yield call
            call, size = [], 0
        call.append(job)
        size += job.size
    if call:
        yield call
