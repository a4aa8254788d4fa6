"""The asynchronous twin of headpond.queue, for what a producer needs of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar, cast

import redis.asyncio
from redis.exceptions import NoScriptError, RedisError, ResponseError

from headpond import operations as ops
from headpond import session_operations
from headpond.commits import Chain, Commit, SessionRow, unpack_commit, unpack_session
from headpond.connections import (
    BLOCK_S,
    UNREACHABLE,
    Greeter,
    RedisAddress,
    connect_async,
    connect_async_blocking,
    script_key,
    server_id,
)
from headpond.errors import HeadpondError, JobGone, QueueError, QueueMending
from headpond.journal_mark import JournalMark
from headpond.keys import MODELS, queue_keys
from headpond.models import ModelRow, unpack_model
from headpond.replies import StreamEntry, parse_entries, parse_read, retry_after_s
from headpond.scripts import NOT_MET, load_script
from headpond.wire import RunRow, unpack_run
from headpond.workers import WorkerRow, living, unpack_workers

T = TypeVar("T")


class AsyncServer:
    """A Redis or Valkey server as one asyncio program uses it. For one event loop."""

    def __init__(self, address: RedisAddress) -> None:
        self.address = address
        self.greeter = Greeter()
        self.redis = connect_async(address, self.greeter)
        self.blocking = connect_async_blocking(address)

    async def queue(self, name: str, *, storage: bool = False) -> AsyncJobQueue:
        known = self.greeter.queues.get(name)
        if known is None or (storage and not known):
            self.greeter.queues[name] = storage
            try:
                await self.hello(name)
            except HeadpondError:
                del self.greeter.queues[name]
                raise
        return AsyncJobQueue(self, name)

    async def hello(self, name: str) -> None:
        info = {**await self.read("INFO", "server"), **await self.read("INFO", "replication")}
        await self.run(name, ops.hello(server_id(info), storage=self.greeter.queues.get(name, False)))

    async def run(self, name: str, operation: ops.Operation[T]) -> T:
        """Send one operation. Raises RedisUnavailable, QueueError."""
        script = load_script(operation.script)
        call = (1, script_key(name), "", *operation.args)
        try:
            try:
                reply = await self._send(self.redis, "EVALSHA", script.sha, *call)
            except NoScriptError:
                reply = await self._send(self.redis, "EVAL", script.source, *call)
        except ResponseError as error:
            if operation.script != "hello" and str(error).startswith(NOT_MET):
                await self.hello(name)
                return await self.run(name, operation)
            raise self.address.refused(operation.script, name, error) from error
        return operation.parse(reply)

    async def read(self, *command: Any) -> Any:
        try:
            return await self._send(self.redis, *command)
        except ResponseError as error:
            raise QueueError(f"{command[0]} was refused: {error}") from error

    async def read_blocking(self, *command: Any) -> Any:
        try:
            return await self._send(self.blocking, *command)
        except ResponseError as error:
            raise QueueError(f"{command[0]} was refused: {error}") from error

    async def _send(self, client: redis.asyncio.Redis, *command: Any, **options: Any) -> Any:
        """Raises RedisUnavailable; a refusal (ResponseError) passes, for the caller knows what it means."""
        try:
            return await client.execute_command(*command, **options)  # type: ignore[no-untyped-call]
        except UNREACHABLE as error:
            raise self.address.unavailable(error) from error
        except ResponseError:
            raise
        except RedisError as error:
            raise QueueError(f"{command[0]} failed: {error}") from error

    async def models(self) -> dict[str, ModelRow]:
        rows = cast("dict[bytes, bytes]", await self.read("HGETALL", MODELS))
        return {name.decode(): unpack_model(row) for name, row in rows.items()}

    async def close(self) -> None:
        await self.redis.aclose()
        await self.blocking.aclose()


@dataclass(slots=True)
class AsyncJobQueue:
    """The queue of one model, as a producer sees it."""

    server: AsyncServer
    name: str

    async def run(self, operation: ops.Operation[T]) -> T:
        return await self.server.run(self.name, operation)

    async def run_row(self, job_id: str) -> RunRow | None:
        raw = await self.server.read("HGET", queue_keys(self.name).named("run"), job_id)
        return None if raw is None else unpack_run(raw)

    async def living(self) -> list[WorkerRow]:
        """See JobQueue."""
        keys = queue_keys(self.name)
        lease_ms = int(await self.server.read("HGET", keys.named("meta"), "lease_ms") or 0)
        rows = unpack_workers(self.name, await self.server.read("HGETALL", keys.named("workers")))
        seconds, micros = await self.server.read("TIME")
        return living(rows, now_ms=int(seconds) * 1000 + int(micros) // 1000, lease_ms=lease_ms)

    async def absence(self, job_id: str) -> JobGone | QueueMending:
        """See JobQueue."""
        state = await self.server.read("HGET", queue_keys(self.name).named("meta"), "state")
        return self.server.address.absence(job_id, self.name, state)

    async def session(self, name: str) -> SessionRow | None:
        """See JobQueue."""
        row = await self.server.read("HGET", queue_keys(self.name).named("sessions"), name)
        return None if row is None else unpack_session(name, row)

    async def session_names(self, *, limit: int) -> list[str]:
        """See JobQueue."""
        found = await self.server.read("ZREVRANGE", queue_keys(self.name).named("changed"), 0, limit - 1)
        return [name.decode() for name in found]

    async def session_jobs(self, name: str) -> list[str]:
        """See JobQueue."""
        found = await self.server.read("LRANGE", queue_keys(self.name).session(name), 0, -1)
        return [raw.decode() for raw in found]

    async def commit(self, commit_id: str) -> Commit | None:
        """See JobQueue."""
        document = await self.server.read("HGET", queue_keys(self.name).named("turns"), commit_id)
        return None if document is None else unpack_commit(commit_id, document)

    async def chain(self, session: str, head: str) -> list[Commit]:
        """See JobQueue."""
        chain = Chain(session, head)
        while chain.onward:
            chain.add(await self.run(session_operations.chain(chain.onward)))
        return chain.commits()

    async def retry_after_s(self) -> float:
        raw = await self.server.read("HMGET", queue_keys(self.name).named("meta"), "end_gap_ms")
        return retry_after_s(raw[0])

    async def result(self, job_id: str) -> bytes | None:
        return cast("bytes | None", await self.server.read("HGET", queue_keys(self.name).named("result"), job_id))

    async def events(self, job_id: str) -> list[StreamEntry]:
        return parse_entries(await self.server.read("XRANGE", queue_keys(self.name).events(job_id), "-", "+"))

    async def has_event(self, job_id: str, entry_id: str) -> bool:
        """See JobQueue."""
        return bool(await self.server.read("XRANGE", queue_keys(self.name).events(job_id), entry_id, entry_id))

    async def last_event(self, job_id: str) -> str:
        key = queue_keys(self.name).events(job_id)
        found = await self.server.read("XREVRANGE", key, "+", "-", "COUNT", 1)
        return parse_entries(found)[0][0] if found else "0-0"

    async def wait_for_events(self, job_id: str, *, after: str, block_s: float) -> list[StreamEntry]:
        block_ms = max(1, round(min(block_s, BLOCK_S) * 1000))
        key = queue_keys(self.name).events(job_id)
        return parse_read(
            await self.server.read_blocking("XREAD", "BLOCK", block_ms, "COUNT", 512, "STREAMS", key, after)
        )

    async def journal_mark(self) -> JournalMark:
        """Where the journal ends. What was accepted before the call is at or before that."""
        keys = queue_keys(self.name)
        # In this order: what has left the journal by then is in storage, or in the spool that meta names afterwards.
        last = parse_entries(await self.server.read("XREVRANGE", keys.named("journal"), "+", "-", "COUNT", 1))
        inc, spool = await self.server.read("HMGET", keys.named("meta"), "inc", "spool")
        return JournalMark.of(inc, last, spool)

    async def wait_for_commits(self, *, after: str, block_s: float) -> list[str]:
        """Journal ids after one up to which storage has the journal, waiting up to block_s for the first."""
        block_ms = max(1, round(min(block_s, BLOCK_S) * 1000))
        key = queue_keys(self.name).named("commits")
        found = await self.server.read_blocking("XREAD", "BLOCK", block_ms, "STREAMS", key, after)
        return [journal_id for journal_id, _ in parse_read(found)]
