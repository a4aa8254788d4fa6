"""Carries tokens from the engine to Redis: one append for all jobs of a worker, however many steps it covers.

`push` only adds to memory, so decoding never waits for the server: while it is slow or away, the next append
grows. What is kept is bounded by the answers of the jobs that run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from headpond.errors import HeadpondError
from headpond.held import HeldLease
from headpond.jobs import JobState
from headpond.operations import Append, Argument, LeaseStatus, Operation, Outcome, finish
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
    def pieces(self) -> tuple[str, ...]:
        return tuple(self._pieces)

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

    def finish(
        self,
        state: JobState,
        result: bytes,
        reason: str = "",
        *,
        first_token_s: float | None = None,
        turn: Sequence[Argument] = (),
    ) -> bool:
        """End the job after its last token. turn: what it adds to its session.

        Waits for a server that is away; False if the lease was lost.
        """
        job_id, fence = self.held.key
        done = finish(
            job_id, fence, offset=len(self), state=state, result=result, reason=reason, first_token_s=first_token_s,
            turn=turn,
        )  # fmt: skip
        return self._writer.end(self, done)

    def _next(self) -> Append | None:
        end = min(len(self._ids), self._sent + MAX_ENTRY_TOKENS)
        if end <= self._sent or self.held.lost is not None:
            return None
        run = TokenRun(self._sent, tuple(self._ids[self._sent : end]), tuple(self._pieces[self._sent : end]))
        return Append(self.held.lease.id, self.held.lease.fence, run)


class TokenWriter(threading.Thread):
    """One thread that writes for all streams of a worker: appends in one call, then ends in one round trip."""

    def __init__(self, queue: JobQueue, *, full_version: Callable[[], str] = lambda: "") -> None:
        """full_version: the version that is served, while all slots are taken; else ''."""
        super().__init__(name="token-writer", daemon=True)
        self._full_version = full_version
        self.queue = queue
        self._changed = threading.Condition()
        self._dirty: dict[JobStream, None] = {}
        self._ending: dict[JobStream, Operation[Outcome]] = {}
        self._stopping = False

    def open(self, held: HeldLease, prior: TokenRun) -> JobStream:
        return JobStream(self, held, prior)

    def wake(self, stream: JobStream) -> None:
        with self._changed:
            self._dirty[stream] = None
            self._changed.notify_all()

    def wait_sent(self, stream: JobStream) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: stream.held.lost is not None or (stream not in self._dirty and stream._sent == len(stream))
            )
            return stream.held.lost is None

    def end(self, stream: JobStream, operation: Operation[Outcome]) -> bool:
        """Send a finish once all tokens are there, and wait for its answer. False if the lease was lost."""
        with self._changed:
            self._ending[stream] = operation
            self._changed.notify_all()
            self._changed.wait_for(lambda: stream not in self._ending)
        return stream.held.settled

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._ending or self._stopping)
                if self._stopping and not self._dirty and not self._ending:
                    return
                batch = [(stream, append) for stream in self._dirty if (append := stream._next()) is not None]
                for stream in self._dirty.keys() - {stream for stream, _ in batch}:
                    del self._dirty[stream]
                ends = [(stream, finish) for stream, finish in self._ending.items() if stream not in self._dirty]
                if not batch:
                    self._changed.notify_all()
            try:
                if batch:
                    self._append(batch)
                if ends:
                    self._finish(ends)
            except HeadpondError as error:
                # The server is away: what is not acknowledged stays here, and is sent again.
                logger.warning("write_delayed appends=%d ends=%d error=%s", len(batch), len(ends), error)
                time.sleep(RETRY_S)

    def _append(self, batch: list[tuple[JobStream, Append]]) -> None:
        outcomes = self.queue.append([append for _, append in batch], full_version=self._full_version())
        with self._changed:
            for (stream, append), outcome in zip(batch, outcomes, strict=True):
                if outcome.status in (LeaseStatus.APPENDED, LeaseStatus.PREEMPT):
                    stream.held.preempted = stream.held.preempted or outcome.status is LeaseStatus.PREEMPT
                    stream._sent = max(append.tokens.end, min(outcome.offset, len(stream)))
                elif outcome.status is LeaseStatus.GAP:
                    logger.warning("gap job=%s offset=%d", append.id, outcome.offset)
                    stream._sent = outcome.offset
                else:
                    self._lose(stream, outcome.status)
                if stream._sent == len(stream) or stream.held.lost is not None:
                    self._dirty.pop(stream, None)
            self._changed.notify_all()

    def _finish(self, ends: list[tuple[JobStream, Operation[Outcome]]]) -> None:
        alive = [(stream, operation) for stream, operation in ends if stream.held.lost is None]
        outcomes = self.queue.run_all([operation for _, operation in alive]) if alive else []
        with self._changed:
            for (stream, _), outcome in zip(alive, outcomes, strict=True):
                if outcome.status is LeaseStatus.GAP:
                    # The server went back in time after the last append: the tokens first, then the end again.
                    stream._sent = outcome.offset
                    self._dirty[stream] = None
                elif outcome.status is LeaseStatus.DONE:
                    stream.held.settled = True
                else:
                    self._lose(stream, outcome.status)
            for stream, _ in ends:
                if stream.held.settled or stream.held.lost is not None:
                    self._ending.pop(stream, None)
            self._changed.notify_all()

    def _lose(self, stream: JobStream, status: LeaseStatus) -> None:
        stream.held.lost = status
        logger.info("writer_ended job=%s status=%s", stream.held.lease.id, status.value)
