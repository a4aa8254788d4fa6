"""A model of another server as a RelayEngine: its requests, retries and probes, in one event loop.

job -> turn (limits a minute) -> request -> pieces ------------------------> the end
          ^                         | refused: the job fails
          |-- wait, with back-off <-| failed: again, up to max_retries
                                    `- then a probe: does the server answer others?
                                          no  -> UpstreamClosed: nobody is to blame
                                          yes -> an error of this job
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import resource
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from headpond.errors import EngineError, EngineUnavailable, JobPutBack, SequenceFailed, UpstreamClosed
from headpond.jobs import UNNAMED_TOKEN, FinishReason
from headpond.tables import OpenAIModel
from headpond_workers.engines.openai.bodies import PROBE_TOKENS, check_request, probe_request, request_body
from headpond_workers.engines.openai.chunks import read_text_chunk
from headpond_workers.engines.openai.client import Heard, UpstreamClient
from headpond_workers.engines.openai.loop_thread import LoopThread
from headpond_workers.engines.openai.upstream_failures import Blame, UpstreamFailure
from headpond_workers.engines.openai.upstream_ids import Continuation, TokenServer, is_cut
from headpond_workers.engines.openai.upstream_memory import MAX_BREAKS, MAX_PUT_BACKS, JobMemory
from headpond_workers.engines.openai.upstream_pace import Backoff, Pace
from headpond_workers.engines.openai.upstream_secrets import resolve_secrets
from headpond_workers.engines.protocol import (
    Capability,
    EmitText,
    EngineInfo,
    RelayFinish,
    RelayRequest,
    Verdict,
)

logger = logging.getLogger(__name__)

CHECK_S = 10.0
"""How long a server may take to show that it can continue an answer. A slower one is asked by the first probe."""
TICK_S = 0.25
"""How often a job that waits asks whether it is still wanted."""
BYTES_PER_TOKEN = 4
"""Of a prompt, as far as it can be told without its tokenizer."""
_OUTPUT_VERSION = 1
"""Rises when the same table leads to other requests: jobs are then not continued by another release."""
_Piece = tuple[tuple[int, ...], tuple[str, ...]]


@dataclass(slots=True)
class _Answer:
    """One call of relay. given: pieces that were passed on. broken: the server went away amid one of its requests."""

    request: RelayRequest
    put: Callable[[_Piece], None] = lambda _: None
    given: int = 0
    broken: bool = False
    reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    continuation: Continuation | None = None

    def give(self, ids: tuple[int, ...], pieces: tuple[str, ...]) -> None:
        self.given += len(ids)
        self.put((ids, pieces))


class OpenAIEngine:
    """One model of another server. Making it contacts nobody but where resume = "continue" has to be checked."""

    def __init__(self, settings: OpenAIModel) -> None:
        """Raises ConfigError for a secret that cannot be used, EngineUnavailable for a server that is unfit."""
        # A core file would hold the secrets.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        self._settings = settings
        self._secrets = resolve_secrets(settings)
        self._loop: LoopThread[_Piece] = LoopThread(f"upstream-{settings.upstream_model}"[:15])
        self._client = UpstreamClient(settings, self._secrets)
        self._pace = Pace(settings.requests_per_minute, settings.tokens_per_minute, time.monotonic)
        self._backoff = Backoff(settings.backoff_s, settings.max_backoff_s, settings.retry_after_limit_s)
        self._memory = JobMemory()
        self._info = EngineInfo(
            engine=settings.engine,
            fingerprint=_fingerprint(settings),
            context_tokens=settings.context_tokens,
            slots=settings.slots,
            capabilities=frozenset({Capability.JSON_SCHEMA}) if settings.response_formats else frozenset(),
            sampling=frozenset(settings.sampling),
            upstream_model=settings.upstream_model,
        )
        if settings.resume == "continue":
            self._check_resume()

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def anew(self) -> str:
        if self._settings.resume == "continue":
            return ""
        return 'the server behind this model cannot continue an answer (resume = "rewind")'

    def relay(self, request: RelayRequest, emit: EmitText) -> RelayFinish:
        check_request(self._settings, request.asked)
        answer = _Answer(request)

        def work(put: Callable[[_Piece], None]) -> Coroutine[Any, Any, RelayFinish]:
            answer.put = put
            return self._run(answer)

        def take(batch: list[_Piece]) -> bool:
            ids = [token_id for some, _ in batch for token_id in some]
            pieces = [piece for _, some in batch for piece in some]
            return emit(ids, pieces) is Verdict.GO

        finish = self._loop.pump(work, take, tick_s=TICK_S)
        return finish or RelayFinish(FinishReason.CANCELLED, answer.prompt_tokens)

    def probe(self) -> None:
        self._loop.run(self._probe())

    def renew_secrets(self) -> None:
        secrets = resolve_secrets(self._settings)
        if secrets == self._secrets:
            return
        old, self._client, self._secrets = self._client, UpstreamClient(self._settings, secrets), secrets
        logger.info("secrets_renewed")
        self._loop.run(old.retire())

    def close(self) -> None:
        self._loop.close()

    async def _run(self, answer: _Answer) -> RelayFinish:
        retries = 0
        while True:
            given = answer.given
            failure = await self._try(answer)
            if failure is None:
                self._memory.forget(answer.request.job_id)
                return RelayFinish(answer.reason or FinishReason.STOP, answer.prompt_tokens, answer.completion_tokens)
            retries = 1 if answer.given > given else retries + 1
            await self._bear(failure, answer, retries)

    async def _try(self, answer: _Answer) -> UpstreamFailure | None:
        """One request, to the end of the answer or until it fails.

        A failure is returned, not raised: what is raised of it later must not carry the server's own words with it.
        """
        try:
            await self._pace.turn(answer.request.asked.text_bytes() // BYTES_PER_TOKEN)
            if self._settings.resume == "continue":
                await self._continue(answer)
            else:
                await self._read(answer)
        except UpstreamFailure as failure:
            return failure
        return None

    async def _read(self, answer: _Answer) -> None:
        """An answer whose text alone is known."""
        path, body = request_body(self._settings, answer.request.asked)

        def hear(event: object) -> Heard:
            chunk = read_text_chunk(event)
            if chunk.prompt_tokens is not None:
                answer.prompt_tokens, answer.completion_tokens = chunk.prompt_tokens, chunk.completion_tokens
            if chunk.text:
                self._pace.spend(1)
                answer.give((UNNAMED_TOKEN,), (chunk.text,))
            answer.reason = chunk.reason or answer.reason
            if answer.reason is not None:
                return Heard.ENDED
            return Heard.MOVED if chunk.alive else Heard.IDLE

        await self._client.stream(path, body, hear)
        if answer.reason is None:
            raise UpstreamFailure(Blame.UNCLEAR, "the answer broke off", broken=True)

    async def _continue(self, answer: _Answer) -> None:
        """An answer of token ids, after those that the job has."""
        server, request = TokenServer(self._settings, self._client), answer.request
        if answer.continuation is None:
            prompt = await server.render(request.asked)
            answer.prompt_tokens = len(prompt)
            cut = bool(request.asked.stop and request.ids) and is_cut(
                request.text, await server.text_of(list(request.ids))
            )
            answer.continuation = Continuation(request.asked, request.seed, prompt, list(request.ids), answer.give)
            if cut:
                answer.reason = FinishReason.STOP
        if answer.reason is None:
            answer.reason = await server.run(answer.continuation)
        answer.completion_tokens = len(answer.continuation.ids)

    async def _bear(self, failure: UpstreamFailure, answer: _Answer, retries: int) -> None:
        """Wait until the request may be tried again. Raises what it comes to if it may not."""
        said, job_id = self._words(failure), answer.request.job_id
        # Without the server's words, which may repeat a prompt.
        what = self._secrets.message(failure.what)
        logger.warning("upstream_failed job=%s time=%d blame=%s what=%s", job_id, retries, failure.blame.value, what)
        if failure.blame is Blame.REQUEST:
            raise SequenceFailed(f"The server behind this model refuses the request: {said}")
        answer.broken = answer.broken or failure.broken
        if failure.blame in (Blame.ACCESS, Blame.HOPELESS):
            await self._ask_for(answer)
            raise SequenceFailed(f"The server behind this model answers others, but not this request: {said}")
        most = self._settings.max_retries
        if answer.given and self.anew:
            cuts = self._memory.cuts.add(job_id)
            if cuts > most:
                await self._ask_for(answer)
                raise SequenceFailed(f"The server behind this model broke off {_answers(cuts)} to this request: {said}")
            await self._wait(cuts, failure)
            raise JobPutBack(f"The server behind this model broke off amid its answer: {said}")
        if retries <= most:
            await self._wait(retries, failure)
            return
        await self._ask_for(answer)
        if failure.blame is Blame.OUTAGE and (times := self._memory.put_backs.add(job_id)) <= MAX_PUT_BACKS:
            await self._wait(times, failure)
            raise JobPutBack(f"The server behind this model answers others, but is too busy for this request: {said}")
        raise EngineError(
            f"The server behind this model answers others, but failed this request {_times(retries)}: {said}"
        )

    async def _ask_for(self, answer: _Answer) -> None:
        """Whether the server serves others. Raises UpstreamClosed, or EngineError if this job is why it does not."""
        try:
            await self._probe()
        except UpstreamClosed as closed:
            if not answer.broken or (times := self._memory.breaks.add(answer.request.job_id)) < MAX_BREAKS:
                raise
            why = f"The server behind this model went away amid this request {_times(times)}. {closed}"
        else:
            return
        raise EngineError(why)

    async def _wait(self, retry: int, failure: UpstreamFailure) -> None:
        if failure.retry_after_s is not None:
            self._pace.hold(min(failure.retry_after_s, self._settings.retry_after_limit_s))
        await asyncio.sleep(self._backoff.delay_s(retry, failure.retry_after_s))

    async def _probe(self) -> None:
        """Raises UpstreamClosed."""
        try:
            await self._pace.turn(PROBE_TOKENS)
            if self._settings.resume == "continue":
                await TokenServer(self._settings, self._client).check()
            else:
                await self._read_probe()
            return
        except EngineUnavailable as error:
            closed = UpstreamClosed(str(error), needs_operator=True)
        except SequenceFailed:
            # It ended an answer for a reason of its own: so it makes some.
            return
        except UpstreamFailure as failure:
            away = failure.blame in (Blame.OUTAGE, Blame.UNCLEAR)
            closed = UpstreamClosed(
                f"The server behind this model {'does not serve' if away else 'refuses the smallest request'}: "
                f"{self._words(failure)}",
                needs_operator=not away,
            )
        raise closed

    async def _read_probe(self) -> None:
        path, body = request_body(self._settings, probe_request())
        answered = False

        def hear(event: object) -> Heard:
            nonlocal answered
            chunk = read_text_chunk(event)
            answered = answered or chunk.alive
            return Heard.ENOUGH if answered else Heard.IDLE

        await self._client.stream(path, body, hear)
        if not answered:
            raise UpstreamFailure(Blame.UNCLEAR, "the answer broke off", broken=True)

    def _check_resume(self) -> None:
        """Raises EngineUnavailable. A server that is away is asked again by the first probe."""
        try:
            self._loop.run(asyncio.wait_for(TokenServer(self._settings, self._client).check(), CHECK_S))
        except TimeoutError:
            logger.warning("resume_unchecked what=no answer within %g s", CHECK_S)
        except EngineUnavailable:
            self.close()
            raise
        except UpstreamFailure as failure:
            logger.warning("resume_unchecked error=%s", self._words(failure))

    def _words(self, failure: UpstreamFailure) -> str:
        """For people, without secrets."""
        return self._secrets.message(f"{failure.what}: {failure.said}" if failure.said else failure.what)


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _answers(count: int) -> str:
    return "its answer" if count == 1 else f"{count} answers"


def _fingerprint(settings: OpenAIModel) -> str:
    """What this side knows of the model: the server may exchange its weights without a word."""
    known = [
        _OUTPUT_VERSION,
        settings.base_url,
        settings.upstream_model,
        settings.organisation,
        settings.project,
        settings.resume,
        settings.mode,
    ]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()
