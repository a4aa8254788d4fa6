"""Heads and segments as bytes: what is written is read, and nothing else is accepted."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headpond.errors import MalformedDocument, UnsupportedSchema
from headpond.jobs import JobState
from headpond.wire import pack, unpack
from headpond_workers.persistence import documents
from headpond_workers.persistence.documents import Head, Segment
from headpond_workers.persistence.fair import BandTimes, Fair
from headpond_workers.persistence.items import CommitItem, Item, JobItem, SessionItem
from headpond_workers.persistence.journal_id import JournalId
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
from headpond_workers.persistence.snapshot_documents import Part, PartRef, Snapshot
from headpond_workers.storage.sealed import MAX_COUNT

ODD_VALUES: list[object] = [None, True, -1, 1.5, "", b"", [], {}, "x" * 1000, 1 << 60]
ENDS = [state for state in JobState if state.ended]
counts = st.integers(0, MAX_COUNT)
names = st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable())
journal_ids = st.builds(JournalId, counts, counts)


payloads = st.binary(max_size=50)
tokens = st.lists(st.tuples(st.integers(-1, MAX_COUNT), st.text(max_size=8)), max_size=5)
bands = st.builds(
    BandTimes, st.floats(0, 1e300), st.dictionaries(st.text(max_size=20), st.floats(0, 1e300), max_size=3)
)
fair_times: st.SearchStrategy[Fair | None] = st.none() | st.dictionaries(names, bands, max_size=3)
FIXTURES = Path(__file__).parent / "fixtures"


@st.composite
def records(draw: st.DrawFn, journal_id: JournalId) -> Record:
    name = draw(names)
    kind = draw(st.sampled_from(["submit", "end", "back", "drop", "commit", "session"]))
    match kind:
        case "submit":
            return SubmitRecord(journal_id, name, draw(payloads), draw(payloads), draw(counts), draw(counts))
        case "end":
            return EndRecord(journal_id, name, draw(st.sampled_from(ENDS)), draw(payloads), draw(payloads))
        case "back":
            return BackRecord(journal_id, name, draw(payloads))
        case "drop":
            return DropRecord(journal_id, name)
        case "commit":
            return CommitRecord(journal_id, name, draw(payloads))
        case _:
            return SessionRecord(journal_id, name, draw(payloads))


@st.composite
def progresses(draw: st.DrawFn) -> Progress:
    made = draw(tokens)
    ids, pieces = tuple(i for i, _ in made), tuple(piece for _, piece in made)
    return Progress(draw(names), draw(payloads), draw(counts), ids, pieces)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    ids = sorted(draw(st.sets(journal_ids, min_size=0, max_size=6)))
    seq = draw(st.integers(1, 10**9))
    return Segment(
        txn=draw(st.binary(min_size=16, max_size=16)).hex(),
        created_ms=draw(counts),
        writer=draw(names),
        model="chat",
        lineage=draw(names),
        epoch=draw(st.integers(1, 10**9)),
        seq=seq,
        prev=None if seq == 1 else f"state/chat/segments/{1:010d}-{seq - 1:010d}",
        first=ids[0] if ids else None,
        last=ids[-1] if ids else None,
        inc=draw(st.integers(ids[-1].inc if ids else 0, MAX_COUNT)),
        as_of_ms=draw(counts),
        records=tuple(draw(records(journal_id)) for journal_id in ids[draw(st.integers(0, 1)) :]),
        progress=tuple(draw(st.lists(progresses(), max_size=3))),
        fair=draw(fair_times),
    )


@st.composite
def heads(draw: st.DrawFn) -> Head:
    floor, snapshot_seq, seq = sorted(draw(st.tuples(*[st.integers(0, 10**9)] * 3)))
    if not snapshot_seq:
        floor = 0
    inc = draw(counts)
    return Head(
        txn=draw(st.binary(min_size=16, max_size=16)).hex(),
        created_ms=draw(counts),
        writer=draw(names),
        lineage=draw(names),
        epoch=draw(st.integers(1, 10**9)),
        seq=seq,
        inc=inc,
        watermark=JournalId(draw(st.integers(0, inc)), draw(counts)),
        segment=None if seq == 0 else f"state/chat/segments/{1:010d}-{seq:010d}",
        as_of_ms=draw(counts),
        snapshot=None if snapshot_seq == 0 else f"state/chat/snapshots/{1:010d}-{snapshot_seq:010d}",
        snapshot_seq=snapshot_seq,
        floor=floor,
        above_bytes=draw(counts),
        snapshot_bytes=draw(counts),
    )


@st.composite
def items(draw: st.DrawFn, name: str) -> Item:
    kind = draw(st.sampled_from(["commit", "session", "open job", "ended job"]))
    if kind == "commit":
        return CommitItem(name, draw(payloads))
    if kind == "session":
        return SessionItem(name, draw(payloads))
    asked = (name, draw(payloads), draw(payloads), draw(counts), draw(counts))
    if kind == "ended job":
        return JobItem(*asked, state=draw(st.sampled_from(ENDS)), result=draw(payloads))
    made = draw(tokens)
    return JobItem(*asked, tuple(i for i, _ in made), tuple(piece for _, piece in made))


@st.composite
def parts(draw: st.DrawFn) -> Part:
    held = [draw(items(name)) for name in draw(st.sets(names, min_size=1, max_size=6))]
    return Part(
        txn=draw(st.binary(min_size=16, max_size=16)).hex(),
        created_ms=draw(counts),
        writer=draw(names),
        model="chat",
        items=tuple(sorted(held, key=lambda item: item.key)),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    ends = sorted(draw(st.sets(names, max_size=8)))
    refs = [
        PartRef(
            f"state/chat/parts/{number}", first, last, draw(st.integers(1, 9)), draw(counts),
            draw(st.binary(min_size=32, max_size=32)),
        )
        for number, (first, last) in enumerate(zip(ends[::2], ends[1::2], strict=False))
    ]  # fmt: skip
    inc = draw(counts)
    return Snapshot(
        txn=draw(st.binary(min_size=16, max_size=16)).hex(),
        created_ms=draw(counts),
        writer=draw(names),
        model="chat",
        lineage=draw(names),
        epoch=draw(st.integers(1, 10**9)),
        seq=draw(st.integers(1, 10**9)),
        inc=inc,
        watermark=JournalId(draw(st.integers(0, inc)), draw(counts)),
        as_of_ms=draw(counts),
        segment=draw(names),
        prev=draw(st.none() | names),
        fair=draw(fair_times),
        parts=tuple(refs),
    )


HEAD = Head(
    txn="0" * 32, created_ms=1, writer="w", lineage="l", epoch=1, seq=0, inc=7, watermark=JournalId(7, 2), segment=None
)
SEGMENT = Segment(
    txn="1" * 32,
    created_ms=1,
    writer="w",
    model="chat",
    lineage="l",
    epoch=1,
    seq=1,
    prev=None,
    first=JournalId(7, 1),
    last=JournalId(7, 2),
    inc=7,
    as_of_ms=3,
    records=(
        SubmitRecord(JournalId(7, 1), "chat/a", b"data", b"row", 0, 9),
        EndRecord(JournalId(7, 2), "chat/a", JobState.FINISHED, b"result", b"row"),
    ),
    progress=(Progress("chat/b", b"row", 2, (5, 6), ("x", "y")),),
    fair={"normal": BandTimes(1.5, {"": 2.0, "a": 1.5})},
)
PART = Part(
    txn="2" * 32,
    created_ms=1,
    writer="w",
    model="chat",
    items=(
        CommitItem("c", b"document"),
        JobItem("chat/a", b"data", b"row", 0, 9, (5, 6), ("x", "y")),
        JobItem("chat/b", b"data", b"row", state=JobState.FAILED, result=b"result"),
        SessionItem("s", b"row"),
    ),
)
SNAPSHOT = Snapshot(
    txn="3" * 32,
    created_ms=1,
    writer="w",
    model="chat",
    lineage="l",
    epoch=1,
    seq=1,
    inc=7,
    watermark=JournalId(7, 2),
    as_of_ms=3,
    segment="state/chat/segments/0000000001-0000000001",
    prev=None,
    fair=None,
    parts=(
        PartRef("state/chat/parts/a", "commit/c", "job/chat/b", 3, 100, bytes(32)),
        PartRef("state/chat/parts/b", "session/s", "session/s", 1, 10, bytes(32)),
    ),
)
KINDS: list[type[Head | Segment | Snapshot | Part]] = [Head, Segment, Snapshot, Part]


def sealed(fields: dict[str, object]) -> bytes:
    """A document with a correct digest, whatever its fields."""
    body = pack({**{k: v for k, v in fields.items() if k != "digest"}, "digest": bytes(32)})[:-32]
    return body + hashlib.sha256(body).digest()


@settings(deadline=None)
@given(segments())
def test_a_segment_is_read_as_it_was_written(segment: Segment) -> None:
    assert Segment.unpack(segment.pack()) == segment


@settings(deadline=None)
@given(heads())
def test_a_head_is_read_as_it_was_written(head: Head) -> None:
    assert Head.unpack(head.pack()) == head


@settings(deadline=None)
@given(snapshots(), parts())
def test_a_snapshot_and_its_parts_are_read_as_they_were_written(snapshot: Snapshot, part: Part) -> None:
    assert Snapshot.unpack(snapshot.pack()) == snapshot
    assert Part.unpack(part.pack()) == part


@settings(deadline=None)
@given(segments(), st.data())
def test_a_segment_with_any_one_bit_flipped_is_refused(segment: Segment, data: st.DataObject) -> None:
    body = bytearray(segment.pack())
    bit = data.draw(st.integers(0, len(body) * 8 - 1))
    body[bit // 8] ^= 1 << bit % 8
    with pytest.raises(MalformedDocument):
        Segment.unpack(bytes(body))


def test_a_head_with_any_one_bit_flipped_is_refused() -> None:
    packed = HEAD.pack()
    for bit in range(len(packed) * 8):
        body = bytearray(packed)
        body[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MalformedDocument):
            Head.unpack(bytes(body))


@settings(deadline=None)
@given(segments(), st.data())
def test_a_segment_that_is_cut_short_or_goes_on_is_refused(segment: Segment, data: st.DataObject) -> None:
    body = segment.pack()
    length = data.draw(st.integers(0, len(body) - 1))
    more = data.draw(st.binary(min_size=1, max_size=40))
    for wrong in (body[:length], body + more):
        with pytest.raises(MalformedDocument):
            Segment.unpack(wrong)


@pytest.mark.parametrize("document", [PART, SNAPSHOT])
def test_a_snapshot_or_part_with_any_one_bit_flipped_or_cut_is_refused(document: Part | Snapshot) -> None:
    packed = document.pack()
    for bit in range(len(packed) * 8):
        body = bytearray(packed)
        body[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MalformedDocument):
            type(document).unpack(bytes(body))
    for length in range(len(packed)):
        with pytest.raises(MalformedDocument):
            type(document).unpack(packed[:length])


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused_with_our_own_error(body: bytes) -> None:
    for kind in KINDS:
        with pytest.raises(MalformedDocument):
            kind.unpack(body)


def test_a_head_is_no_segment_and_a_segment_no_head() -> None:
    with pytest.raises(MalformedDocument, match="headpond/segment"):
        Segment.unpack(HEAD.pack())
    with pytest.raises(MalformedDocument, match="headpond/head"):
        Head.unpack(SEGMENT.pack())


def test_a_newer_version_is_refused_before_its_digest_is_looked_at() -> None:
    newer = pack({"schema": "headpond/head", "v": 3, "everything": "else"})
    with pytest.raises(UnsupportedSchema, match="reads up to 2"):
        Head.unpack(newer)


def test_a_head_and_a_segment_of_the_first_version_are_read_and_written_anew_as_the_second() -> None:
    head = Head.unpack((FIXTURES / "state-v1" / "head").read_bytes())
    inc = 1764000000000
    assert (head.seq, head.epoch, head.inc, head.watermark) == (1, 2, inc, JournalId(inc, 4))
    assert head.segment == "state/chat/segments/0000000002-0000000001"
    assert (head.as_of_ms, head.snapshot, head.snapshot_seq, head.floor) == (0, None, 0, 0)
    segment = Segment.unpack((FIXTURES / "state-v1" / "segment").read_bytes())
    assert segment.records == (
        SubmitRecord(JournalId(inc, 1), "chat/one", b"request of chat/one"),
        SubmitRecord(JournalId(inc, 2), "chat/two", b"request of chat/two"),
        EndRecord(JournalId(inc, 3), "chat/one", JobState.FINISHED, b"result of chat/one"),
        EndRecord(JournalId(inc, 4), "chat/two", JobState.CANCELLED, b""),
    )
    assert (segment.inc, segment.as_of_ms, segment.progress, segment.fair) == (inc, 0, (), None)
    assert Head.unpack(head.pack()) == head
    assert Segment.unpack(segment.pack()) == segment
    assert unpack(segment.pack(), kind="test")["v"] == 2


def test_fields_that_this_version_does_not_know_are_passed_over() -> None:
    assert Segment.unpack(sealed({**unpack(SEGMENT.pack(), kind="t"), "color": "blue"})) == SEGMENT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field in unpack(SEGMENT.pack(), kind="test")
        for value in [*ODD_VALUES, [1]]
        if (field, value)
        not in (("prev", None), ("records", []), ("progress", []), ("fair", None), ("fair", {}), ("inc", 1 << 60))
    ],
)
def test_a_segment_field_of_another_type_or_range_is_refused(field: str, value: object) -> None:
    fields = {**unpack(SEGMENT.pack(), kind="test"), field: value}
    with pytest.raises(MalformedDocument):
        Segment.unpack(pack(fields) if field == "digest" else sealed(fields))


@pytest.mark.parametrize(
    "field",
    [
        "txn", "writer", "lineage", "epoch", "seq", "inc", "watermark", "as_of_ms", "snapshot_seq", "floor",
        "above_bytes", "snapshot_bytes",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", ODD_VALUES)
def test_a_head_field_of_another_type_or_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(MalformedDocument):
        Head.unpack(sealed({**unpack(HEAD.pack(), kind="test"), field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field in unpack(SNAPSHOT.pack(), kind="test")
        for value in [*ODD_VALUES, [1]]
        if (field, value) not in (("prev", None), ("prev", "x" * 1000), ("parts", []), ("fair", None), ("fair", {}))
    ],
)
def test_a_snapshot_field_of_another_type_or_range_is_refused(field: str, value: object) -> None:
    if (field, value) == ("prev", ""):
        return
    fields = {**unpack(SNAPSHOT.pack(), kind="test"), field: value}
    with pytest.raises(MalformedDocument):
        Snapshot.unpack(pack(fields) if field == "digest" else sealed(fields))


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"id": "zzz"},
        {"kind": "thing"},
        {"data": "text"},
        {"due_ms": -1},
        {"ids": [1]},
        {"ids": [1, "2"]},
        {"ids": [1, -2]},
        {"pieces": ["a", b"b"]},
        {"state": "running"},
        {"state": "asleep"},
        {"state": "failed"},
    ],
)
def test_an_item_that_breaks_a_rule_is_refused(change: dict[str, object]) -> None:
    fields = unpack(PART.pack(), kind="test")
    fields["items"][1] |= change
    with pytest.raises(MalformedDocument):
        Part.unpack(sealed(fields))


@pytest.mark.parametrize("change", [{"first": "z"}, {"items": 0}, {"sha256": b"short"}, {"last": "session/s"}])
def test_a_part_that_is_named_wrongly_is_refused(change: dict[str, object]) -> None:
    fields = unpack(SNAPSHOT.pack(), kind="test")
    fields["parts"][0] |= change
    with pytest.raises(MalformedDocument):
        Snapshot.unpack(sealed(fields))


@pytest.mark.parametrize(
    "change", [{"id": ""}, {"offset": -1}, {"ids": [1]}, {"ids": [1, None]}, {"pieces": "ab"}, {"row": "text"}]
)
def test_progress_that_breaks_a_rule_is_refused(change: dict[str, object]) -> None:
    fields = unpack(SEGMENT.pack(), kind="test")
    fields["progress"][0] |= change
    with pytest.raises(MalformedDocument):
        Segment.unpack(sealed(fields))


@pytest.mark.parametrize(
    "fair",
    [
        {"normal": 1},
        {"normal": [1]},
        {"normal": [1, {}, 2]},
        {"normal": ["1", {}]},
        {"normal": [-1, {}]},
        {"normal": [float("nan"), {}]},
        {"normal": [float("inf"), {}]},
        {"normal": [1, {"a": True}]},
        {"normal": [1, {"a" * 600: 1}]},
    ],
)
def test_what_tenants_have_paid_is_refused_where_it_breaks_a_rule(fair: object) -> None:
    with pytest.raises(MalformedDocument):
        Segment.unpack(sealed({**unpack(SEGMENT.pack(), kind="test"), "fair": fair}))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "steal"},
        {"kind": 3},
        {"state": "running"},
        {"state": "asleep"},
        {"result": "text"},
        {"id": ""},
        {"id": "x" * 600},
        {"journal_id": "7"},
        {"journal_id": "07-1"},
        {"journal_id": "7-99999999999999999"},
        {"journal_id": "7-3"},
        {"journal_id": "7-1"},
    ],
)
def test_a_record_that_breaks_a_rule_is_refused(change: dict[str, object]) -> None:
    fields = unpack(SEGMENT.pack(), kind="test")
    fields["records"][1] |= change
    with pytest.raises(MalformedDocument):
        Segment.unpack(sealed(fields))


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 2},
        {"epoch": 0},
        {"prev": "state/chat/segments/0000000001-0000000000"},
        {"first": JournalId(7, 2)},
        {"last": JournalId(7, 1)},
        {"model": "Chat!"},
        {"writer": ""},
        {"txn": "short"},
        {"records": tuple(reversed(SEGMENT.records))},
        {"first": None},
        {"last": None},
        {"first": None, "last": None},
        {"inc": 6},
    ],
)
def test_a_segment_that_breaks_a_rule_is_not_even_written(change: dict[str, object]) -> None:
    with pytest.raises(MalformedDocument):
        replace(SEGMENT, **change)  # type: ignore[arg-type]


def test_a_segment_above_the_limit_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    body = SEGMENT.pack()
    monkeypatch.setattr(documents, "MAX_SEGMENT_BYTES", len(body) - 1)
    with pytest.raises(MalformedDocument, match=f"{len(body)} bytes; at most"):
        Segment.unpack(body)
    with pytest.raises(MalformedDocument, match=f"{len(body)} bytes; at most"):
        SEGMENT.pack()


def test_journal_ids_are_ordered_by_their_numbers_not_their_text() -> None:
    ids = [JournalId.parse(text) for text in ("9-10", "10-2", "9-9", "10-10")]
    assert [str(i) for i in sorted(ids)] == ["9-9", "9-10", "10-2", "10-10"]
