"""Heads and segments as bytes: what is written is read, and nothing else is accepted."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headpond.errors import MalformedDocument, UnsupportedSchema
from headpond.jobs import JobState
from headpond.wire import pack, unpack
from headpond_workers.persistence import documents
from headpond_workers.persistence.documents import (
    MAX_COUNT,
    EndRecord,
    Head,
    JournalId,
    Record,
    Segment,
    SubmitRecord,
)

ODD_VALUES: list[object] = [None, True, -1, 1.5, "", b"", [], {}, "x" * 1000, 1 << 60]
ENDS = [state for state in JobState if state.ended]
counts = st.integers(0, MAX_COUNT)
names = st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable())
journal_ids = st.builds(JournalId, counts, counts)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    ids = sorted(draw(st.sets(journal_ids, min_size=1, max_size=6)))
    records: list[Record] = []
    for journal_id in ids[draw(st.integers(0, 1)) :]:
        if draw(st.booleans()):
            records.append(SubmitRecord(journal_id, draw(names), draw(st.binary(max_size=50))))
        else:
            state = draw(st.sampled_from(ENDS))
            records.append(EndRecord(journal_id, draw(names), state, draw(st.binary(max_size=50))))
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
        first=ids[0],
        last=ids[-1],
        records=tuple(records),
    )


@st.composite
def heads(draw: st.DrawFn) -> Head:
    seq = draw(st.integers(0, 10**9))
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
    records=(
        SubmitRecord(JournalId(7, 1), "chat/a", b"data"),
        EndRecord(JournalId(7, 2), "chat/a", JobState.FINISHED, b"result"),
    ),
)


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


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused_with_our_own_error(body: bytes) -> None:
    for kind in (Head, Segment):
        with pytest.raises(MalformedDocument):
            kind.unpack(body)


def test_a_head_is_no_segment_and_a_segment_no_head() -> None:
    with pytest.raises(MalformedDocument, match="headpond/segment"):
        Segment.unpack(HEAD.pack())
    with pytest.raises(MalformedDocument, match="headpond/head"):
        Head.unpack(SEGMENT.pack())


def test_a_newer_version_is_refused_before_its_digest_is_looked_at() -> None:
    newer = pack({"schema": "headpond/head", "v": 2, "everything": "else"})
    with pytest.raises(UnsupportedSchema, match="reads up to 1"):
        Head.unpack(newer)


def test_fields_that_this_version_does_not_know_are_passed_over() -> None:
    assert Segment.unpack(sealed({**unpack(SEGMENT.pack(), kind="t"), "color": "blue"})) == SEGMENT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field in unpack(SEGMENT.pack(), kind="test")
        for value in [*ODD_VALUES, [1]]
        if (field, value) not in (("prev", None), ("records", []))
    ],
)
def test_a_segment_field_of_another_type_or_range_is_refused(field: str, value: object) -> None:
    fields = {**unpack(SEGMENT.pack(), kind="test"), field: value}
    with pytest.raises(MalformedDocument):
        Segment.unpack(pack(fields) if field == "digest" else sealed(fields))


@pytest.mark.parametrize("field", ["txn", "writer", "lineage", "epoch", "seq", "inc", "watermark"])
@pytest.mark.parametrize("value", ODD_VALUES)
def test_a_head_field_of_another_type_or_range_is_refused(field: str, value: object) -> None:
    with pytest.raises(MalformedDocument):
        Head.unpack(sealed({**unpack(HEAD.pack(), kind="test"), field: value}))


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
