"""The one actor of the queue's benchmarks on either broker, as producer and worker both declare it."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import dramatiq
from child import BenchmarkError
from dramatiq.brokers.redis import RedisBroker

from headpond.broker import HeadpondBroker
from headpond.connections import RedisAddress
from headpond.queue import Server

QUEUE = "bench"
Note = Callable[[tuple[int, int]], None]
"""Given (job, time.monotonic_ns()): all processes of a Linux machine share that clock."""


class Side(StrEnum):
    HEADPOND = "headpond"
    STOCK = "stock"


STOCK = "dramatiq's RedisBroker as it comes"
SERVER = "on an embedded Valkey (append-only file, synced each second)"


def make_broker(side: Side, url: str, *, slots: int | None = None, lease_s: float = 10.0) -> dramatiq.Broker:
    """Either broker with dramatiq's default middleware. slots, lease_s: of headpond's; stock has no such settings."""
    if side is Side.STOCK:
        return RedisBroker(url=url)  # type: ignore[no-untyped-call]
    return HeadpondBroker(Server(RedisAddress(url, "the benchmark")), slots=slots, lease_s=lease_s)


def declare_actor(broker: dramatiq.Broker, began: Note, ended: Note) -> Any:
    """The actor `note(job, hold_s)`: runs for hold_s and tells of its first line and of its last."""

    def note(job: int, hold_s: float = 0.0) -> None:
        began((job, time.monotonic_ns()))
        if hold_s > 0:
            time.sleep(hold_s)
        ended((job, time.monotonic_ns()))

    return dramatiq.actor(actor_name="note", queue_name=QUEUE, broker=broker)(note)


def nobody(_: tuple[int, int]) -> None:
    """What a producer's actor tells: a producer runs no job."""
    raise BenchmarkError("The sending process runs no job.")
