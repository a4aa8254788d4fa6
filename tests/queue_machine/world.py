"""The server, its clock, and one call: sent, checked, sometimes sent again as after a lost reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from redis.exceptions import ResponseError

from headpond.connections import RedisAddress, script_key, server_id
from headpond.keys import queue_keys
from headpond.operations import Operation, hello
from headpond.queue import Server
from headpond.scripts import WAITS, Script, load_script
from headpond_workers.supervision.embedded_valkey import ValkeyProcess
from queue_machine.model import QUEUE
from queue_machine.snapshot import SCRIPT, Snapshot, parse

T = TypeVar("T")
START_MS = 1_800_000_000_000


@dataclass(slots=True)
class Clock:
    """The server's time as the machine tells it, ms."""

    now_ms: int = START_MS

    def __call__(self) -> int:
        return self.now_ms


@dataclass(frozen=True, slots=True)
class Sent(Generic[T]):
    """A call that was answered. after: the moment after it. again, after_again: of its repeat, if there was one."""

    answer: T
    after: Snapshot
    again: T | None
    after_again: Snapshot | None


@dataclass(slots=True)
class World:
    """One server for one machine after the other. scripts: where scripts come from; mutations put others there."""

    valkey: ValkeyProcess
    scripts: Callable[[str], Script] = load_script
    clock: Clock = field(default_factory=Clock)
    calls: int = 0
    _server: Server | None = None
    _snapshot_sha: str = ""
    server_id: str = ""

    @property
    def server(self) -> Server:
        if self._server is None:
            self._server = Server(RedisAddress(self.valkey.url, "the queue machine"), clock=self.clock)
        return self._server

    def begin(self, *, storage: bool) -> None:
        """An empty server, and its queue met."""
        self.clock.now_ms = START_MS
        self.server.greeter.queues.clear()
        self.server.redis.flushdb()
        self.server.greeter.queues[QUEUE] = storage
        self.know_server()
        self.send(hello(self.server_id, storage=storage), seen=[], again=False)

    def know_server(self) -> None:
        """After a start of the server: load the scripts, and learn who it is. The connection's greeting says hello."""
        client: Any = self.server.redis
        self._snapshot_sha = client.script_load(SCRIPT)
        self.server_id = server_id({**client.info("server"), **client.info("replication")})

    def send(
        self, operation: Operation[T], *, seen: list[str], again: bool, other: Operation[T] | None = None
    ) -> Sent[T]:
        """Send a call, and read all that the server holds then. again: the reply was lost, so the same is sent once
        more, or `other`: the same call as a client makes it anew."""
        pipe: Any = self.server.redis.pipeline(transaction=False)
        for each in [operation, other or operation][: 2 if again else 1]:
            script = self.scripts(each.script)
            now = str(self.clock.now_ms)
            pipe.execute_command("EVALSHA", script.sha, 1, script_key(QUEUE), now, *each.args)
            self._read(pipe, seen)
        self.calls += 1 + again
        replies = pipe.execute(raise_on_error=False)
        if any(str(reply).startswith("NOSCRIPT") or "No matching script" in str(reply) for reply in replies):
            # It ran nothing: no script of this call was known.
            client: Any = self.server.redis
            client.script_load(self.scripts(operation.script).source)
            return self.send(operation, seen=seen, again=again, other=other)
        for reply in replies:
            if isinstance(reply, Exception):
                raise AssertionError(f"{operation.script} {operation.args!r} was refused") from reply
        answers = [operation.parse(reply) for reply in replies[::2]]
        moments = [parse(reply) for reply in replies[1::2]]
        return Sent(answers[0], moments[0], answers[1] if again else None, moments[1] if again else None)

    def send_in_vain(self, operation: Operation[Any]) -> None:
        """A call that has to wait for what storage holds."""
        script, client = self.scripts(operation.script), cast("Any", self.server.redis)
        call = (script.source, 1, script_key(QUEUE), str(self.clock.now_ms), *operation.args)
        refusal = ""
        try:
            client.execute_command("EVAL", *call)
        except ResponseError as error:
            refusal = str(error)
        assert refusal == f"{WAITS}reconciling", f"{operation.script} {operation.args!r} was told {refusal!r}"

    def look(self, seen: list[str]) -> Snapshot:
        pipe: Any = self.server.redis.pipeline(transaction=False)
        self._read(pipe, seen)
        return parse(pipe.execute()[0])

    def _read(self, pipe: Any, seen: list[str]) -> None:
        pipe.execute_command("EVALSHA", self._snapshot_sha, 0, queue_keys(QUEUE).prefix, *seen)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
