"""One queue on the server: the only synchronous caller of the scripts, and the reads that go with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from headpond import names, session_operations, switching, upkeep
from headpond import operations as ops
from headpond.commits import Chain, Commit, SessionRow, unpack_commit, unpack_session
from headpond.connections import (
    BLOCK_S,
    UNREACHABLE,
    Greeter,
    RedisAddress,
    connect,
    connect_blocking,
    script_key,
    server_id,
)
from headpond.errors import HeadpondError, JobGone, MalformedDocument, QueueError, QueueMending
from headpond.jobs import JobState
from headpond.journal_mark import JournalMark
from headpond.keys import MODELS, lanes_of, queue_keys
from headpond.models import Holder, ModelRow, pack_model, unpack_model
from headpond.replies import StreamEntry, parse_entries, parse_read, parse_scores, retry_after_s
from headpond.script_lines import ScriptLines
from headpond.scripts import NOT_MET, load_script
from headpond.spooled import StorageTrouble, parse_trouble
from headpond.waiter import Waiter
from headpond.wire import Attempt, RunRow, unpack_attempts, unpack_run
from headpond.workers import WorkerRow, pack_worker, unpack_workers

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One durable change. kind: 'submit', 'end', 'back', 'drop', 'commit' or 'session'. job_id: of the job, else of the
    commit, or the session's name. at_ms: when it was made. row: of a session, as the change left it; empty if it was
    deleted."""

    journal_id: str
    kind: str
    job_id: str
    at_ms: int = 0
    row: bytes = b""


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
        self._lines = ScriptLines(self.redis)
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
        """Send one operation. Raises RedisUnavailable (QueueMending where it has to wait), QueueError."""
        try:
            return operation.parse(self._evaluate(script_key(name), operation))
        except ResponseError as error:
            if operation.script != "hello" and str(error).startswith(NOT_MET):
                # The data were wiped under a living connection: meet the queue anew.
                self.hello(name)
                return self.run(name, operation)
            raise self.address.refused(operation.script, name, error) from error
        except RedisError as error:
            raise QueueError(f"{operation.script} on queue '{name}' failed: {error}") from error

    def _evaluate(self, key: bytes, operation: ops.Operation[T]) -> Any:
        """The reply of one script on one key. Raises RedisUnavailable, and what redis-py raises for a refusal."""
        now = str(self._clock()) if self._clock else ""
        script = load_script(operation.script)
        call = (1, key, now, *operation.args)
        try:
            try:
                return self._lines.call("EVALSHA", script.sha, *call)
            except NoScriptError:
                return self._lines.call("EVAL", script.source, *call)
        except UNREACHABLE as error:
            raise self.address.unavailable(error) from error

    def run_all(self, name: str, operations: Sequence[ops.Operation[T]]) -> list[T]:
        """Send several operations at once; each is atomic by itself. Raises RedisUnavailable, QueueError.

        All of them may have run when this raises: each may be repeated.
        """
        if len(operations) == 1:
            return [self.run(name, operations[0])]
        now = str(self._clock()) if self._clock else ""
        pipe = self.redis.pipeline(transaction=False)
        for operation in operations:
            call = (1, script_key(name), now, *operation.args)
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

    def now_ms(self) -> int:
        """The clock that scripts go by. Raises RedisUnavailable."""
        if self._clock is not None:
            return self._clock()
        seconds, micros = self.read("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

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
        """Say that a model is configured here, whoever holds its name: for programs that are no deployment.

        Raises RedisUnavailable.
        """
        self.read("HSET", MODELS, name, pack_model(row))

    def hold(self, holder: Holder, rows: Mapping[str, ModelRow], *, where: str, how: names.Hold) -> None:
        """Take the names of models for a deployment, all of them or none.

        where: its configuration, for the error. Raises NameTaken, RedisUnavailable.
        """
        if refused := self._run_names(names.hold(holder, rows, how)):
            raise names.refusal(holder, rows, refused, where=where)

    def release(self, deployment: str, models: Sequence[str]) -> None:
        """Give up names, held by the deployment or not. Raises RedisUnavailable."""
        if models:
            self._run_names(names.release(deployment, models))

    def forget_name(self, model: str, seen: bytes) -> bool:
        """Remove the row of a model if it is still as it was read; False if it is not. Raises RedisUnavailable."""
        return self._run_names(names.forget(model, seen))

    def raw_model(self, model: str) -> bytes | None:
        """A model's row as it stands, for `forget_name`; None without one. Raises RedisUnavailable."""
        return cast("bytes | None", self.read("HGET", MODELS, model))

    def _run_names(self, operation: ops.Operation[T]) -> T:
        try:
            return operation.parse(self._evaluate(MODELS.encode(), operation))
        except RedisError as error:
            raise QueueError(f"{operation.script} on {MODELS} failed: {error}") from error

    def close(self) -> None:
        self._lines.close()
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
        self,
        boot: str,
        *,
        seq: int,
        nonce: str,
        slots: int,
        version: str = "",
        fingerprint: str = "",
        host: str = "",
        lease_s: float = 0.0,
        anew: str = "",
        own_lane: bool = False,
        settle: Sequence[ops.Settlement] = (),
    ) -> ops.Claimed:
        return self.run(
            ops.claim(
                boot, seq=seq, nonce=nonce, slots=slots, version=version, fingerprint=fingerprint, host=host,
                lease_s=lease_s, anew=anew, own_lane=own_lane, settle=settle,
            )
        )  # fmt: skip

    def renew(
        self, boot: str, *, last_seq: int, row: bytes, pairs: Sequence[tuple[str, str]], full_version: str = ""
    ) -> list[ops.LeaseStatus]:
        return self.run(ops.renew(boot, last_seq=last_seq, row=row, pairs=pairs, full_version=full_version))

    def append(self, batch: Sequence[ops.Append], *, full_version: str = "") -> list[ops.Outcome]:
        return self.run(ops.append(batch, full_version=full_version))

    def park(
        self, pairs: Sequence[tuple[str, str]], *, strike: bool = False, reason: str = "put back by its worker"
    ) -> list[ops.LeaseStatus]:
        return self.run(ops.park(pairs, strike=strike, reason=reason)) if pairs else []

    def finish(
        self,
        job_id: str,
        fence: str,
        *,
        offset: int,
        state: JobState,
        result: bytes,
        reason: str = "",
        first_token_s: float | None = None,
        turn: Sequence[ops.Argument] = (),
    ) -> ops.Outcome:
        return self.run(
            ops.finish(
                job_id, fence, offset=offset, state=state, result=result, reason=reason, first_token_s=first_token_s,
                turn=turn,
            )
        )  # fmt: skip

    def run_all(self, operations: Sequence[ops.Operation[T]]) -> list[T]:
        """Several operations in one round trip; see `Server.run_all`."""
        return self.server.run_all(self.name, operations)

    def cancel(self, job_id: str) -> JobState | None:
        return self.run(ops.cancel(job_id))

    def tick(self) -> float | None:
        return self.run(ops.tick())

    def waiter(self, version: str = "") -> Waiter:
        """What one consumer blocks on. version: of the model that it serves."""
        return Waiter(self.server.address, self.server.redis, self.wake_keys(version))

    def wake_keys(self, version: str, *, own_lane: bool = False) -> list[str]:
        """The wake lists of the lanes that a consumer reads; see `keys.lanes_of`."""
        return [queue_keys(self.name).wake(lane) for lane in lanes_of(version, own_lane=own_lane)]

    def notices(self, boot: str) -> Waiter:
        """What a worker blocks on to hear at once of its jobs' ends by others."""
        return Waiter(self.server.address, self.server.redis, [queue_keys(self.name).notice(boot)])

    def ids(self) -> list[str]:
        """Ids of all jobs that the server holds, ended ones included."""
        return [raw.decode() for raw in self.server.read("HKEYS", queue_keys(self.name).named("run"))]

    def register(self, row: WorkerRow, policy: ops.QueuePolicy, *, fingerprint: str = "") -> None:
        """Say what a worker process is, and drop the row of the one that it replaces."""
        self.run(
            ops.register(
                row.boot, host=row.host, instance=row.instance, row=pack_worker(row), version=row.version,
                fingerprint=fingerprint, policy=policy,
            )
        )  # fmt: skip

    def unregister(self, boot: str) -> None:
        """A worker process leaves; what it holds comes back without a strike."""
        self.run(ops.unregister(boot))

    def switch(
        self, *, seq: int, target: str, previous: str = "", trial: str = "", permille: int = 0
    ) -> switching.SwitchReply:
        """Bring the queue's copy of an alias up to date; see `switching.switch`."""
        return self.run(switching.switch(seq=seq, target=target, previous=previous, trial=trial, permille=permille))

    def assign(self, *, boot: str, who: str, version: str, busy: int = 0, loading: str = "") -> switching.Assignment:
        """What a worker of an alias is to serve; see `switching.assign`."""
        return self.run(switching.assign(boot=boot, who=who, version=version, busy=busy, loading=loading))

    def refuse(self, *, who: str, version: str, reason: str) -> None:
        """A version did not load; see `switching.refuse`."""
        self.run(switching.refuse(who=who, version=version, reason=reason))

    def read_switch(self) -> switching.Switch | None:
        """The queue's copy of an alias; None if nobody has said one."""
        return switching.parse_switch(self.server.read("HGETALL", queue_keys(self.name).named("switch")))

    def read_outcomes(self) -> list[switching.Outcome]:
        """How jobs ended while the last trial was on, at most 2,000 of each version."""
        return switching.parse_outcomes(self.server.read("HGETALL", queue_keys(self.name).named("outcomes")))

    def run_row(self, job_id: str) -> RunRow | None:
        raw = self.server.read("HGET", queue_keys(self.name).named("run"), job_id)
        return None if raw is None else unpack_run(raw)

    def session_row(self, name: str) -> bytes | None:
        """A session's row as it is packed; None without one."""
        return cast("bytes | None", self.server.read("HGET", queue_keys(self.name).named("sessions"), name))

    def session(self, name: str) -> SessionRow | None:
        """Raises MalformedDocument."""
        row = self.session_row(name)
        return None if row is None else unpack_session(name, row)

    def session_names(self, *, limit: int) -> list[str]:
        """Those that changed last come first."""
        found = self.server.read("ZREVRANGE", queue_keys(self.name).named("changed"), 0, limit - 1)
        return [name.decode() for name in found]

    def session_jobs(self, name: str) -> list[str]:
        """Ids of the jobs of a session that have not ended, in their order."""
        return [raw.decode() for raw in self.server.read("LRANGE", queue_keys(self.name).session(name), 0, -1)]

    def turn(self, commit_id: str) -> bytes | None:
        """The document of a commit; None if it is not there."""
        return cast("bytes | None", self.server.read("HGET", queue_keys(self.name).named("turns"), commit_id))

    def commit(self, commit_id: str) -> Commit | None:
        """Raises MalformedDocument."""
        document = self.turn(commit_id)
        return None if document is None else unpack_commit(commit_id, document)

    def chain(self, session: str, head: str) -> list[Commit]:
        """The commits up to a head, the first turn first. session: named in errors.

        Raises CommitGone, MalformedDocument.
        """
        chain = Chain(session, head)
        while chain.onward:
            chain.add(self.run(session_operations.chain(chain.onward)))
        return chain.commits()

    def data(self, job_id: str) -> bytes | None:
        return cast("bytes | None", self.server.read("HGET", queue_keys(self.name).named("data"), job_id))

    def result(self, job_id: str) -> bytes | None:
        return cast("bytes | None", self.server.read("HGET", queue_keys(self.name).named("result"), job_id))

    def events(self, job_id: str, *, after: str = "-") -> list[StreamEntry]:
        """All entries of a job's stream, or those after an entry id."""
        start = after if after == "-" else f"({after}"
        return parse_entries(self.server.read("XRANGE", queue_keys(self.name).events(job_id), start, "+"))

    def has_event(self, job_id: str, entry_id: str) -> bool:
        """Whether an entry that was read stands in a job's stream still."""
        return bool(self.server.read("XRANGE", queue_keys(self.name).events(job_id), entry_id, entry_id))

    def last_event(self, job_id: str) -> str:
        found = self.server.read("XREVRANGE", queue_keys(self.name).events(job_id), "+", "-", "COUNT", 1)
        return parse_entries(found)[0][0] if found else "0-0"

    def wait_for_events(self, job_id: str, *, after: str, block_s: float) -> list[StreamEntry]:
        """Entries after an id, waiting up to block_s for the first."""
        block_ms = max(1, round(min(block_s, BLOCK_S) * 1000))
        key = queue_keys(self.name).events(job_id)
        found = self.server.read_blocking("XREAD", "BLOCK", block_ms, "COUNT", 512, "STREAMS", key, after)
        return parse_read(found)

    def attempts(self, job_id: str) -> tuple[Attempt, ...]:
        """The leases of a job that ended without its end, oldest first; the latest 32 of them."""
        raw = self.server.read("HGET", queue_keys(self.name).named("attempts"), job_id)
        return () if raw is None else unpack_attempts(raw)

    def dead(self, *, limit: int = 1000) -> list[tuple[str, int]]:
        """Ids of quarantined jobs with the time of their end in ms, the latest first."""
        found = self.server.read("ZREVRANGE", queue_keys(self.name).named("dead"), 0, limit - 1, "WITHSCORES")
        return parse_scores(found)

    def depths(self) -> upkeep.Depths:
        return self.run(upkeep.depths())

    def retry_after_s(self) -> float:
        """When a place in a full queue may be free: the usual time between two ends of late."""
        raw = self.server.read("HMGET", queue_keys(self.name).named("meta"), "end_gap_ms")
        return retry_after_s(raw[0])

    def workers(self) -> list[WorkerRow]:
        """Rows of the processes that serve, or served, this queue."""
        return unpack_workers(self.name, self.server.read("HGETALL", queue_keys(self.name).named("workers")))

    def packed(self, name: str, ids: Sequence[str]) -> list[bytes | None]:
        """What a hash of this queue (`data`, `run`, `result`) holds of some ids, as it is packed."""
        return cast("list[bytes | None]", self.server.read("HMGET", queue_keys(self.name).named(name), *ids))

    def times(self, name: str, ids: Sequence[str]) -> list[int]:
        """The times of some ids in a zset of this queue (`delayed`, `deadlines`), in ms; 0 where one is not in it."""
        found = self.server.read("ZMSCORE", queue_keys(self.name).named(name), *ids)
        return [0 if score is None else int(float(score)) for score in found]

    def leased(self) -> list[str]:
        """Ids of the jobs that run."""
        return [raw.decode() for raw in self.server.read("ZRANGE", queue_keys(self.name).named("leases"), 0, -1)]

    def absence(self, job_id: str) -> JobGone | QueueMending:
        """Why the server does not hold a job: it is gone, or storage may have it and it is not back yet."""
        state = self.server.read("HGET", queue_keys(self.name).named("meta"), "state")
        return self.server.address.absence(job_id, self.name, state)

    def meta(self) -> dict[str, str]:
        raw = cast("dict[bytes, bytes]", self.server.read("HGETALL", queue_keys(self.name).named("meta")))
        return {key.decode(): value.decode() for key, value in raw.items()}

    def tenant_retention(self) -> dict[str, str]:
        """Tenants that have times of their own: in Redis, in storage, of sessions; ms, as one text."""
        raw = cast("dict[bytes, bytes]", self.server.read("HGETALL", queue_keys(self.name).named("retention")))
        return {tenant.decode(): times.decode() for tenant, times in raw.items()}

    def journal(self, *, limit: int) -> list[JournalEntry]:
        """The oldest entries of the journal."""
        found = self.server.read("XRANGE", queue_keys(self.name).named("journal"), "-", "+", "COUNT", limit)
        entries = []
        for journal_id, fields in parse_entries(found):
            if not {b"k", b"i", b"t"} <= fields.keys():
                raise MalformedDocument("journal entry", f"{journal_id} lacks its kind, id or time")
            kind, name, at_ms = (fields[field].decode() for field in (b"k", b"i", b"t"))
            if not at_ms.isdecimal():
                raise MalformedDocument("journal entry", f"{journal_id} has no time")
            entries.append(JournalEntry(journal_id, kind, name, int(at_ms), fields.get(b"r", b"")))
        return entries

    def journal_length(self) -> int:
        return int(self.server.read("XLEN", queue_keys(self.name).named("journal")))

    def storage_trouble(self) -> StorageTrouble | None:
        """What of the journal storage lacks, and since when; None while it can be reached and nothing is spooled."""
        key = queue_keys(self.name).named("meta")
        return parse_trouble(*self.server.read("HMGET", key, "storage_away", "spool"))

    def journal_mark(self) -> JournalMark:
        """Where the journal ends. What was accepted before the call is at or before that."""
        keys = queue_keys(self.name)
        # In this order: what has left the journal by then is in storage, or in the spool that meta names afterwards.
        last = parse_entries(self.server.read("XREVRANGE", keys.named("journal"), "+", "-", "COUNT", 1))
        inc, spool = self.server.read("HMGET", keys.named("meta"), "inc", "spool")
        return JournalMark.of(inc, last, spool)

    def wait_for_commits(self, *, after: str, block_s: float) -> list[str]:
        """Journal ids after one up to which storage has the journal, waiting up to block_s for the first."""
        block_ms = max(1, round(min(block_s, BLOCK_S) * 1000))
        key = queue_keys(self.name).named("commits")
        found = self.server.read_blocking("XREAD", "BLOCK", block_ms, "STREAMS", key, after)
        return [journal_id for journal_id, _ in parse_read(found)]
