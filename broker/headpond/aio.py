"""AsyncClient: headpond.client for asyncio. Same names, same arguments, same errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from headpond import operations as ops
from headpond.aio_queue import AsyncJobQueue, AsyncServer
from headpond.aio_sessions import AsyncSession
from headpond.commits import SessionRow
from headpond.connections import BLOCK_S, Patience, find_redis
from headpond.durability import TIMEOUT_S, AsyncCommitWatch, Durability, no_storage, parse_durability
from headpond.errors import RedisUnavailable, ResultTimeout, UnknownModel
from headpond.events import AT_ONCE_S, check_after
from headpond.folding import StreamFold
from headpond.jobs import Chunk, JobId, JobState, Priority, Result
from headpond.models import ModelRow
from headpond.operations import Submitted
from headpond.results import answer, build_result
from headpond.sampling import SamplingOptions
from headpond.submission import (
    WINDOW_CHUNKS,
    Submission,
    chunked,
    is_refused,
    prepare,
    prepare_many,
    raise_refusals,
)


class AsyncClient:
    """A connection of one asyncio producer, for one event loop. Arguments and errors are those of `Client`."""

    def __init__(self, url: str | None = None) -> None:
        self._server = AsyncServer(find_redis(url))
        self._models: dict[str, ModelRow] = {}

    async def models(self) -> dict[str, ModelRow]:
        self._models = await self._server.models()
        return dict(self._models)

    async def submit(
        self,
        model: str,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        id: str | None = None,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        adapter: str | None = None,
        response_format: Mapping[str, Any] | None = None,
        grammar: str | None = None,
        delay: float = 0.0,
        deadline: float | None = None,
        priority: Priority | str = Priority.NORMAL,
        tenant: str = "",
        durability: Durability | str = Durability.QUEUE,
        durability_timeout: float = TIMEOUT_S,
        session: str | None = None,
        parent: str | None = None,
        policy: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncJob:
        """Enqueue one job; see `Client.submit`."""
        stored_within_s = await self._wait_for_storage(model, durability, durability_timeout)
        known = await self._known(model)
        submission = prepare(
            model, prompt, messages, known=known, id=id, delay=delay, deadline=deadline, priority=priority,
            tenant=tenant, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop,
            stop_token_ids=stop_token_ids, adapter=adapter, response_format=response_format, grammar=grammar,
            session=session, parent=parent, policy=policy, **sampling,
        )  # fmt: skip
        return await self._enqueue(submission, stored_within_s)

    async def embed(
        self,
        model: str,
        texts: str | Sequence[str],
        *,
        id: str | None = None,
        delay: float = 0.0,
        deadline: float | None = None,
        priority: Priority | str = Priority.NORMAL,
        tenant: str = "",
        durability: Durability | str = Durability.QUEUE,
        durability_timeout: float = TIMEOUT_S,
    ) -> AsyncJob:
        """Enqueue one job that embeds texts; see `Client.embed`."""
        stored_within_s = await self._wait_for_storage(model, durability, durability_timeout)
        known = await self._known(model)
        submission = prepare(
            model, None, None, known=known, id=id, delay=delay, deadline=deadline, priority=priority, tenant=tenant,
            input=texts,
        )  # fmt: skip
        return await self._enqueue(submission, stored_within_s)

    async def _enqueue(self, submission: Submission, stored_within_s: float | None) -> AsyncJob:
        queue = await self._queue(submission.id.model)
        watch = None if stored_within_s is None else await AsyncCommitWatch.begin(queue, stored_within_s)
        answers = await queue.run(ops.submit([submission.entry], max_queued=submission.max_queued))
        if is_refused(answers):
            raise_refusals([submission], answers, retry_after_s=await queue.retry_after_s(), many=False)
        if watch is not None:
            await watch.wait([str(submission.id)])
        return AsyncJob(self, submission.id, submitted=True)

    async def submit_many(
        self,
        model: str,
        requests: Sequence[Mapping[str, Any]],
        *,
        durability: Durability | str = Durability.QUEUE,
        durability_timeout: float = TIMEOUT_S,
        **common: Any,
    ) -> list[AsyncJob]:
        """Enqueue many jobs in few round trips; see `Client.submit_many`."""
        stored_within_s = await self._wait_for_storage(model, durability, durability_timeout)
        submissions = prepare_many(model, requests, common, known=await self._known(model))
        if not submissions:
            return []
        queue = await self._queue(submissions[0].id.model)
        watch = None if stored_within_s is None else await AsyncCommitWatch.begin(queue, stored_within_s)
        bound = submissions[0].max_queued
        answers: list[Submitted] = []
        chunks = list(chunked([s.entry for s in submissions]))
        for at in range(0, len(chunks), WINDOW_CHUNKS):
            window = [queue.run(ops.submit(chunk, max_queued=bound)) for chunk in chunks[at : at + WINDOW_CHUNKS]]
            for chunk_answers in await asyncio.gather(*window):
                answers += chunk_answers
        if is_refused(answers):
            raise_refusals(submissions, answers, retry_after_s=await queue.retry_after_s(), many=True)
        if watch is not None:
            await watch.wait([str(submission.id) for submission in submissions])
        return [AsyncJob(self, submission.id, submitted=True) for submission in submissions]

    async def _known(self, model: str) -> dict[str, ModelRow]:
        if model.partition("@")[0] not in self._models:
            await self.models()
        return self._models

    async def _wait_for_storage(self, model: str, durability: str, timeout_s: float) -> float | None:
        """See `Client`."""
        stored_within_s = parse_durability(durability, timeout_s)
        name = model.partition("@")[0]
        if stored_within_s is None or name not in await self._known(model) or self._models[name].storage:
            return stored_within_s
        row = (await self.models()).get(name)  # Storage may have been added since the models were read.
        if row is not None and not row.storage:
            raise no_storage(name)
        return stored_within_s

    def job(self, id: str) -> AsyncJob:
        """The handle of a job that was submitted before, here or elsewhere."""
        return AsyncJob(self, JobId.parse(id))

    def session(self, name: str, *, model: str | None = None) -> AsyncSession:
        """The handle of a session; see `Client.session`."""
        return AsyncSession(self, name, model=model)

    async def sessions(self, model: str, *, limit: int = 1000) -> list[SessionRow]:
        """See `Client.sessions`."""
        queue = await self._queue(model)
        rows = [await queue.session(name) for name in await queue.session_names(limit=limit)]
        return [row for row in rows if row is not None]

    async def _queue(self, model: str) -> AsyncJobQueue:
        row = self._models.get(model) or (await self.models()).get(model)
        if row is None:
            raise UnknownModel(model, self._models)
        return await self._server.queue(model, storage=row.storage)

    async def close(self) -> None:
        await self._server.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncJob:
    """One job; the asynchronous twin of `Job`."""

    def __init__(self, client: AsyncClient, job_id: JobId, *, submitted: bool = False) -> None:
        self._submitted = submitted
        self._client = client
        self._id = job_id

    @property
    def id(self) -> str:
        """`<model>/<slug>`"""
        return str(self._id)

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r})"

    async def _queue(self) -> AsyncJobQueue:
        return await self._client._queue(self._id.model)

    async def state(self) -> JobState:
        queue = await self._queue()
        row = await queue.run_row(self.id)
        if row is None:
            raise await queue.absence(self.id)
        return row.state

    async def served(self) -> bool:
        """See `Job.served`."""
        return bool(await (await self._queue()).living())

    async def stream(self, after: int = 0) -> AsyncIterator[Chunk]:
        """Tokens from an offset on, as they are made, until the job ends; see `Job.stream`."""
        fold, last, patience = StreamFold(check_after(after)), "0-0", Patience()
        queue = await self._queue()
        known, self._submitted = self._submitted, False
        row = None if known else await queue.run_row(self.id)
        if row is None and not known:
            raise await queue.absence(self.id)
        block_s = AT_ONCE_S if row is not None and row.state.ended else BLOCK_S
        while fold.ended is None:
            rest = None
            try:
                if fold.to_verify:
                    there = [await queue.has_event(self.id, entry_id) for entry_id, _ in fold.rewinds]
                    rewinds = zip(fold.rewinds, there, strict=True)
                    if fold.verified([at for (_, at), is_there in rewinds if not is_there]):
                        last = "0-0"
                entries = await queue.wait_for_events(self.id, after=last, block_s=block_s)
                if not entries:
                    await queue.run(ops.tick())
                    result = await self._ended(queue)
                    rest = None if result is None else fold.end_with(result)
            except RedisUnavailable as error:
                await asyncio.sleep(patience.delay_s(error))
                continue
            patience.answered()
            if rest is not None:
                yield rest
            for entry_id, fields in entries:
                last = entry_id
                chunk = fold.feed(fields, entry_id)
                if chunk is not None:
                    yield chunk
                if fold.to_verify:
                    break

    async def result(self, timeout: float | None = None) -> Result:
        """Wait until the job has ended, at most `timeout` seconds; see `Job.result`."""
        until = None if timeout is None else time.monotonic() + timeout
        queue = await self._queue()
        last, patience = await queue.last_event(self.id), Patience()
        while True:
            left_s = BLOCK_S if until is None else until - time.monotonic()
            try:
                result = await self._ended(queue)
                if result is not None:
                    return answer(result)
                if left_s <= 0:
                    raise ResultTimeout(self.id, timeout_s=timeout or 0.0)
                entries = await queue.wait_for_events(self.id, after=last, block_s=min(left_s, BLOCK_S))
                if entries:
                    last = entries[-1][0]
                else:
                    await queue.run(ops.tick())
            except RedisUnavailable as error:
                if left_s <= 0:
                    raise ResultTimeout(self.id, timeout_s=timeout or 0.0) from error
                await asyncio.sleep(min(patience.delay_s(error), left_s))
                continue
            patience.answered()

    async def _ended(self, queue: AsyncJobQueue) -> Result | None:
        """The result, if the job has ended. Raises JobGone."""
        row = await queue.run_row(self.id)
        if row is None:
            raise await queue.absence(self.id)
        if not row.state.ended:
            return None
        document = await queue.result(self.id)
        return build_result(self.id, row, document, [] if document is not None else await queue.events(self.id))

    async def cancel(self) -> JobState:
        """End the job if it has not ended; see `Job.cancel`."""
        queue = await self._queue()
        state = await queue.run(ops.cancel(self.id))
        if state is None:
            raise await queue.absence(self.id)
        return state
