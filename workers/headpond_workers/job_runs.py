"""One job from its lease to its end: prompt, engine, stream, result. Every way in which a job can end is here."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from headpond.codec import split_first
from headpond.errors import (
    CapabilityMissing,
    EngineBroken,
    HeadpondError,
    InvalidRequest,
    PromptTooLong,
    RedisUnavailable,
    SequenceFailed,
    SessionError,
)
from headpond.folding import fold_tokens
from headpond.held import HeldLease
from headpond.jobs import FinishReason, JobState, Result, Timings, Usage
from headpond.operations import Lease, LeaseStatus
from headpond.provenance import Provenance
from headpond.queue import JobQueue
from headpond.requests import JobRequest, parse_request
from headpond.session_operations import TurnEnd
from headpond.turns import Turn, TurnRequest
from headpond.wire import Header, TokenRun, pack_result, unpack_header
from headpond_workers.engines.protocol import EngineInfo
from headpond_workers.made_by import provenance_of
from headpond_workers.token_writer import RETRY_S, JobStream, TokenWriter
from headpond_workers.totals import Totals
from headpond_workers.turns import BegunTurn, begin_turn

logger = logging.getLogger(__name__)

MAX_ERROR_CHARS = 1000


@dataclass(slots=True)
class Watch:
    """What one attempt measures, and when it last moved. Seconds are of time.monotonic().

    answer_tokens: of the whole answer, if that is not what the stream holds. vectors: of a job that embeds. asked: once
    the request is read; of a session's job with the whole conversation. turn: of a session, once that was
    read. prompt: token ids that the engine was given, before those of earlier attempts.
    """

    began: float
    moved: float
    first_token: float | None = None
    last_token: float | None = None
    tokens: int = 0
    prompt_tokens: int = 0
    answer_tokens: int | None = None
    vectors: tuple[tuple[float, ...], ...] | None = None
    asked: JobRequest | None = None
    turn: BegunTurn | None = None
    prompt: Seq[int] | None = None
    after: Callable[[], None] | None = None

    def timings(self, queued_s: float) -> Timings:
        rate = None
        if self.tokens > 1 and self.first_token is not None and self.last_token is not None:
            rate = (self.tokens - 1) / max(1e-9, self.last_token - self.first_token)
        first = None if self.first_token is None else self.first_token - self.began
        return Timings(queued_s, first, time.monotonic() - self.began, rate)


@dataclass(slots=True)
class JobRuns(ABC):
    """Runs jobs, whatever makes their answers: that is for a subclass to say, with `_answer`.

    preempt: parks a job and claims a more urgent one for its slot.
    parking: set when the process leaves; running jobs then stop at their next step and are parked.
    broken: set when the engine can serve nothing more in this process, on_broken called then, before the job is
    parked. last_error: the engine's last failure. redact: takes secrets out of what an engine says of its failures,
    before anything of it is stored. model_digest: of the version that is served, for provenance; '' if it is none.
    """

    queue: JobQueue
    writer: TokenWriter
    version: str
    stall_timeout_s: float
    on_broken: Callable[[], None]
    preempt: Callable[[HeldLease], None]
    totals: Totals
    redact: Callable[[str], str] = str
    model_digest: str = ""
    parking: threading.Event = field(default_factory=threading.Event)
    broken: threading.Event = field(default_factory=threading.Event)
    last_error: str = ""

    def run(self, request: object, held: HeldLease) -> None:
        """Run one job to its end, or leave it to another worker. Raises nothing that the job caused."""
        now = time.monotonic()
        watch = Watch(now, now)
        held.moving = lambda: time.monotonic() - watch.moved < self.stall_timeout_s
        prior = self._prior(held)
        if prior is None:
            return
        stream = self.writer.open(held, prior)
        try:
            watch.asked = parse_request(request)
            if (turn := _header_of(held.lease).turn) is not None:
                watch.turn = self._begin_turn(held, turn, watch.asked)
                if watch.turn is None:
                    return
                watch.asked = watch.turn.request
            reason = self._answer(watch.asked, stream, watch)
        except (InvalidRequest, PromptTooLong, SequenceFailed, CapabilityMissing, SessionError) as error:
            self._end(stream, watch, FinishReason.ERROR, error=self.redact(str(error)))
            return
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, its job goes back
            self._failed(held, error)
            return
        if held.lost is not None:
            logger.info("job_left job=%s status=%s", held.lease.id, held.lost.value)
        elif reason is FinishReason.CANCELLED:
            if stream.flush() and held.preempted and not self.parking.is_set():
                self._give_way(held)
            else:
                self._park(held)
        else:
            self._end(stream, watch, reason)
            if watch.after is not None:
                watch.after()

    def _prior(self, held: HeldLease) -> TokenRun | None:
        """The tokens of earlier attempts; None if the lease was lost while Redis was away."""
        if held.lease.offset == 0:
            return TokenRun(0, (), ())
        while held.lost is None:
            try:
                prior = fold_tokens(self.queue.events(held.lease.id))
                row = None if len(prior.ids) == held.lease.offset else self.queue.run_row(held.lease.id)
            except RedisUnavailable as error:
                logger.warning("resume_delayed job=%s error=%s", held.lease.id, error)
                time.sleep(RETRY_S)
                continue
            if len(prior.ids) != held.lease.offset:
                if row is None or row.fence != held.lease.fence:
                    # The server went back to before this claim, or others have the job by now.
                    held.lost = LeaseStatus.FENCED
                    break
                # Under this lease nobody else writes, so this cannot be: do not guess which tokens are right.
                raise RuntimeError(
                    f"{held.lease.id}: {len(prior.ids)} tokens in the stream, {held.lease.offset} leased"
                )
            return prior
        return None

    def _begin_turn(self, held: HeldLease, turn: TurnRequest, asked: JobRequest) -> BegunTurn | None:
        """None if the lease was lost while Redis was away. Raises SessionError."""
        while held.lost is None:
            try:
                return begin_turn(self.queue, held.lease.id, turn, asked)
            except RedisUnavailable as error:
                logger.warning("turn_delayed job=%s error=%s", held.lease.id, error)
                time.sleep(RETRY_S)
        return None

    @abstractmethod
    def _answer(self, asked: JobRequest, stream: JobStream, watch: Watch) -> FinishReason:
        """Make the answer and push it; CANCELLED if it was left. The prompt is counted in `watch`.

        Raises PromptTooLong or SequenceFailed for what the job caused, anything else for what the engine did.
        """

    @abstractmethod
    def _info(self) -> EngineInfo:
        """Of the engine that makes the answers."""

    def _note(self, watch: Watch, count: int) -> None:
        """The engine moved, and made so many tokens."""
        watch.moved = time.monotonic()
        if count:
            watch.last_token = watch.moved
            watch.tokens += count
            self.totals.add_tokens(count, watch.moved)
            if watch.first_token is None:
                watch.first_token = watch.moved

    def _unwanted(self, held: HeldLease) -> bool:
        """Whether this process is to make no more of the answer."""
        return held.lost is not None or held.preempted or self.parking.is_set()

    def _failed(self, held: HeldLease, error: Exception) -> None:
        """The engine itself failed, so the job may be innocent: another attempt may do better."""
        logger.error("engine_failed job=%s", held.lease.id, exc_info=error)
        # Cut last: a secret that the cut divides would be harder to find.
        self.last_error = self.redact(str(error) or type(error).__name__)[:MAX_ERROR_CHARS]
        if isinstance(error, EngineBroken):
            # Before the park: this process must not be the one that gets the job again.
            self.broken.set()
            self.on_broken()
        self._park(held, reason=self.last_error)

    def _end(
        self,
        stream: JobStream,
        watch: Watch,
        reason: FinishReason,
        *,
        error: str | None = None,
    ) -> None:
        lease = stream.held.lease
        result = Result(
            id=lease.id,
            state=JobState.FAILED if error else JobState.FINISHED,
            text=stream.text,
            token_ids=stream.ids,
            finish_reason=reason,
            usage=Usage(watch.prompt_tokens, len(stream) if watch.answer_tokens is None else watch.answer_tokens),
            timings=watch.timings(lease.queued_s),
            model=self.queue.name,
            version=self.version,
            attempts=lease.attempt,
            error=error,
            pieces=stream.pieces,
            embeddings=watch.vectors,
            provenance=self._provenance(watch, lease),
        )
        try:
            result, end = self._end_turn(result, watch, lease)
        except SessionError as full:
            self._end(stream, watch, FinishReason.ERROR, error=str(full))
            return
        if stream.finish(
            result.state,
            pack_result(result),
            (error or "")[:500],
            first_token_s=result.timings.first_token_s,
            turn=() if end is None else end.words(),
        ):
            self.totals.add_job()
            logger.info("job_ended job=%s state=%s tokens=%d", lease.id, result.state.value, len(stream))
        else:
            logger.info("job_left job=%s status=%s", lease.id, stream.held.lost)

    def _end_turn(self, result: Result, watch: Watch, lease: Lease) -> tuple[Result, TurnEnd | None]:
        """What the result says of its session, and what the session is to get. Raises SessionError."""
        asked, fingerprint = _header_of(lease).turn, self._info().fingerprint
        if asked is None:
            return result, None
        if watch.turn is None:
            return replace(result, turn=Turn(asked.session)), None
        end = None if result.error else watch.turn.end(result, fingerprint=fingerprint)
        commit = None if end is None else end.commit.id
        told = watch.turn.told(version=self.version, fingerprint=fingerprint, commit=commit)
        return replace(result, turn=told), end

    def _provenance(self, watch: Watch, lease: Lease) -> Provenance | None:
        """None for a request that could not be read: nothing was made of it."""
        if watch.asked is None:
            return None
        return provenance_of(
            self._info(),
            watch.asked,
            job_id=lease.id,
            prompt=watch.prompt,
            request_digest=_header_of(lease).digest,
            model_digest=self.model_digest,
        )

    def _give_way(self, held: HeldLease) -> None:
        try:
            self.preempt(held)
        except HeadpondError as error:
            # The acknowledgement that follows parks it.
            logger.warning("preempt_failed job=%s error=%s", held.lease.id, error)
            return
        logger.info("job_preempted job=%s", held.lease.id)

    def _park(self, held: HeldLease, *, reason: str = "", note: str = "") -> None:
        """reason: what the engine failed of; empty where the job is not to blame. note: why it is parked then."""
        try:
            if reason:
                (status,) = self.queue.park([held.key], strike=True, reason=reason[:500])
            else:
                (status,) = self.queue.park([held.key], reason=note[:500] or "put back by its worker")
        except HeadpondError as error:
            # The acknowledgement that follows parks again; failing that, the lease ends by itself.
            logger.warning("park_failed job=%s error=%s", held.lease.id, error)
            return
        held.settled = True
        logger.info("job_parked job=%s status=%s", held.lease.id, status.value)


def _header_of(lease: Lease) -> Header:
    return unpack_header(split_first(lease.data, kind="data entry")[0])
