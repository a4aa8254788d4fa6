"""The one actor of the pick-up benchmark on either broker, as producer and worker both declare it."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from headpond.broker import HeadpondBroker
from headpond.connections import RedisAddress
from headpond.queue import Server

QUEUE = "pickup"


class Side(StrEnum):
    HEADPOND = "headpond"
    STOCK = "stock"


def make_broker(side: Side, url: str) -> dramatiq.Broker:
    """Either broker as its own constructor makes it: dramatiq's default middleware, no setting changed."""
    if side is Side.STOCK:
        return RedisBroker(url=url)  # type: ignore[no-untyped-call]
    return HeadpondBroker(Server(RedisAddress(url, "the benchmark")))


def declare_actor(broker: dramatiq.Broker, picked_up: Callable[[tuple[int, int]], None]) -> Any:
    """The actor `note(job)`. picked_up: given (job, time.monotonic_ns() of its first line)."""

    def note(job: int) -> None:
        at_ns = time.monotonic_ns()
        picked_up((job, at_ns))

    return dramatiq.actor(actor_name="note", queue_name=QUEUE, broker=broker)(note)
