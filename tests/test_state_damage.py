"""What stands in storage is altered behind the store's back: refused with the key, never read as something else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chain_records import commit, journal, submit
from headpond.errors import BlobCorrupt, UnsupportedSchema
from headpond.wire import pack
from headpond_workers.persistence.segments import StateStore
from memory_blobs import MemoryBlobs


@pytest.fixture
def memory() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture
def damaged(memory: MemoryBlobs) -> StateStore:
    store = StateStore(memory, "chat")
    at = store.create_head(lineage="line", writer="a")
    for seq in (1, 2, 3):
        at = commit(store, at, submit(seq))
    return store


def test_a_missing_segment_is_a_loss_not_an_unknown_job(memory: MemoryBlobs, damaged: StateStore) -> None:
    key = damaged.keys.segment(epoch=1, seq=2)
    memory.delete(key)
    with pytest.raises(BlobCorrupt, match="it is gone") as caught:
        damaged.find_result("m/job-1")
    assert caught.value.key == key


def test_a_segment_in_the_place_of_another_is_refused(memory: MemoryBlobs, damaged: StateStore) -> None:
    here, there = damaged.keys.segment(epoch=1, seq=2), damaged.keys.segment(epoch=1, seq=1)
    memory.objects[here] = memory.objects[there]
    with pytest.raises(BlobCorrupt, match="it says that it is epoch 1, seq 1"):
        journal(damaged)


def test_a_segment_of_another_history_is_refused(memory: MemoryBlobs, damaged: StateStore) -> None:
    for lineage, model in (("other", "chat"), ("line", "chat2")):
        others = MemoryBlobs()
        other = StateStore(others, model)
        at = other.create_head(lineage=lineage, writer="a")
        at = commit(other, at, submit(1))
        commit(other, at, submit(2))
        key = damaged.keys.segment(epoch=1, seq=2)
        memory.objects[key] = others.objects[other.keys.segment(epoch=1, seq=2)]
        with pytest.raises(BlobCorrupt, match=f"it is of '{model}', lineage {lineage}"):
            journal(damaged)


def test_segments_whose_entries_overlap_are_refused(memory: MemoryBlobs, damaged: StateStore) -> None:
    others = MemoryBlobs()
    other = StateStore(others, "chat")
    at = commit(other, other.create_head(lineage="line", writer="a"), submit(1))
    commit(other, at, submit(2), submit(3))
    key = damaged.keys.segment(epoch=1, seq=2)
    memory.objects[key] = others.objects[key]
    with pytest.raises(BlobCorrupt, match="break the chain's order"):
        journal(damaged)


def test_an_older_head_put_back_still_reads_its_own_chain(memory: MemoryBlobs) -> None:
    store = StateStore(memory, "chat")
    at = commit(store, store.create_head(lineage="line", writer="a"), submit(1))
    old = memory.objects[store.head_key]
    commit(store, at, submit(2))
    memory.objects[store.head_key] = old
    assert journal(store) == [1]
    found = store.read_head()
    assert found is not None
    commit(store, found, submit(2), submit(3))
    assert journal(store) == [1, 2, 3]


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_truncated_segment_or_head_is_refused(memory: MemoryBlobs, damaged: StateStore, cut: int) -> None:
    for key in (damaged.keys.segment(epoch=1, seq=3), damaged.head_key):
        memory.objects[key] = memory.objects[key][:cut]
        with pytest.raises(BlobCorrupt) as caught:
            journal(damaged)
        assert caught.value.key == key


def test_an_oversized_head_is_refused_unread(memory: MemoryBlobs, damaged: StateStore) -> None:
    memory.objects[damaged.head_key] = bytes(70_000)
    with pytest.raises(BlobCorrupt, match="70000 bytes; at most 65536"):
        damaged.read_head()


def test_a_head_of_a_newer_headpond_is_refused_and_not_called_corrupt(memory: MemoryBlobs, damaged: StateStore) -> None:
    memory.objects[damaged.head_key] = pack({"schema": "headpond/head", "v": 3})
    with pytest.raises(UnsupportedSchema, match="Upgrade headpond"):
        damaged.read_head()


@pytest.mark.parametrize(
    "segment",
    ["state/other/segments/0000000001-0000000003", "0000000001-0000000003", "state/chat/head", "../secret"],
)
def test_a_head_that_leads_out_of_its_model_is_refused(memory: MemoryBlobs, damaged: StateStore, segment: str) -> None:
    at = damaged.read_head()
    assert at is not None
    memory.objects[damaged.head_key] = replace(at.head, segment=segment).pack()
    with pytest.raises(BlobCorrupt, match="is no segment of 'chat'"):
        damaged.read_head()
