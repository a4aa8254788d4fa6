"""When a submit returns: once the queue has the job, or once storage has it.

Who waits for storage reads the id of the journal's latest entry just after its submit, and then `commits`, whose
entries name the journal entry up to which storage has all. A restart of the server in between may have lost the submit,
and with it the number; a time-out says nothing of the commit. Both are an unknown outcome, DurabilityUnknown: the same
call under the same id waits on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from enum import StrEnum

from headpond.aio_queue import AsyncJobQueue
from headpond.connections import BLOCK_S
from headpond.errors import DurabilityUnknown, InvalidRequest, RedisUnavailable
from headpond.queue import JobQueue

TIMEOUT_S = 30.0
RETRY_S = 0.25
"""Between two tries to reach a server that is away."""
_RESTARTED = "the server restarted meanwhile, and may have lost what it had just accepted"


class Durability(StrEnum):
    """What a submit waits for. QUEUE: Redis has it. STORAGE: the segment with it is on S3."""

    QUEUE = "queue"
    STORAGE = "storage"


def parse_durability(durability: str, timeout_s: float) -> float | None:
    """How many seconds to wait for storage; None if that is not asked for. Raises InvalidRequest."""
    if durability not in tuple(Durability):
        names = ", ".join(f"'{each}'" for each in Durability)
        raise InvalidRequest(f"durability='{str(durability)[:100]}': one of {names}", field="durability")
    if not (0 < timeout_s < math.inf):
        raise InvalidRequest(
            f"durability_timeout={timeout_s}: seconds to wait for storage, more than 0", field="durability_timeout"
        )
    return timeout_s if durability == Durability.STORAGE else None


def no_storage(model: str) -> InvalidRequest:
    """What a submit for a queue without storage is told; nothing was enqueued."""
    return InvalidRequest(
        f"durability='storage': '{model}' has no storage, so nothing of it is ever committed. Add [storage] to the "
        "configuration of its workers, or submit with durability='queue'.",
        field="durability",
    )


class CommitWatch:
    """Waits for storage to have what is submitted after the watch was made."""

    def __init__(self, queue: JobQueue, *, timeout_s: float) -> None:
        """timeout_s: how long `wait` waits. Raises RedisUnavailable."""
        self._queue, self._timeout_s = queue, timeout_s
        self._inc = queue.journal_mark().inc

    def wait(self, job_ids: Sequence[str]) -> None:
        """Return once storage has all that this queue accepted before the call. Raises DurabilityUnknown."""
        until = time.monotonic() + self._timeout_s
        after: str | None = None
        trouble: RedisUnavailable | None = None
        while (left_s := until - time.monotonic()) > 0:
            try:
                mark = self._queue.journal_mark()
                if mark.inc != self._inc:
                    raise DurabilityUnknown(job_ids, reason=_RESTARTED)
                after = after or mark.before
                if after is None:
                    return
                commits = self._queue.wait_for_commits(after=after, block_s=min(left_s, BLOCK_S))
            except RedisUnavailable as error:
                trouble = error
                time.sleep(min(RETRY_S, left_s))
                continue
            trouble = None
            if commits:
                check_commit(commits[0], self._inc, job_ids)
                return
        raise late(job_ids, self._timeout_s, trouble) from trouble


class AsyncCommitWatch:
    """The asynchronous twin of `CommitWatch`."""

    def __init__(self, queue: AsyncJobQueue, inc: int, timeout_s: float) -> None:
        """inc: of the server before the submit."""
        self._queue, self._inc, self._timeout_s = queue, inc, timeout_s

    @classmethod
    async def begin(cls, queue: AsyncJobQueue, timeout_s: float) -> AsyncCommitWatch:
        """Raises RedisUnavailable."""
        return cls(queue, (await queue.journal_mark()).inc, timeout_s)

    async def wait(self, job_ids: Sequence[str]) -> None:
        """See CommitWatch."""
        until = time.monotonic() + self._timeout_s
        after: str | None = None
        trouble: RedisUnavailable | None = None
        while (left_s := until - time.monotonic()) > 0:
            try:
                mark = await self._queue.journal_mark()
                if mark.inc != self._inc:
                    raise DurabilityUnknown(job_ids, reason=_RESTARTED)
                after = after or mark.before
                if after is None:
                    return
                commits = await self._queue.wait_for_commits(after=after, block_s=min(left_s, BLOCK_S))
            except RedisUnavailable as error:
                trouble = error
                await asyncio.sleep(min(RETRY_S, left_s))
                continue
            trouble = None
            if commits:
                check_commit(commits[0], self._inc, job_ids)
                return
        raise late(job_ids, self._timeout_s, trouble) from trouble


def check_commit(journal_id: str, inc: int, job_ids: Sequence[str]) -> None:
    """Raises DurabilityUnknown if a commit is of a later life of the server than the submit."""
    if int(journal_id.partition("-")[0]) > inc:
        raise DurabilityUnknown(job_ids, reason=_RESTARTED)


def late(job_ids: Sequence[str], timeout_s: float, trouble: RedisUnavailable | None) -> DurabilityUnknown:
    """The time is over. trouble: why the server could not be asked at the end."""
    why = f"; {trouble}" if trouble is not None else ""
    return DurabilityUnknown(job_ids, reason=f"it was not told within {timeout_s:g} s{why}".rstrip("."))
