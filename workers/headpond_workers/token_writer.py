"""Carries tokens from the engine to Redis: one append for all jobs of a worker, however many steps it covers.

`push` only adds to memory, so decoding never waits for the server: while it is slow or away, the next append
grows. What is kept is bounded by the answers of the jobs that run.
"""

from __future__ import annotations

import logging
import threading
import time

from headpond.errors import HeadpondError, RedisUnavailable
from headpond.held import HeldLease
from headpond.jobs import JobState
from headpond.operations import Append, LeaseStatus
from headpond.queue import JobQueue
from headpond.wire import TokenRun

logger = logging.getLogger(__name__)

RETRY_S = 0.2
MAX_ENTRY_TOKENS = 2048


class JobStream:
    """The stream of one lease, in this process. Offsets are tokens of the job."""

    def __init__(self, writer: TokenWriter, held: HeldLease, prior: TokenRun) -> None:
        """prior: all tokens of earlier attempts, from 0; kept, for a server that went back asks for them again."""
        self.held = held
        self._writer = writer
        self._ids = list(prior.ids)
        self._pieces = list(prior.pieces)
        self._sent = len(prior.ids)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self._ids)

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def __len__(self) -> int:
        return len(self._ids)

    def push(self, ids: tuple[int, ...], pieces: tuple[str, ...]) -> None:
        """Take the next tokens, shape (n,) each. Never blocks."""
        # Pieces first: the writer's thread takes as many of both as there are ids.
        self._pieces += pieces
        self._ids += ids
        self._writer.wake(self)

    def flush(self) -> bool:
        """Wait until the server has all tokens; False if the lease was lost first."""
        return self._writer.wait_sent(self)

    def finish(self, state: JobState, result: bytes, reason: str = "") -> bool:
        """End the job after its last token. Waits for a server that is away; False if the lease was lost."""
        job_id, fence = self.held.key
        while self.flush():
            try:
                outcome = self._writer.queue.finish(
                    job_id, fence, offset=len(self), state=state, result=result, reason=reason
                )
            except RedisUnavailable as error:
                logger.warning("finish_delayed job=%s error=%s", job_id, error)
                time.sleep(RETRY_S)
                continue
            if outcome.status is LeaseStatus.GAP:
                self._writer.resend(self, outcome.offset)
                continue
            self.held.settled = outcome.status is LeaseStatus.DONE
            if outcome.status.over:
                self.held.lost = outcome.status
            return self.held.settled
        return False

    def _next(self) -> Append | None:
        end = min(len(self._ids), self._sent + MAX_ENTRY_TOKENS)
        if end <= self._sent or self.held.lost is not None:
            return None
        run = TokenRun(self._sent, tuple(self._ids[self._sent : end]), tuple(self._pieces[self._sent : end]))
        return Append(self.held.lease.id, self.held.lease.fence, run)


class TokenWriter(threading.Thread):
    """One thread that appends for all streams of a worker."""

    def __init__(self, queue: JobQueue) -> None:
        super().__init__(name="token-writer", daemon=True)
        self.queue = queue
        self._changed = threading.Condition()
        self._dirty: dict[JobStream, None] = {}
        self._stopping = False

    def open(self, held: HeldLease, prior: TokenRun) -> JobStream:
        return JobStream(self, held, prior)

    def wake(self, stream: JobStream) -> None:
        with self._changed:
            self._dirty[stream] = None
            self._changed.notify_all()

    def resend(self, stream: JobStream, offset: int) -> None:
        """The server has the stream only up to `offset`."""
        with self._changed:
            stream._sent = min(stream._sent, offset)
            self._dirty[stream] = None
            self._changed.notify_all()

    def wait_sent(self, stream: JobStream) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: stream.held.lost is not None or (stream not in self._dirty and stream._sent == len(stream))
            )
            return stream.held.lost is None

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._stopping)
                if self._stopping and not self._dirty:
                    return
                batch = [(stream, append) for stream in self._dirty if (append := stream._next()) is not None]
                if not batch:
                    self._dirty.clear()
                    self._changed.notify_all()
                    continue
            self._send(batch)

    def _send(self, batch: list[tuple[JobStream, Append]]) -> None:
        try:
            outcomes = self.queue.append([append for _, append in batch])
        except HeadpondError as error:
            logger.warning("append_delayed jobs=%d error=%s", len(batch), error)
            time.sleep(RETRY_S)
            return
        with self._changed:
            for (stream, append), outcome in zip(batch, outcomes, strict=True):
                if outcome.status is LeaseStatus.APPENDED:
                    stream._sent = max(append.tokens.end, min(outcome.offset, len(stream)))
                elif outcome.status is LeaseStatus.GAP:
                    logger.warning("gap job=%s offset=%d", append.id, outcome.offset)
                    stream._sent = outcome.offset
                else:
                    stream.held.lost = outcome.status
                    logger.info("writer_ended job=%s status=%s", append.id, outcome.status.value)
                if stream._sent == len(stream) or stream.held.lost is not None:
                    self._dirty.pop(stream, None)
            self._changed.notify_all()
