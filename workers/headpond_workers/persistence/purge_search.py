"""The jobs of one tenant or session as storage knows them, also those that Redis has dropped."""

from __future__ import annotations

from collections.abc import Iterator

from headpond.codec import split_first
from headpond.errors import MalformedDocument
from headpond.upkeep import Owner
from headpond.wire import unpack_header
from headpond_workers.persistence.items import JobItem
from headpond_workers.persistence.segments import StateStore


def stored_jobs(store: StateStore, owner: Owner, name: str) -> Iterator[str]:
    """Their ids. Reads all of the model's state. Raises StorageUnavailable, BlobCorrupt."""
    at = store.read_head()
    for item in () if at is None else store.items(at.head):
        if isinstance(item, JobItem) and _owner_of(item.data, owner) == name:
            yield item.id


def _owner_of(data: bytes, owner: Owner) -> str | None:
    """None if there is none, or it cannot be read."""
    try:
        header = unpack_header(split_first(data, kind="data entry")[0])
    except MalformedDocument:
        return None
    if owner is Owner.TENANT:
        return header.tenant
    return None if header.turn is None else header.turn.session
