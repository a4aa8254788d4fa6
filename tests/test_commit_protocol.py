"""Persisters that race, sleep, crash and lose replies, in any order: the chain stays what the journal was."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headpond.errors import CommitLost, StorageUnavailable
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.records import SubmitRecord
from headpond_workers.persistence.segments import HeadAt, StateStore
from memory_blobs import Fault, FaultyBlobs, MemoryBlobs

PARTS = ("/head", "/segments/")
numbers = st.integers(0, 2)
faults = st.none() | st.none() | st.sampled_from(Fault)


@dataclass
class Persister:
    """One process: what it read of the journal and of the head, perhaps long ago."""

    name: str
    at: HeadAt
    batch: list[int] = field(default_factory=list)
    inc: int = 1


class CommitProtocol(RuleBasedStateMachine):
    """The journal holds 1, 2, 3...; `trimmed` is the last entry that it has dropped."""

    @initialize()
    def start(self) -> None:
        self.memory = MemoryBlobs()
        self.blobs = FaultyBlobs(self.memory)
        self.store = StateStore(self.blobs, "chat", now_ms=lambda: 0)
        at = self.store.create_head(lineage="line", writer="a")
        # Two processes may even have one name.
        self.persisters = [Persister(name, at) for name in "aab"]
        self.inc, self.trimmed, self.acknowledged = 1, 0, 0
        self.ids: list[JournalId] = []
        self.seen = (0, 0, 0, 0)

    @rule()
    def raise_incarnation(self) -> None:
        self.inc += 1

    @rule(number=numbers)
    def read_head(self, number: int) -> None:
        at = self.store.read_head()
        assert at is not None
        self.persisters[number].at = at

    @rule(number=numbers, new=st.integers(0, 3), limit=st.integers(1, 5))
    def read_journal(self, number: int, new: int, limit: int) -> None:
        self.ids += [JournalId(self.inc, len(self.ids) + 1 + i) for i in range(new)]
        persister = self.persisters[number]
        persister.batch = list(range(self.trimmed + 1, len(self.ids) + 1))[:limit]
        persister.inc = self.inc

    @rule(number=numbers, fault=faults, part=st.sampled_from(PARTS))
    def commit_what_was_read(self, number: int, fault: Fault | None, part: str) -> None:
        persister = self.persisters[number]
        if not persister.batch or persister.inc < persister.at.head.inc:
            return
        records = [SubmitRecord(self.ids[seq - 1], f"chat/{seq}", b"%d" % seq) for seq in persister.batch]
        if fault is not None:
            self.blobs.fail_next_put(fault, key_part=part)
        with contextlib.suppress(CommitLost, StorageUnavailable):
            # Suppressed: the process lives on with what it knew before, as a zombie does.
            batch = Batch(
                first=records[0].journal_id, last=records[-1].journal_id, inc=persister.inc, records=tuple(records)
            )
            persister.at = self.store.commit(persister.at, batch, writer=persister.name)
            # What was acknowledged may be trimmed at once, or the trim is lost.
            if part == "/head":
                self.trimmed = max(self.trimmed, persister.batch[-1])
            self.acknowledged = max(self.acknowledged, persister.batch[-1])
        self.blobs.disarm()

    @rule(number=numbers, new=st.integers(1, 3), fault=faults, part=st.sampled_from(PARTS))
    def go_round_once(self, number: int, new: int, fault: Fault | None, part: str) -> None:
        self.read_head(number)
        self.read_journal(number, new, 5)
        self.commit_what_was_read(number, fault, part)

    @rule()
    def late_puts_arrive(self) -> None:
        self.blobs.release()

    @invariant()
    def the_chain_is_a_prefix_of_the_journal_and_holds_all_that_was_acknowledged(self) -> None:
        at = self.store.read_head()
        assert at is not None
        seqs = [record.journal_id.seq for record in self.store.records(at.head)][::-1]
        assert seqs == list(range(1, at.head.watermark.seq + 1))
        assert len(seqs) >= self.acknowledged

    @invariant()
    def nothing_in_the_head_falls(self) -> None:
        at = self.store.read_head()
        assert at is not None
        now = (at.head.epoch, at.head.seq, at.head.watermark.seq, at.head.inc)
        assert all(new >= old for new, old in zip(now, self.seen, strict=True))
        self.seen = now


TestCommitProtocol = CommitProtocol.TestCase
TestCommitProtocol.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
