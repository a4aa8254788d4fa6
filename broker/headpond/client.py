"""The producer's side: submit jobs, read their tokens as they come, wait for results."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from headpond.commits import SessionRow
from headpond.connections import BLOCK_S, Patience, find_redis
from headpond.durability import TIMEOUT_S, CommitWatch, Durability, no_storage, parse_durability
from headpond.errors import RedisUnavailable, ResultTimeout, UnknownModel
from headpond.events import ended_result, read_stream
from headpond.jobs import Chunk, JobId, JobState, Priority, Result
from headpond.models import ModelRow
from headpond.operations import Submitted
from headpond.operations import submit as submit_operation
from headpond.queue import JobQueue, Server
from headpond.results import answer
from headpond.sampling import SamplingOptions
from headpond.sessions import Session
from headpond.submission import (
    WINDOW_CHUNKS,
    Submission,
    chunked,
    is_refused,
    prepare,
    prepare_many,
    raise_refusals,
)


class Client:
    """A connection of one producer. Thread-safe; opens sockets at first use.

    url: of Redis or Valkey. None: HEADPOND_REDIS_URL, else `[redis] url` of the nearest headpond.toml upwards,
    else the deployment that `headpond up` runs beside that file. Raises ConfigError if none says.
    """

    def __init__(self, url: str | None = None) -> None:
        self._server = Server(find_redis(url))
        self._models: dict[str, ModelRow] = {}

    def models(self) -> dict[str, ModelRow]:
        """Every model that is configured on this server, by name. Raises RedisUnavailable."""
        self._models = self._server.models()
        return dict(self._models)

    def submit(
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
    ) -> Job:
        """Enqueue one job; it is safe once this returns.

        model: its name; name@version waits for a worker that serves this very version.
        prompt: shown to the model as one user message; or messages: [{"role", "content"}, ...].
        id: `<model>/<slug>`, the idempotency key: the same request under the same id is the same job.
        seed: None lets it follow from the id. stop, stop_token_ids: end the answer, and are no part of it.
        adapter: a LoRA adapter by its name in the model's table. delay, deadline: seconds from now.
        priority: "interactive", "normal" or "batch". tenant: for whom; tenants of one priority take turns by what
        their jobs cost, in tokens.
        response_format: what the answer must look like, as in OpenAI's API: {"type": "json_object"}, or {"type":
        "json_schema", "json_schema": {"schema": {...}}}; or grammar: GBNF, whose rule `root` it must match.
        sampling: any other setting of `headpond.sampling.Sampling`, such as top_k=40. A setting, format or grammar
        that the model's engine lacks fails the job.
        durability: "queue" returns once Redis has the job; "storage" once S3 has it too, waiting for that at most
        durability_timeout seconds.
        session: a conversation of this model by its name, which begins with its first turn: the job then holds the new
        turn alone, and is shown to the model after all turns before it. Jobs of one session run in order.
        parent: the head that the session must have, a commit's id or "root". policy: "migrate" or "pin"; see
        `headpond.turns.Policy`. A turn that names one sets it for those after it.
        Raises InvalidRequest, UnknownModel, IdConflict, QueueFull, SessionConflict, SessionFull, RedisUnavailable,
        DurabilityUnknown.
        """
        stored_within_s = self._wait_for_storage(model, durability, durability_timeout)
        known = self._known(model)
        submission = prepare(
            model, prompt, messages, known=known, id=id, delay=delay, deadline=deadline, priority=priority,
            tenant=tenant, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop,
            stop_token_ids=stop_token_ids, adapter=adapter, response_format=response_format, grammar=grammar,
            session=session, parent=parent, policy=policy, **sampling,
        )  # fmt: skip
        return self._enqueue(submission, stored_within_s)

    def embed(
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
    ) -> Job:
        """Enqueue one job that embeds texts: its result has `embeddings`, one vector a text, and no tokens.

        texts: one, or 1 to 1024 of them. The other arguments are those of `submit`. Raises what `submit` raises.
        """
        stored_within_s = self._wait_for_storage(model, durability, durability_timeout)
        submission = prepare(
            model, None, None, known=self._known(model), id=id, delay=delay, deadline=deadline, priority=priority,
            tenant=tenant, input=texts,
        )  # fmt: skip
        return self._enqueue(submission, stored_within_s)

    def _enqueue(self, submission: Submission, stored_within_s: float | None) -> Job:
        queue = self._queue(submission.id.model)
        watch = None if stored_within_s is None else CommitWatch(queue, timeout_s=stored_within_s)
        (taken,) = queue.submit([submission.entry], max_queued=submission.max_queued)
        if is_refused([taken]):
            raise_refusals([submission], [taken], retry_after_s=queue.retry_after_s(), many=False)
        if watch is not None:
            watch.wait([str(submission.id)])
        return Job(queue, submission.id, submitted=True)

    def submit_many(
        self,
        model: str,
        requests: Sequence[Mapping[str, Any]],
        *,
        durability: Durability | str = Durability.QUEUE,
        durability_timeout: float = TIMEOUT_S,
        **common: Any,
    ) -> list[Job]:
        """Enqueue many jobs in few round trips. Each is safe once this returns; the order is that of `requests`.

        requests: arguments of `submit` for each job, such as {"prompt": "...", "id": "chat/order-17"}. common:
        arguments of all that do not say otherwise. All are checked before the first is sent. durability: of all
        together; if the queue did not take all of them, storage is not waited for.
        Raises ManyRefused if the queue did not take all of them, and what `submit` raises but for IdConflict and
        QueueFull. If it raises RedisUnavailable, any part may have been enqueued: repeat it with ids.
        """
        stored_within_s = self._wait_for_storage(model, durability, durability_timeout)
        submissions = prepare_many(model, requests, common, known=self._known(model))
        if not submissions:
            return []
        queue = self._queue(submissions[0].id.model)
        watch = None if stored_within_s is None else CommitWatch(queue, timeout_s=stored_within_s)
        bound = submissions[0].max_queued
        answers: list[Submitted] = []
        chunks = [submit_operation(chunk, max_queued=bound) for chunk in chunked([s.entry for s in submissions])]
        for at in range(0, len(chunks), WINDOW_CHUNKS):
            for chunk_answers in queue.run_all(chunks[at : at + WINDOW_CHUNKS]):
                answers += chunk_answers
        if is_refused(answers):
            raise_refusals(submissions, answers, retry_after_s=queue.retry_after_s(), many=True)
        if watch is not None:
            watch.wait([str(submission.id) for submission in submissions])
        return [Job(queue, submission.id, submitted=True) for submission in submissions]

    def _known(self, model: str) -> dict[str, ModelRow]:
        """The configured models, asked for anew if `model` is not among those known."""
        if model.partition("@")[0] not in self._models:
            self.models()
        return self._models

    def _wait_for_storage(self, model: str, durability: str, timeout_s: float) -> float | None:
        """Seconds to wait for storage after a submit; None not to. Raises InvalidRequest, also where there is none."""
        stored_within_s = parse_durability(durability, timeout_s)
        name = model.partition("@")[0]
        if stored_within_s is None or name not in self._known(model) or self._models[name].storage:
            return stored_within_s
        row = self.models().get(name)  # Storage may have been added since the models were read.
        if row is not None and not row.storage:
            raise no_storage(name)
        return stored_within_s

    def job(self, id: str) -> Job:
        """The handle of a job that was submitted before, here or elsewhere. Raises InvalidRequest, UnknownModel,
        RedisUnavailable."""
        job_id = JobId.parse(id)
        return Job(self._queue(job_id.model), job_id)

    def session(self, name: str, *, model: str | None = None) -> Session:
        """The handle of a session, which begins with its first turn: `session("chat/s1")`, or `session("s1",
        model="chat")`. With neither it is the one model's that has a session of that name.

        Raises InvalidRequest.
        """
        return Session(self, name, model=model)

    def sessions(self, model: str, *, limit: int = 1000) -> list[SessionRow]:
        """Sessions of a model that have a commit, or had a job; those that changed last come first.

        Raises UnknownModel, RedisUnavailable.
        """
        queue = self._queue(model)
        rows = [queue.session(name) for name in queue.session_names(limit=limit)]
        return [row for row in rows if row is not None]

    def _queue(self, model: str) -> JobQueue:
        # Asking for an unknown name must not make a queue of it.
        row = self._models.get(model) or self.models().get(model)
        if row is None:
            raise UnknownModel(model, self._models)
        return self._server.queue(model, storage=row.storage)

    def close(self) -> None:
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Job:
    """One job of a queue. Holds no state of its own: any process may make one from the id."""

    def __init__(self, queue: JobQueue, job_id: JobId, *, submitted: bool = False) -> None:
        """submitted: this handle comes from the submit itself, so the job's first stream need not ask for it."""
        self._submitted = submitted
        self._queue = queue
        self._id = job_id

    @property
    def id(self) -> str:
        """`<model>/<slug>`"""
        return str(self._id)

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def state(self) -> JobState:
        """Raises JobGone."""
        row = self._queue.run_row(self.id)
        if row is None:
            raise self._queue.absence(self.id)
        return row.state

    def served(self) -> bool:
        """Whether a worker of the job's model was heard of lately. Raises RedisUnavailable."""
        return bool(self._queue.living())

    def stream(self, after: int = 0) -> Iterator[Chunk]:
        """Tokens from an offset on, as they are made, until the job ends however it ends.

        after: how many tokens of the job the caller has; the stream begins with the next one.
        Raises JobGone, RedisUnavailable.
        """
        known, self._submitted = self._submitted, False
        return read_stream(self._queue, self.id, after=after, known=known)

    def result(self, timeout: float | None = None) -> Result:
        """Wait until the job has ended, at most `timeout` seconds.

        Raises JobFailed, JobCancelled, JobExpired, JobQuarantined (each with the partial result), ResultTimeout,
        JobGone, RedisUnavailable.
        """
        until = None if timeout is None else time.monotonic() + timeout
        last, patience = self._queue.last_event(self.id), Patience()
        while True:
            left_s = BLOCK_S if until is None else until - time.monotonic()
            try:
                result = ended_result(self._queue, self.id)
                if result is not None:
                    return answer(result)
                if left_s <= 0:
                    raise ResultTimeout(self.id, timeout_s=timeout or 0.0)
                last = self._await_end(last, min(left_s, BLOCK_S))
            except RedisUnavailable as error:
                if left_s <= 0:
                    raise ResultTimeout(self.id, timeout_s=timeout or 0.0) from error
                time.sleep(min(patience.delay_s(error), left_s))
                continue
            patience.answered()

    def _await_end(self, last: str, block_s: float) -> str:
        """Read on until the job's last event, or for block_s."""
        until = time.monotonic() + block_s
        while (left_s := until - time.monotonic()) > 0:
            entries = self._queue.wait_for_events(self.id, after=last, block_s=left_s)
            if entries:
                last = entries[-1][0]
                if b"e" in entries[-1][1]:
                    return last
        self._queue.tick()
        return last

    def cancel(self) -> JobState:
        """End the job if it has not ended. Returns the state that it is in now. Raises JobGone."""
        state = self._queue.cancel(self.id)
        if state is None:
            raise self._queue.absence(self.id)
        return state
