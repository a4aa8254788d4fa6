"""Jobs that this process has leased, and raw streams of as many: what is appended to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batches import MODEL, HeadpondProducer
from child import BenchmarkError

from headpond.jobs import JobState
from headpond.operations import Append, Lease, LeaseStatus
from headpond.queue import Server
from headpond.wire import TokenRun, pack_tokens

LEASE_S = 3600.0
"""No lease ends while something is measured."""


def tokens_at(offset: int, count: int) -> TokenRun:
    """`count` tokens as an engine makes them: ids of four digits, pieces of a word."""
    ids = range(offset, offset + count)
    return TokenRun(offset, tuple(1000 + n % 9000 for n in ids), tuple(f" word{n % 10}" for n in ids))


class RunningJobs:
    """Appends to every job in one fenced call, as a worker does."""

    def __init__(self, server: Server, count: int, boot: str) -> None:
        """boot: names this owner of leases; another for each."""
        producer = HeadpondProducer(server)
        producer.submit([f"Question {n}." for n in range(count)])
        self._queue = producer.queue
        claimed = self._queue.claim(boot, seq=1, nonce=boot, slots=count, lease_s=LEASE_S)
        if len(claimed.leases) != count:
            raise BenchmarkError(f"{len(claimed.leases)} of {count} jobs were leased; nothing was measured.")
        self._leases: Sequence[Lease] = claimed.leases
        self.offset = 0

    @property
    def names(self) -> list[str]:
        return [lease.id for lease in self._leases]

    def append(self, count: int) -> None:
        """`count` tokens to each job. Raises BenchmarkError if one was refused."""
        run = tokens_at(self.offset, count)
        outcomes = self._queue.append([Append(lease.id, lease.fence, run) for lease in self._leases])
        self.offset += count
        if any((o.status, o.offset) != (LeaseStatus.APPENDED, self.offset) for o in outcomes):
            raise BenchmarkError(f"An append was refused: {outcomes}")

    def finish(self) -> None:
        for lease in self._leases:
            self._queue.finish(lease.id, lease.fence, offset=self.offset, state=JobState.FINISHED, result=b"")


class RawStreams:
    """Adds the same payloads to as many streams in one pipeline of XADDs, which checks nothing."""

    def __init__(self, server: Server, count: int, name: str) -> None:
        self._redis: Any = server.redis
        self.names = [f"raw:{{{MODEL}}}:{name}:{n}" for n in range(count)]
        self.offset = 0

    def append(self, count: int) -> None:
        # Packed once a stream, as the fenced side does.
        run = tokens_at(self.offset, count)
        pipe = self._redis.pipeline(transaction=False)
        for name in self.names:
            pipe.execute_command("XADD", name, "*", "t", pack_tokens(run))
        pipe.execute()
        self.offset += count

    def finish(self) -> None:
        """Nothing tells a reader of a raw stream that it is over; it counts."""
