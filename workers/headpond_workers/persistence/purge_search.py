"""The jobs of one tenant as storage knows them, also those that Redis has dropped."""

from __future__ import annotations

from collections.abc import Iterator

from headpond.codec import split_first
from headpond.errors import MalformedDocument
from headpond.wire import unpack_header
from headpond_workers.persistence.items import JobItem
from headpond_workers.persistence.segments import StateStore


def stored_jobs(store: StateStore, tenant: str) -> Iterator[str]:
    """Their ids. Reads all of the model's state. Raises StorageUnavailable, BlobCorrupt."""
    at = store.read_head()
    for item in () if at is None else store.items(at.head):
        if isinstance(item, JobItem) and _tenant_of(item.data) == tenant:
            yield item.id


def _tenant_of(data: bytes) -> str | None:
    """None if it cannot be read."""
    try:
        return unpack_header(split_first(data, kind="data entry")[0]).tenant
    except MalformedDocument:
        return None
