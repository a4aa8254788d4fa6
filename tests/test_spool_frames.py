"""Frames and documents of a spool file: what is torn or altered is not there, or refused, and never believed."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headpond.codec import pack
from headpond.errors import BlobCorrupt, MalformedDocument, UnsupportedSchema
from headpond_workers.persistence.batch import Batch
from headpond_workers.persistence.fair import BandTimes
from headpond_workers.persistence.journal_id import JournalId
from headpond_workers.persistence.progress import Progress
from headpond_workers.persistence.records import BackRecord, DropRecord, SubmitRecord
from headpond_workers.persistence.spool import Spool
from headpond_workers.persistence.spool_document import SPOOL_SCHEMA, SpoolDocument
from headpond_workers.persistence.spool_frames import HEADER_BYTES, MAGIC, MAX_BODY_BYTES, frame, read_frame

bodies = st.lists(st.binary(max_size=40), max_size=5)


def document(seq: int = 1) -> SpoolDocument:
    return SpoolDocument(
        txn="0" * 31 + str(seq % 10), created_ms=5, writer="w", model="chat", lineage="l",
        batch=Batch(
            first=JournalId(3, seq), last=JournalId(3, seq + 2), inc=4, as_of_ms=9,
            records=(
                SubmitRecord(JournalId(3, seq), "chat/a", b"data", b"row", 1, 2),
                BackRecord(JournalId(3, seq + 1), "chat/a", b"row"),
                DropRecord(JournalId(3, seq + 2), "chat/b"),
            ),
            progress=(Progress("chat/a", b"row", 2, (7, 8), (" a", " b")),),
            fair={"normal": BandTimes(1.5, {"tenant": 2.5})},
        ),
    )  # fmt: skip


def read_all(data: bytes) -> list[bytes]:
    file = io.BytesIO(data)
    return list(iter(lambda: read_frame(file), None))


@given(bodies)
def test_frames_come_back_as_they_were(written: list[bytes]) -> None:
    assert read_all(b"".join(map(frame, written))) == written


@given(bodies, st.data())
def test_a_file_that_is_cut_anywhere_has_the_whole_frames_before(written: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(map(frame, written))
    cut = data.draw(st.integers(0, len(whole)))
    found = read_all(whole[:cut])
    assert found == written[: len(found)]
    assert sum(HEADER_BYTES + len(body) for body in found) <= cut
    if len(found) < len(written):
        assert cut < sum(HEADER_BYTES + len(body) for body in written[: len(found) + 1])


@given(bodies.filter(bool), st.data())
def test_a_flipped_bit_ends_what_is_whole(written: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(b"".join(map(frame, written)))
    place = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[place // 8] ^= 1 << (place % 8)
    found = read_all(bytes(whole))
    assert len(found) < len(written)
    assert found == written[: len(found)]


@pytest.mark.parametrize("length", [MAX_BODY_BYTES + 1, 0xFFFFFFFF])
def test_no_length_above_the_most_is_believed(length: int) -> None:
    class Counted(io.BytesIO):
        asked = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.asked = max(self.asked, size or 0)
            return super().read(size)

    file = Counted(struct.pack("<4sII", MAGIC, length, 0) + b"x" * 100)
    assert read_frame(file) is None
    assert file.asked == HEADER_BYTES
    with pytest.raises(ValueError, match="at most"):
        frame(bytes(MAX_BODY_BYTES + 1))


def test_a_document_comes_back_as_it_was() -> None:
    assert SpoolDocument.unpack(document().pack()) == document()


@settings(max_examples=200)
@given(st.data())
def test_an_altered_document_is_refused(data: st.DataObject) -> None:
    packed = bytearray(document().pack())
    place = data.draw(st.integers(0, len(packed) * 8 - 1))
    packed[place // 8] ^= 1 << (place % 8)
    with pytest.raises(MalformedDocument):
        SpoolDocument.unpack(bytes(packed))


def test_a_document_of_a_newer_headpond_is_refused_and_stays(tmp_path: Path) -> None:
    newer = pack({"schema": SPOOL_SCHEMA, "v": 2})
    with pytest.raises(UnsupportedSchema, match="version 2"):
        SpoolDocument.unpack(newer)
    spool = Spool(tmp_path, "chat")
    with spool.locked():
        spool.append([frame(newer)], last=JournalId(1, 1))
    with pytest.raises(UnsupportedSchema), Spool(tmp_path, "chat").locked():
        pytest.fail("it was read")
    assert spool.path.read_bytes() == frame(newer)


def test_a_whole_frame_that_holds_something_else_is_an_error_that_names_its_place(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "chat")
    good = frame(document().pack())
    with spool.locked():
        spool.append([good, frame(b"something else")], last=JournalId(3, 3))
    with pytest.raises(BlobCorrupt, match=f"at byte {len(good)}"), Spool(tmp_path, "chat").locked():
        pytest.fail("it was read")


def test_what_is_appended_behind_a_torn_end_is_found(tmp_path: Path) -> None:
    frames = [frame(document(seq).pack()) for seq in (1, 5, 9)]
    spool = Spool(tmp_path, "chat")
    with spool.locked():
        spool.append(frames[:1], last=JournalId(3, 3))
    with spool.path.open("ab") as file:
        file.write(frames[1][:-3])
    other = Spool(tmp_path, "chat")
    with other.locked():
        assert (other.last, other.size_bytes) == (JournalId(3, 3), len(frames[0]))
        other.append(frames[1:2], last=JournalId(3, 7))
    # The first process sees what the other has appended, and goes on behind it.
    with spool.locked():
        assert (spool.last, spool.id) == (JournalId(3, 7), other.id)
        spool.append(frames[2:], last=JournalId(3, 11))
        assert [each.batch.first for each in spool.documents()] == [JournalId(3, 1), JournalId(3, 5), JournalId(3, 9)]
        spool.clear()
    with other.locked():
        assert (other.size_bytes, other.has_frames, list(other.documents())) == (0, False, [])
    assert spool.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in spool.folder.iterdir()} == {0o600}
