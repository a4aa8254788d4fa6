"""Segments, snapshots and what they come to: the same as a plain table to which every change was made in its order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headpond.jobs import JobState
from headpond_workers.persistence import segment_cuts, snapshots
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.fair import BandTimes, Fair
from headpond_workers.persistence.items import CommitItem, DroppedItem, Item, JobItem, SessionItem
from headpond_workers.persistence.journal_id import JOURNAL_START, JournalId
from headpond_workers.persistence.progress import Progress
from headpond_workers.persistence.records import (
    BackRecord,
    CommitRecord,
    DropRecord,
    EndRecord,
    Record,
    SessionRecord,
    SubmitRecord,
)
from headpond_workers.persistence.segments import HeadAt, StateStore
from headpond_workers.persistence.snapshots import make_snapshot
from memory_blobs import MemoryBlobs
from stepped_blobs import Actor

JOBS = [f"chat/{name}" for name in "abcdefgh"]
ENDS = [state for state in JobState if state.ended]
KINDS = ["submit", "submit", "end", "back", "drop", "commit", "session", "uncommit", "unsession"]
changes = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(JOBS), st.sampled_from(ENDS)), max_size=6)
tokens = st.lists(st.tuples(st.sampled_from(JOBS), st.integers(0, 9), st.integers(0, 4)), max_size=4)


@dataclass
class Table:
    """What a plain reading of the journal makes of it."""

    items: dict[str, Item] = field(default_factory=dict)
    fair: Fair | None = None

    def apply(self, record: Record) -> None:
        job = self.items.get(f"job/{record.id}")
        match record:
            case SubmitRecord():
                self.items[f"job/{record.id}"] = JobItem(record.id, record.data, record.row)
            case EndRecord():
                data = job.data if isinstance(job, JobItem) else b""
                self.items[f"job/{record.id}"] = JobItem(
                    record.id, data, record.row, state=record.state, result=record.result
                )
            case BackRecord() if isinstance(job, JobItem) and job.state is None:
                self.items[f"job/{record.id}"] = replace(job, row=record.row)
            case DropRecord():
                self.items.pop(f"job/{record.id}", None)
            case CommitRecord():
                self._set(f"commit/{record.id}", CommitItem(record.id, record.document), there=bool(record.document))
            case SessionRecord():
                self._set(f"session/{record.id}", SessionItem(record.id, record.row), there=bool(record.row))

    def add(self, progress: Progress) -> None:
        job = self.items.get(f"job/{progress.id}")
        if isinstance(job, JobItem) and job.state is None and progress.offset <= len(job.ids):
            ids = (*job.ids[: progress.offset], *progress.ids)
            pieces = (*job.pieces[: progress.offset], *progress.pieces)
            self.items[f"job/{progress.id}"] = replace(job, row=progress.row, ids=ids, pieces=pieces)

    def sorted(self) -> list[Item]:
        return [self.items[key] for key in sorted(self.items)]

    def copy(self) -> Table:
        return Table(dict(self.items), self.fair)

    def _set(self, key: str, item: Item, *, there: bool) -> None:
        self.items.pop(key, None)
        if there:
            self.items[key] = item


class Folding(RuleBasedStateMachine):
    """One writer commits; another makes snapshots, one call on storage at a time, and is killed now and then."""

    @initialize(part_bytes=st.sampled_from([1, 300, 1000, 100_000]), records=st.sampled_from([1, 3, 100]))
    def start(self, part_bytes: int, records: int) -> None:
        self.patches = [
            patch.object(snapshots, "PART_TARGET_BYTES", part_bytes),
            patch.object(segment_cuts, "SEGMENT_TARGET_RECORDS", records),
        ]
        for each in self.patches:
            each.start()
        self.whole = records == 100
        """No batch becomes several segments, of which the first ones would still say the time of the batch before."""
        self.memory = MemoryBlobs()
        self.store = StateStore(self.memory, "chat", now_ms=lambda: 0)
        self.at = self.store.create_head(lineage="line", writer="a")
        self.table = Table()
        self.states: list[tuple[int, Table]] = [(0, Table())]
        self.last: dict[str, int] = {}
        self.seq = self.version = 0
        self.snapshotter: Actor | None = None

    def teardown(self) -> None:
        if hasattr(self, "patches"):
            if self.snapshotter is not None:
                self.snapshotter.crash()
            for each in self.patches:
                each.stop()

    @rule(changes=changes, tokens=tokens, fair=st.none() | st.integers(0, 9))
    def commit(
        self, changes: list[tuple[str, str, JobState]], tokens: list[tuple[str, int, int]], fair: int | None
    ) -> None:
        first = self.seq + 1
        records = tuple(self._record(*change) for change in changes)
        progress = tuple(self._progress(*some) for some in tokens)
        for record in records:
            self.table.apply(record)
        for made in progress:
            self.table.add(made)
        paid = None if fair is None else {"normal": BandTimes(float(fair), {"": 1.0})}
        as_of_ms = self.states[-1][0] + 10
        ids = (JournalId(1, first), JournalId(1, self.seq)) if records else (None, None)
        batch = Batch(
            first=ids[0], last=ids[1], inc=1, as_of_ms=as_of_ms, records=records, progress=progress, fair=paid
        )
        before = self._head().head.seq
        self._head_is(self.store.commit(self._head(), batch, writer="a"))
        if self.at.head.seq > before:
            self.table.fair = paid or self.table.fair
            self.states.append((as_of_ms, self.table.copy()))

    @precondition(lambda self: self.snapshotter is None)
    @rule(writer=st.sampled_from("ab"))
    def begin_a_snapshot(self, writer: str) -> None:
        at = self._head()
        self.snapshotter = Actor(
            "snapshotter",
            self.memory,
            lambda blobs: make_snapshot(StateStore(blobs, "chat", now_ms=lambda: 0), at, writer=writer),
        )

    @precondition(lambda self: self.snapshotter is not None)
    @rule(steps=st.sampled_from([1, 2, 5, 1000]), killed=st.integers(0, 5))
    def go_on_with_the_snapshot(self, steps: int, killed: int) -> None:
        assert self.snapshotter is not None
        self.snapshotter.step(steps)
        if killed == 0:
            self.snapshotter.crash()
        if self.snapshotter.ended:
            assert self.snapshotter.error is None, self.snapshotter.error
            self.snapshotter = None

    @invariant()
    def what_is_stored_comes_to_the_table(self) -> None:
        head = self._head().head
        point = self.store.state(head)
        assert list(point.items()) == self.table.sorted()
        assert point.fair == self.table.fair
        assert point.watermark == head.watermark
        assert (point.seq, point.as_of_ms) == (head.seq, head.as_of_ms)

    @rule(job=st.sampled_from(JOBS))
    def look_for_one_job(self, job: str) -> None:
        item = self.table.items.get(f"job/{job}")
        assert self.store.find_job(job) == item
        ended = isinstance(item, JobItem) and item.state is not None
        assert self.store.find_result(job) == ((item.state, item.result) if ended else None)  # type: ignore[union-attr]
        assert self.store.find_data(job) == ((item.data or None) if isinstance(item, JobItem) else None)
        assert self.store.find_item(f"commit/{job}") == self.table.items.get(f"commit/{job}")

    @precondition(lambda self: self.whole)
    @rule(back=st.integers(1, 8), more=st.sampled_from([0, 5]))
    def look_at_an_older_state(self, back: int, more: int) -> None:
        as_of_ms, table = self.states[max(0, len(self.states) - back)]
        point = self.store.state(self._head().head, until_ms=as_of_ms + more)
        assert list(point.items()) == table.sorted()
        assert point.fair == table.fair

    @rule(back=st.integers(0, 12))
    def look_at_what_changed(self, back: int) -> None:
        after = max(0, self.seq - back)
        keys = sorted(key for key, seq in self.last.items() if seq > after)
        since = JournalId(1, after) if after else JOURNAL_START
        found = list(self.store.changed_after(self._head().head, since))
        assert found == [self.table.items.get(key) or DroppedItem(*key.split("/", 1)) for key in keys]

    def _record(self, kind: str, name: str, state: JobState) -> Record:
        self.seq += 1
        self.version += 1
        journal_id, value = JournalId(1, self.seq), b"%d" % self.version
        made: dict[str, Callable[[], Record]] = {
            "submit": lambda: SubmitRecord(journal_id, name, value, value),
            "end": lambda: EndRecord(journal_id, name, state, value, value),
            "back": lambda: BackRecord(journal_id, name, value),
            "drop": lambda: DropRecord(journal_id, name),
            "commit": lambda: CommitRecord(journal_id, name, value),
            "uncommit": lambda: CommitRecord(journal_id, name, b""),
            "session": lambda: SessionRecord(journal_id, name, value),
            "unsession": lambda: SessionRecord(journal_id, name, b""),
        }
        place = {"commit": "commit", "uncommit": "commit", "session": "session", "unsession": "session"}
        self.last[f"{place.get(kind, 'job')}/{name}"] = self.seq
        return made[kind]()

    def _progress(self, name: str, offset: int, count: int) -> Progress:
        self.version += 1
        ids = tuple(range(self.version, self.version + count))
        return Progress(name, b"%d" % self.version, offset, ids, tuple(str(i) for i in ids))

    def _head(self) -> HeadAt:
        found = self.store.read_head()
        assert found is not None
        return found

    def _head_is(self, at: HeadAt) -> None:
        assert at == self._head()
        self.at = at


TestFolding = Folding.TestCase
TestFolding.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
