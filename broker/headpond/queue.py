"""One queue on the server: the only synchronous caller of the scripts, and the reads that go with them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from headpond import operations as ops
from headpond.connections import (
    BLOCK_S,
    UNREACHABLE,
    Greeter,
    RedisAddress,
    connect,
    connect_blocking,
    server_id,
    static_keys,
)
from headpond.errors import HeadpondError, MalformedDocument, QueueError
from headpond.jobs import JobState
from headpond.keys import BAND_NORMAL, LANE_ANY, MODELS, queue_keys
from headpond.models import ModelRow, pack_model, unpack_model
from headpond.replies import StreamEntry, parse_entries, parse_read
from headpond.scripts import NOT_MET, STATIC_KEYS, load_script
from headpond.wire import RunRow, unpack_run
from headpond.workers import WorkerRow, pack_worker, unpack_workers

logger = logging.getLogger(__name__)

T = TypeVar("T")
INTERRUPT_S = 1.0


@dataclass(frozen=True, slots=True)
class Depths:
    """How many jobs of one queue stand where."""

    ready: int
    delayed: int
    running: int
    dead: int


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One durable change. kind: 'submit' or 'end'."""

    journal_id: str
    kind: str
    job_id: str


def _send(client: Any, *command: Any, **options: Any) -> Any:
    # redis-py's own method has no annotations, so its client passes as Any.
    return client.execute_command(*command, **options)


class Server:
    """A Redis or Valkey server as one owner uses it: connections, greetings, scripts. Thread-safe."""

    def __init__(self, address: RedisAddress, *, clock: Callable[[], int] | None = None) -> None:
        """clock: ms, for tests that move time; None is the server's own clock."""
        self.address = address
        self.greeter = Greeter(clock=clock)
        self.redis = connect(address, self.greeter)
        self.blocking = connect_blocking(address)
        self._clock = clock

    def queue(self, name: str, *, storage: bool = False) -> JobQueue:
        """Meet a queue. Raises RedisUnavailable."""
        known = self.greeter.queues.get(name)
        if known is None or (storage and not known):
            self.greeter.queues[name] = storage
            try:
                self.hello(name)
            except HeadpondError:
                # Not met: the next call must try again.
                del self.greeter.queues[name]
                raise
        return JobQueue(self, name)

    def hello(self, name: str) -> None:
        try:
            info = {**self.redis.info("server"), **self.redis.info("replication")}
        except UNREACHABLE as error:
            raise self.address.unavailable(error) from error
        self.run(name, ops.hello(server_id(info), storage=self.greeter.queues.get(name, False)))

    def run(self, name: str, operation: ops.Operation[T]) -> T:
        """Send one operation. Raises RedisUnavailable, QueueError."""
        now = str(self._clock()) if self._clock else ""
        script = load_script(operation.script)
        call = (len(STATIC_KEYS), *static_keys(name), now, *operation.args)
        try:
            try:
                reply = _send(self.redis, "EVALSHA", script.sha, *call)
            except NoScriptError:
                reply = _send(self.redis, "EVAL", script.source, *call)
        except UNREACHABLE as error:
            raise self.address.unavailable(error) from error
        except ResponseError as error:
            if operation.script != "hello" and str(error).startswith(NOT_MET):
                # The data were wiped under a living connection: meet the queue anew.
                self.hello(name)
                return self.run(name, operation)
            raise QueueError(f"{operation.script} on queue '{name}' was refused: {error}") from error
        except RedisError as error:
            raise QueueError(f"{operation.script} on queue '{name}' failed: {error}") from error
        return operation.parse(reply)

    def run_all(self, name: str, operations: Sequence[ops.Operation[T]]) -> list[T]:
        """Send several operations at once; each is atomic by itself. Raises RedisUnavailable, QueueError.

        All of them may have run when this raises: each may be repeated.
        """
        if len(operations) == 1:
            return [self.run(name, operations[0])]
        now = str(self._clock()) if self._clock else ""
        pipe = self.redis.pipeline(transaction=False)
        for operation in operations:
            call = (len(STATIC_KEYS), *static_keys(name), now, *operation.args)
            _send(pipe, "EVALSHA", load_script(operation.script).sha, *call)
        try:
            replies = pipe.execute(raise_on_error=False)
        except UNREACHABLE as error:
            raise self.address.unavailable(error) from error
        except RedisError as error:
            raise QueueError(f"{len(operations)} calls on queue '{name}' failed: {error}") from error
        return [
            # Whatever was refused is asked again by itself: that sends a script that the server does not know.
            self.run(name, operation) if isinstance(reply, Exception) else operation.parse(reply)
            for operation, reply in zip(operations, replies, strict=True)
        ]

    def read(self, *command: Any) -> Any:
        """One plain command that only reads, or that stands alone. Raises RedisUnavailable, QueueError."""
        return self._plain(self.redis, command)

    def read_blocking(self, *command: Any) -> Any:
        return self._plain(self.blocking, command)

    def _plain(self, client: redis.Redis, command: tuple[Any, ...]) -> Any:
        try:
            return _send(client, *command)
        except UNREACHABLE as error:
            raise self.address.unavailable(error) from error
        except RedisError as error:
            raise QueueError(f"{command[0]} was refused: {error}") from error

    def models(self) -> dict[str, ModelRow]:
        """The models that are configured on this server, whether or not a worker serves them."""
        rows = cast("dict[bytes, bytes]", self.read("HGETALL", MODELS))
        return {name.decode(): unpack_model(row) for name, row in rows.items()}

    def configure_model(self, name: str, row: ModelRow) -> None:
        """Say that a model is configured here. Raises RedisUnavailable."""
        self.read("HSET", MODELS, name, pack_model(row))

    def close(self) -> None:
        self.redis.close()
        self.blocking.close()


@dataclass(slots=True)
class JobQueue:
    """The queue of one model, or of one kind of background work. Thread-safe."""

    server: Server
    name: str

    def run(self, operation: ops.Operation[T]) -> T:
        return self.server.run(self.name, operation)

    def submit(self, entries: Sequence[ops.Entry], *, max_queued: int = 0) -> list[ops.Submitted]:
        return self.run(ops.submit(entries, max_queued=max_queued))

    def claim(
        self, boot: str, *, seq: int, nonce: str, slots: int, fingerprint: str = "", lease_s: float = 0.0
    ) -> ops.Claimed:
        return self.run(ops.claim(boot, seq=seq, nonce=nonce, slots=slots, fingerprint=fingerprint, lease_s=lease_s))

    def renew(self, boot: str, *, last_seq: int, row: bytes, pairs: Sequence[tuple[str, str]]) -> list[ops.LeaseStatus]:
        return self.run(ops.renew(boot, last_seq=last_seq, row=row, pairs=pairs))

    def append(self, batch: Sequence[ops.Append]) -> list[ops.Outcome]:
        return self.run(ops.append(batch))

    def park(self, pairs: Sequence[tuple[str, str]], *, strike: bool) -> list[ops.LeaseStatus]:
        return self.run(ops.park(pairs, strike=strike)) if pairs else []

    def finish(
        self, job_id: str, fence: str, *, offset: int, state: JobState, result: bytes, reason: str = ""
    ) -> ops.Outcome:
        return self.run(ops.finish(job_id, fence, offset=offset, state=state, result=result, reason=reason))

    def finish_all(self, finishes: Sequence[ops.Operation[ops.Outcome]]) -> list[ops.Outcome]:
        """Several `operations.finish` in one round trip."""
        return self.server.run_all(self.name, finishes)

    def cancel(self, job_id: str) -> JobState | None:
        return self.run(ops.cancel(job_id))

    def tick(self) -> float | None:
        return self.run(ops.tick())

    def waiter(self) -> Waiter:
        """What one consumer blocks on."""
        return Waiter(self.server, queue_keys(self.name).wake(LANE_ANY))

    def ids(self) -> list[str]:
        """Ids of all jobs that the server holds, ended ones included."""
        return [raw.decode() for raw in self.server.read("HKEYS", queue_keys(self.name).named("run"))]

    def register(self, row: WorkerRow, *, lease_s: float, retention_s: float, fingerprint: str = "") -> None:
        """Say what a worker process is, and drop the row of the one that it replaces."""
        self.run(
            ops.register(
                row.boot, host=row.host, instance=row.instance, row=pack_worker(row), lease_s=lease_s,
                retention_s=retention_s, version=row.version, fingerprint=fingerprint,
            )
        )  # fmt: skip

    def unregister(self, boot: str) -> None:
        """A worker process leaves; what it holds comes back without a strike."""
        self.run(ops.unregister(boot))

    def run_row(self, job_id: str) -> RunRow | None:
        raw = self.server.read("HGET", queue_keys(self.name).named("run"), job_id)
        return None if raw is None else unpack_run(raw)

    def data(self, job_id: str) -> bytes | None:
        return cast("bytes | None", self.server.read("HGET", queue_keys(self.name).named("data"), job_id))

    def result(self, job_id: str) -> bytes | None:
        return cast("bytes | None", self.server.read("HGET", queue_keys(self.name).named("result"), job_id))

    def events(self, job_id: str, *, after: str = "-") -> list[StreamEntry]:
        """All entries of a job's stream, or those after an entry id."""
        start = after if after == "-" else f"({after}"
        return parse_entries(self.server.read("XRANGE", queue_keys(self.name).events(job_id), start, "+"))

    def last_event(self, job_id: str) -> str:
        found = self.server.read("XREVRANGE", queue_keys(self.name).events(job_id), "+", "-", "COUNT", 1)
        return parse_entries(found)[0][0] if found else "0-0"

    def wait_for_events(self, job_id: str, *, after: str, block_s: float) -> list[StreamEntry]:
        """Entries after an id, waiting up to block_s for the first."""
        block_ms = max(1, round(min(block_s, BLOCK_S) * 1000))
        key = queue_keys(self.name).events(job_id)
        found = self.server.read_blocking("XREAD", "BLOCK", block_ms, "COUNT", 512, "STREAMS", key, after)
        return parse_read(found)

    def depths(self) -> Depths:
        keys = queue_keys(self.name)
        pipe = self.server.redis.pipeline(transaction=False)
        for key in (keys.ready(LANE_ANY, BAND_NORMAL), *map(keys.named, ("delayed", "leases", "dead"))):
            pipe.zcard(key)
        try:
            return Depths(*pipe.execute())
        except UNREACHABLE as error:
            raise self.server.address.unavailable(error) from error

    def workers(self) -> list[WorkerRow]:
        """Rows of the processes that serve, or served, this queue."""
        return unpack_workers(self.name, self.server.read("HGETALL", queue_keys(self.name).named("workers")))

    def meta(self) -> dict[str, str]:
        raw = cast("dict[bytes, bytes]", self.server.read("HGETALL", queue_keys(self.name).named("meta")))
        return {key.decode(): value.decode() for key, value in raw.items()}

    def journal(self, *, limit: int) -> list[JournalEntry]:
        """The oldest entries of the journal."""
        found = self.server.read("XRANGE", queue_keys(self.name).named("journal"), "-", "+", "COUNT", limit)
        entries = []
        for journal_id, fields in parse_entries(found):
            if b"k" not in fields or b"i" not in fields:
                raise MalformedDocument("journal entry", f"{journal_id} lacks its kind or id")
            entries.append(JournalEntry(journal_id, fields[b"k"].decode(), fields[b"i"].decode()))
        return entries

    def journal_length(self) -> int:
        return int(self.server.read("XLEN", queue_keys(self.name).named("journal")))


class Waiter:
    """One consumer's blocking connection. `wait` is called by one thread, `interrupt` by any."""

    def __init__(self, server: Server, key: str) -> None:
        self._server, self._key = server, key
        self._redis = connect_blocking(server.address, connections=1)
        self._client_id: int | None = None
        self._waiting = False

    def wait(self, block_s: float, *, unless: Callable[[], bool] = lambda: False) -> bool:
        """Block until the lane may be claimed from, at most block_s. Takes the wake token: claim next.

        unless: what makes a wait needless. Whoever makes it true and then interrupts ends this wait for sure.
        Raises RedisUnavailable.
        """
        self._waiting = True
        try:
            return False if unless() else self._block(block_s)
        finally:
            self._waiting = False

    def _block(self, block_s: float) -> bool:
        try:
            if self._client_id is None:
                self._client_id = int(self._redis.client_id())
            return _send(self._redis, "BLPOP", self._key, max(0.001, min(block_s, BLOCK_S))) is not None
        except UNREACHABLE as error:
            self._client_id = None
            raise self._server.address.unavailable(error) from error
        except ResponseError as error:
            # UNBLOCKED: the server changed its role or moved the slot under a blocked call (Q15).
            logger.info("wait_ended key=%s reason=%s", self._key, error)
            return True

    def interrupt(self) -> None:
        """End a wait that runs now, if the server can be reached."""
        until = time.monotonic() + INTERRUPT_S
        # A wait that is only about to block cannot be ended yet: ask until it is, or is over.
        while self._waiting and time.monotonic() < until:
            try:
                if self._client_id is not None and self._server.redis.client_unblock(self._client_id):
                    return
            except RedisError as error:
                logger.info("unblock_failed reason=%s", error)
                return
            time.sleep(0.002)

    def close(self) -> None:
        self._redis.close()
