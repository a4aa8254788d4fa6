"""Servers that go back in time (Q2): a lagging replica takes over, or a server restarts on an older AOF."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from conftest import eventually
from headpond import operations as ops
from headpond.keys import queue_keys
from queue_machine.calls import Calls, seldom
from queue_machine.model import QUEUE, ServerTruth

AWAY_MS = 1_100
"""A server that is replaced is away for so long at least, by any clock."""


@dataclass(slots=True)
class Kept:
    """A moment to which the server may go back. data: each key as DUMP gives it. log: a copy of its AOF."""

    truth: ServerTruth
    data: dict[bytes, bytes]
    log: Path | None


class GoingBack(Calls):
    """restarts: real restarts that this example may still make; they take a good part of a second each."""

    restarts: int = 0
    real_restarts: ClassVar[int] = 0
    fail_overs: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.kept: Kept | None = None

    @seldom("kept", 20)
    @rule()
    def a_replica_has_come_so_far(self) -> None:
        """The moment to which the server may go back."""
        self.step("kept")
        client: Any = self.world.server.redis
        keys: list[bytes] = client.keys(queue_keys(QUEUE).prefix + "*")
        pipe: Any = client.pipeline(transaction=False)
        for key in keys:
            pipe.dump(key)
        log = self._copy_log() if self.restarts else None
        self.kept = Kept(self.model.copy_server(), dict(zip(keys, pipe.execute(), strict=True)), log)

    @seldom("restart", 25)
    @precondition(lambda self: self.kept is not None)
    @rule()
    def the_server_goes_back(self) -> None:
        self.step("restart")
        assert self.kept is not None
        kept, self.kept = self.kept, None
        # Incarnations rise with the clock: a server that is put back to one moment twice must come back later.
        self.world.clock.now_ms = max(self.now_ms + AWAY_MS, self.model.highest_inc + 1)
        if kept.log is not None:
            self._restart_on(kept.log)
        else:
            self._take_over(kept.data)
        self._meet(kept.truth)

    @seldom("restart", 40)
    @rule(again=st.booleans())
    def the_server_restarts(self, again: bool) -> None:
        """It loses nothing, and who connects cannot know."""
        self.step("restart")
        truth = self.model.copy_server()
        self.world.clock.now_ms = max(self.now_ms + AWAY_MS, self.model.highest_inc + 1)
        if self.restarts and again:
            self.restarts -= 1
            type(self).real_restarts += 1
            self.world.valkey.kill()
            self._start()
        else:
            self._say_hello_as_another()
        self._meet(truth)

    def _take_over(self, data: dict[bytes, bytes]) -> None:
        pipe: Any = self.world.server.redis.pipeline(transaction=False)
        pipe.flushdb()
        for key, value in data.items():
            pipe.restore(key, 0, value)
        pipe.execute()
        type(self).fail_overs += 1
        self._say_hello_as_another()

    def _say_hello_as_another(self) -> None:
        self.world.server_id = f"server {self.model.new_serial()}"
        self.world.send(ops.hello(self.world.server_id, storage=self.model.storage), seen=[], again=False)

    def _copy_log(self) -> Path:
        client: Any = self.world.server.redis
        # A small log of what there is now; then the copy is of this moment.
        client.bgrewriteaof()
        eventually(
            lambda: (
                (info := client.info("persistence"))["aof_rewrite_in_progress"] == 0
                and info["aof_rewrite_scheduled"] == 0
                and info["aof_buffer_length"] == 0
            ),
            what="the log being written",
        )
        log: Path = self.world.valkey.folder.parent / "kept log"
        shutil.rmtree(log, ignore_errors=True)
        shutil.copytree(self.world.valkey.folder / "appendonlydir", log)
        return log

    def _restart_on(self, log: Path) -> None:
        """Power loss: the server is killed, and the tail of its log is gone."""
        self.restarts -= 1
        type(self).real_restarts += 1
        valkey = self.world.valkey
        valkey.kill()
        shutil.rmtree(valkey.folder / "appendonlydir")
        shutil.copytree(log, valkey.folder / "appendonlydir")
        self._start()

    def _start(self) -> None:
        self.world.valkey.start()
        self.world.server.redis.connection_pool.disconnect()
        # The first command of the new connection comes after its hello, by which the server is told that it went back.
        self.world.know_server()

    def _meet(self, truth: ServerTruth) -> None:
        self.model.go_back(truth)
        after = self.world.look(self.model.seen())
        inc = int(after.number("inc"))
        assert inc > self.model.highest_inc, f"incarnation {inc} is not above {self.model.highest_inc}"
        server = self.model.server
        if self.model.storage:
            # Of several times that it went back, the first goes furthest.
            server.rolled_to = truth.rolled_to or f"{truth.inc}-{int(after.number('journal_seq'))}"
            server.mending, server.open = truth.mending or truth.open, False
            self.last_taken["close"] = self.taken
            self.model.reached["unlooked at twice"] += truth.mending
        found = (after.meta("state"), after.meta("rolled_to"))
        assert found == (self.model.state, server.rolled_to), f"{found}, not rolled to {server.rolled_to}"
        self.model.server.inc = self.model.highest_inc = inc
        self.check(after)
