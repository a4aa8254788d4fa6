"""The one mutable object of collection, `gc/state`, and the lists that it names: read and swapped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from headpond.errors import BlobChanged, BlobCorrupt, BlobMissing
from headpond_workers.checkpoints.collection.gc_documents import (
    MAX_CONDEMNED_BYTES,
    MAX_GC_BYTES,
    Condemned,
    GcState,
    Round,
)
from headpond_workers.checkpoints.document_io import checked, new_txn, now_ms
from headpond_workers.checkpoints.names import CHUNKS, CONDEMNED, GC_STATE, condemned_key, epoch_of
from headpond_workers.storage.blobs import Blobs

FIRST_EPOCH = 1
"""Under which objects are put while there is no `gc/state`."""


@dataclass(frozen=True, slots=True)
class GcStateAt:
    """`gc/state` as it was read. etag: names this very body in a swap."""

    state: GcState
    etag: str


class GcStore:
    """Any call may raise StorageUnavailable, BlobCorrupt and UnsupportedSchema. writer: who is written into
    documents."""

    def __init__(self, blobs: Blobs, *, writer: str) -> None:
        self.blobs, self.writer = blobs, writer

    def read(self) -> GcStateAt | None:
        """None: nothing was ever collected here."""
        try:
            blob = self.blobs.get(GC_STATE, max_bytes=MAX_GC_BYTES)
        except BlobMissing:
            return None
        return GcStateAt(checked(GC_STATE, lambda: GcState.unpack(blob.body)), blob.etag)

    def read_or_create(self) -> GcStateAt:
        """The first epoch is above every one that is found: if `gc/state` was lost, the numbers of its rounds and
        epochs may have been given already."""
        while (found := self.read()) is None:
            highest = max((epoch_of(key) or 0 for key in self.blobs.list_keys(CHUNKS)), default=0)
            state = GcState(
                txn=new_txn(),
                created_ms=now_ms(),
                writer=self.writer,
                epoch=max(highest, FIRST_EPOCH) + 1,
                next_round=1,
            )
            try:
                return GcStateAt(state, self.blobs.put_new(GC_STATE, state.pack()))
            except BlobChanged:
                continue
        return found

    def swap(self, at: GcStateAt, **changes: Any) -> GcStateAt:
        """Raises BlobChanged if `gc/state` is no longer what was read."""
        state = replace(at.state, txn=new_txn(), created_ms=now_ms(), writer=self.writer, **changes)
        return GcStateAt(state, self.blobs.put_if(GC_STATE, state.pack(), etag=at.etag))

    def raise_epoch(self) -> None:
        """From now on what is pushed is put under new keys, also content that is in storage already, but for what
        complete versions refer to. A damaged object is healed by this: nothing of a new push is taken for it."""
        while True:
            at = self.read_or_create()
            try:
                self.swap(at, epoch=at.state.epoch + 1)
                return
            except BlobChanged:
                continue

    def condemned(self, round_: Round) -> tuple[str, ...]:
        """The keys of a round. Raises BlobMissing, BlobCorrupt."""
        blob = self.blobs.get(round_.list, max_bytes=MAX_CONDEMNED_BYTES)
        found = checked(round_.list, lambda: Condemned.unpack(blob.body))
        if found.round != round_.number:
            raise BlobCorrupt(round_.list, f"it is the list of round {found.round}, not of {round_.number}")
        return found.keys

    def put_list(self, number: int, keys: tuple[str, ...]) -> bool:
        """Write the list of a round that is yet to be added. False: the number is taken, by a collector that ended
        before it added its round, or by one that is about to."""
        document = Condemned(txn=new_txn(), created_ms=now_ms(), writer=self.writer, round=number, keys=keys)
        try:
            self.blobs.put_new(condemned_key(number), document.pack())
        except BlobChanged:
            return False
        return True

    def stale_lists(self) -> list[str]:
        """Lists that are no round's and never will be: their numbers were passed over."""
        # The lists first: one that is written afterwards is of a later number than the state that is read then.
        keys = list(self.blobs.list_keys(CONDEMNED))
        at = self.read()
        if at is None:
            return []
        named = {round_.list for round_ in at.state.rounds}
        passed = {condemned_key(number): number for number in _numbers(keys) if number < at.state.next_round}
        return [key for key in keys if key in passed and key not in named]


def _numbers(keys: list[str]) -> list[int]:
    tails = (key[len(CONDEMNED) :] for key in keys)
    return [int(tail) for tail in tails if tail.isdecimal()]
