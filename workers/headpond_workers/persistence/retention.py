"""How long storage keeps what is over, by the tables of a model and its tenants. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headpond.codec import split_first
from headpond.errors import MalformedDocument
from headpond.wire import unpack_header, unpack_run
from headpond_workers.persistence.items import Item, JobItem

_OWN_TIMES = 3


@dataclass(frozen=True, slots=True)
class StoragePolicy:
    """Times in ms, from the end of a job; 0 is for ever. tenants: those that have one of their own."""

    default_ms: int = 0
    tenants: Mapping[str, int] = field(default_factory=dict)

    @property
    def shortest_ms(self) -> int | None:
        """None if all of it is kept for ever."""
        return min(filter(None, (self.default_ms, *self.tenants.values())), default=None)

    def keeps(self, item: Item, *, now_ms: int) -> bool:
        """Whether an item stays. now_ms: by Redis's clock, as the ends of jobs are.

        What has not ended stays, and so does a job whose end or tenant cannot be read: nobody knows when it was.
        Sessions and their commits are removed by the queue, which journals it.
        """
        if not isinstance(item, JobItem) or item.state is None:
            return True
        try:
            ended_ms = unpack_run(item.row).ended_ms
            tenant = unpack_header(split_first(item.data, kind="data entry")[0]).tenant
        except MalformedDocument:
            return True
        kept_ms = self.tenants.get(tenant, self.default_ms)
        return not kept_ms or not ended_ms or ended_ms + kept_ms > now_ms


def storage_policy(meta: Mapping[str, str], tenants: Mapping[str, str]) -> StoragePolicy:
    """From `meta` and the hash `retention` of a queue. Raises MalformedDocument."""
    try:
        own = {tenant: _storage_ms(times) for tenant, times in tenants.items()}
        return StoragePolicy(int(meta.get("storage_retention_ms", "0")), own)
    except ValueError as error:
        raise MalformedDocument("retention", str(error)[:200]) from error


def _storage_ms(times: str) -> int:
    numbers = times.split(" ")
    if len(numbers) != _OWN_TIMES:
        raise ValueError(f"{times[:60]!r} are not three times")
    return int(numbers[1])
