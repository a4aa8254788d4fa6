"""When the persister makes snapshots by itself, and what it removes then, on a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headpond.errors import StorageUnavailable
from headpond.operations import Retention
from headpond.purging import await_clean, purge_jobs
from headpond_workers.persistence.gate import open_queue
from headpond_workers.persistence.housekeeping import Housekeeping, purge_to_do
from headpond_workers.persistence.journal import Journal, drain
from headpond_workers.persistence.journal_id import JOURNAL_START
from headpond_workers.persistence.segments import StateStore
from memory_blobs import Fault, FaultyBlobs, MemoryBlobs
from queue_bench import Bench, Clock, bench_on, closing

LINE = "a line of its own"


class House:
    """A queue with storage in memory, its journal, and what keeps that in order."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.memory, self.seconds = bench, MemoryBlobs(), 0.0
        self.forgotten: list[str] = []
        self.followed: list[tuple[str, str]] = []
        self.blobs = FaultyBlobs(self.memory)
        self.store = StateStore(self.blobs, bench.queue.name)
        self.keeping = Housekeeping(
            bench.server, self.blobs, writer="a", history_s=3600, forget=self.forgotten.append,
            follow=lambda model, marks: self.followed.append((model, marks)), clock=lambda: self.seconds,
        )  # fmt: skip
        assert open_queue(bench.queue, self.store, writer="a")
        self.journal = Journal(bench.queue)

    def commit(self) -> None:
        while drain(self.journal, self.store, writer="a"):
            pass

    def renew(self) -> None:
        self.keeping.renew(self.bench.queue.name)

    def holds(self, text: str) -> bool:
        return any(text.encode() in body for body in self.memory.objects.values())


@pytest.fixture
def house(shared_url: str) -> Iterator[House]:
    bench = bench_on(shared_url, Clock(), storage=True)
    for _ in closing(bench):
        yield House(bench)


def test_a_purge_is_carried_out_once_its_entry_is_committed(house: House) -> None:
    queue = house.bench.queue
    house.bench.submit("m/gone", "m/kept")
    house.commit()
    assert not house.keeping.is_wanted(queue)
    done = purge_jobs(queue, ["m/gone"])
    assert house.keeping.is_wanted(queue)
    house.renew()
    assert house.holds("m/gone")
    assert not await_clean(queue, done.through, timeout_s=0)
    house.commit()
    house.renew()
    assert not house.holds("m/gone")
    assert house.holds("m/kept")
    assert await_clean(queue, done.through, timeout_s=0)
    assert house.forgotten == [queue.name]
    house.renew()
    # What else there is of the model's prompts goes as it is purged, and once more when storage is clean.
    assert house.followed == [(queue.name, done.through), (queue.name, f"{done.through} {done.through}")]
    assert not house.keeping.is_wanted(queue)
    assert purge_to_do(queue.meta()) == JOURNAL_START


def test_a_purge_that_storage_did_not_take_is_tried_again(house: House) -> None:
    house.bench.submit("m/gone")
    house.commit()
    done = purge_jobs(house.bench.queue, ["m/gone"])
    house.commit()
    house.blobs.fail_next_put(Fault.NEVER_STORED, key_part="/head")
    with pytest.raises(StorageUnavailable):
        house.renew()
    assert house.keeping.is_wanted(house.bench.queue)
    house.renew()
    assert not house.holds("m/gone")
    assert await_clean(house.bench.queue, done.through, timeout_s=0)


def test_nothing_is_removed_from_another_history_or_while_a_queue_is_not_open(house: House) -> None:
    house.bench.submit("m/gone")
    house.commit()
    purge_jobs(house.bench.queue, ["m/gone"])
    house.commit()
    meta = house.bench.keys.named("meta")
    for field, value in (("state", "closed"), ("state", "restoring"), ("lineage", LINE)):
        before = house.bench.raw.hget(meta, field)
        house.bench.raw.hset(meta, field, value)
        house.renew()
        assert house.holds("m/gone")
        house.bench.raw.hset(meta, field, before)
    house.renew()
    assert not house.holds("m/gone")


def test_what_is_over_goes_at_the_next_round_also_where_nothing_happens_any_more(house: House) -> None:
    house.bench.register("A", storage_retention_s=1000.0, tenant_retention={"acme": Retention(1.0, 5000.0)})
    house.bench.submit("m/over")
    house.bench.submit("m/longer", tenant="acme")
    for name in ("m/over", "m/longer"):
        house.bench.queue.cancel(name)
    house.commit()
    assert not house.keeping.is_wanted(house.bench.queue)
    house.bench.clock.move(2000)
    house.seconds = 2000.0
    assert house.keeping.is_wanted(house.bench.queue)
    house.renew()
    at = house.store.read_head()
    assert at is not None
    assert [item.id for item in house.store.items(at.head)] == ["m/longer"]
    assert not house.keeping.is_wanted(house.bench.queue)
