"""Jobs that are submitted for one version: which ones a producer pins, and for which. No I/O."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from engines import Order

PINNED_SHARE = 0.2
"""How many of the jobs are submitted for a version."""
OLD_SHARE = 0.4
"""How many of these for the version that the alias named before, if it named one: a worker has to stay or to visit."""


@dataclass(frozen=True, slots=True)
class Named:
    """What an alias names, and what it named before: names of versions, the second may be empty."""

    target: str
    previous: str


class Pins:
    """Of one producer; not thread-safe. old: ids of jobs for a version that the alias no longer named."""

    def __init__(self, orders: Iterator[Order], named: Callable[[], Named], *, seed: str) -> None:
        """named: is asked for each job that is pinned. seed: which jobs are, and for which of the two versions."""
        self._orders, self._named = orders, named
        self._rng = random.Random(f"pins:{seed}")  # noqa: S311 - it has to be repeatable
        self.old: set[str] = set()

    def __iter__(self) -> Iterator[Order]:
        return self

    def __next__(self) -> Order:
        order = next(self._orders)
        # Each job takes as many draws, whatever becomes of it.
        pinned, old = self._rng.random() < PINNED_SHARE, self._rng.random() < OLD_SHARE
        if not pinned:
            return order
        named = self._named()
        if old and named.previous:
            self.old.add(order.id)
            return replace(order, version=named.previous)
        return replace(order, version=named.target)


def counts(ordered: Mapping[str, Order], old: Collection[str]) -> dict[str, int]:
    """For the record. old: ids of jobs for a version that the alias no longer named."""
    pinned = {job_id: order.version for job_id, order in ordered.items() if order.version}
    return {
        "pinned": len(pinned),
        "pinned_old": sum(job_id in old for job_id in pinned),
        "pinned_versions": len(set(pinned.values())),
    }
