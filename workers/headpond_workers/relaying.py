"""One job of a proxy, from its lease to its end: as `generation` has it, but that another server makes the text."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from headpond.errors import EngineError, JobPutBack, UpstreamClosed
from headpond.held import HeldLease
from headpond.jobs import FinishReason
from headpond.requests import JobRequest
from headpond_workers.engines.protocol import EngineInfo, RelayEngine, RelayRequest, Verdict
from headpond_workers.job_runs import MAX_ERROR_CHARS, JobRuns, Watch
from headpond_workers.relay_text import RelayText
from headpond_workers.token_writer import JobStream

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Relaying(JobRuns):
    """Passes jobs on to one engine. Thread-safe up to the engine's slots.

    on_closed: called when a job finds that the server serves nobody, before the job is parked.
    """

    engine: RelayEngine = field(kw_only=True)
    on_closed: Callable[[UpstreamClosed], None] = field(kw_only=True)

    def _answer(self, asked: JobRequest, stream: JobStream, watch: Watch) -> FinishReason:
        held, prior = stream.held, len(stream)
        if prior >= asked.max_tokens:
            return FinishReason.LENGTH
        text = RelayText(stop=asked.stop, stop_ids=asked.stop_token_ids)

        def emit(ids: Seq[int], pieces: Seq[str]) -> Verdict:
            self._note(watch, len(ids))
            if ids:
                released = text.feed(ids, pieces)
                if released.ids:
                    stream.push(released.ids, released.pieces)
            return Verdict.STOP if text.stopped or self._unwanted(held) else Verdict.GO

        request = RelayRequest(held.lease.id, asked, asked.seed_for(held.lease.id), stream.ids, stream.text)
        finish = self.engine.relay(request, emit)
        watch.prompt_tokens = finish.prompt_tokens or 0
        if text.stopped:
            return FinishReason.STOP
        if finish.reason is not FinishReason.CANCELLED:
            rest = text.flush()
            if rest.ids:
                stream.push(rest.ids, rest.pieces)
            watch.answer_tokens = finish.completion_tokens
        return finish.reason

    def _info(self) -> EngineInfo:
        return self.engine.info

    def _failed(self, held: HeldLease, error: Exception) -> None:
        if isinstance(error, UpstreamClosed):
            # Before the park: this process must not be the one that gets the job again.
            self.on_closed(error)
            self._park(held, note=self.redact(str(error)))
        elif isinstance(error, JobPutBack):
            # It has waited already. What it has of an answer is rewound by its next claim.
            logger.warning("job_put_back job=%s", held.lease.id)
            self._park(held, note=self.redact(str(error)))
        elif isinstance(error, EngineError):
            # No log holds its words: they may be the server's, which may repeat a prompt.
            logger.error("upstream_failed_job job=%s", held.lease.id)
            self.last_error = self.redact(str(error))[:MAX_ERROR_CHARS]
            self._park(held, reason=self.last_error)
        else:
            # Explicit, since a dataclass with slots is a new class, of which a bare super() does not know.
            JobRuns._failed(self, held, error)
