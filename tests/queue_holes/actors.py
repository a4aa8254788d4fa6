"""Q13, Q15: dramatiq's retries over a crash, and jobs that are in no set."""

from __future__ import annotations

from typing import Any

import dramatiq

from headpond import upkeep
from headpond.broker import HeadpondBroker
from headpond.connections import RedisAddress
from headpond.operations import Settle, Settlement
from headpond.queue import Server
from queue_bench import Bench, lease_key
from queue_holes.hole import Ground, Hole, LuaCut, PythonCut


class Crashing:
    """One process after another that runs a message which fails, has it tried again, and dies before its
    acknowledgement is through."""

    def __init__(self, ground: Ground, bench: Bench) -> None:
        self.bench = bench
        server = Server(RedisAddress(ground.url, "the test"), clock=bench.clock)
        ground.ends.callback(server.close)
        self.broker = HeadpondBroker(server, middleware=[])
        self.broker.declare_queue(bench.queue.name)
        self.consumers = 0

    def enqueue(self, message: dramatiq.Message[Any]) -> None:
        self.broker.enqueue(message)

    def fail_and_die(self) -> None:
        lease = self.bench.lease(f"boot{self.consumers}")
        self.consumers += 1
        self.broker.enqueue(self.message(retries=1))
        assert lease.id.endswith("#0"), lease.id
        self.bench.let_leases_end()

    def message(self, *, retries: int) -> dramatiq.Message[Any]:
        return dramatiq.Message(
            queue_name=self.bench.queue.name, actor_name="count", args=(), kwargs={},
            options={"retries": retries}, message_id="one", message_timestamp=1,
        )  # fmt: skip


def retries_over_crashes(ground: Ground) -> object:
    """How often the retry of a failed message is in the queue, where the acknowledgement of the first try was lost."""
    bench = ground.bench()
    process = Crashing(ground, bench)
    process.enqueue(process.message(retries=0))
    process.fail_and_die()
    process.fail_and_die()
    return len(bench.queue.ids()) - 1


def retry_before_the_acknowledgement(ground: Ground) -> object:
    """How many tries there are of a message that failed once and was acknowledged after it was enqueued again."""
    bench = ground.bench()
    process = Crashing(ground, bench)
    process.enqueue(process.message(retries=0))
    lease = bench.lease()
    process.enqueue(process.message(retries=1))
    bench.claim(slots=0, settle=[Settlement(*lease_key(lease), Settle.FINISHED)])
    return 1 + len(bench.claim(slots=5).leases)


def repaired_by_fsck(ground: Ground) -> object:
    """What can be claimed after fsck has looked at jobs that are in no set: each was lost from another."""
    bench = ground.bench()
    bench.submit("chat/running", "chat/queued")
    bench.lease()
    bench.submit("chat/delayed", delay_s=60)
    bench.submit("chat/untouched", delay_s=60)
    for key, job_id in [("leases", "running"), ("ready:any:normal", "queued"), ("delayed", "delayed")]:
        assert bench.raw.zrem(bench.keys.named(key), f"chat/{job_id}") == 1
    bench.let_leases_end()
    before = len(bench.claim("B", slots=9).leases)
    page = bench.queue.run(upkeep.fsck("0", repair=True))
    assert page.cursor == "0"
    assert page.looked == 4
    return before, sorted(lease.id for lease in bench.claim("B", slots=9).leases)


HOLES = [
    Hole(
        "a crash between a retry and its acknowledgement doubles the retry",
        "Q13",
        retries_over_crashes,
        kept=1,
        broken=2,
        cuts=(PythonCut("headpond.broker:HeadpondBroker.enqueue", "#{retries}", "#{ULID() if retries else 0}"),),
    ),
    Hole(
        "a retry is taken for the try before it",
        "Q13",
        retry_before_the_acknowledgement,
        kept=2,
        broken=1,
        cuts=(PythonCut("headpond.broker:HeadpondBroker.enqueue", "#{retries}", "#0"),),
    ),
    Hole(
        "a job that is in no set stays there",
        "Q15",
        repaired_by_fsck,
        kept=(0, ["chat/delayed", "chat/queued", "chat/running"]),
        broken=(0, []),
        cuts=tuple(
            LuaCut("fsck.lua", f"not call('ZSCORE', {where}, id) then", "false then")
            for where in ("ready_key(r[LANE], r[BAND])", "delayed", "leases")
        ),
    ),
]
