"""One queue on the server: the only synchronous caller of the scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from headpond import names, switching
from headpond import operations as ops
from headpond.connections import (
    UNREACHABLE,
    Greeter,
    RedisAddress,
    connect,
    connect_blocking,
    script_key,
    server_id,
)
from headpond.errors import HeadpondError, QueueError
from headpond.jobs import JobState
from headpond.keys import MODELS, lanes_of, queue_keys
from headpond.models import Holder, ModelRow, pack_model, unpack_model
from headpond.queue_reads import QueueReads
from headpond.script_lines import ScriptLines
from headpond.scripts import NOT_MET, load_script
from headpond.waiter import Waiter
from headpond.workers import WorkerRow, pack_worker

T = TypeVar("T")


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


class JobQueue(QueueReads):
    """The queue of one model, or of one kind of background work. Thread-safe."""

    __slots__ = ()

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

    def bury(self, boot: str) -> None:
        """A worker process died, for sure: what it held comes back at once, as at the end of its leases."""
        self.run(ops.unregister(boot, killed=True))

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
