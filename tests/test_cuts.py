"""Files are cut where their tensors or their contents say, and a hostile header leads nowhere."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headpond.errors import ModelFileError
from headpond_workers.checkpoints.manifest import MAX_CHUNK_BYTES
from headpond_workers.checkpoints.pushes.cuts import (
    MAX_CONTENT_BYTES,
    MIN_CONTENT_BYTES,
    UNCUT_BYTES,
    content_cuts,
    cuts_between,
    known_cuts,
)
from headpond_workers.engines.formats.gguf_header import read_header, tensor_extents
from headpond_workers.engines.formats.safetensors_header import read_safetensors_header
from tiny_weights import gguf, noise, safetensors

MIB = 1 << 20
Weights = Callable[[Mapping[str, bytes]], bytes]
FORMATS: list[tuple[str, Weights]] = [("safetensors", safetensors), ("gguf", gguf)]
FORMAT = pytest.mark.parametrize(("suffix", "made"), FORMATS, ids=[name for name, _ in FORMATS])


def written(folder: Path, suffix: str, content: bytes) -> Path:
    path = folder / f"model.{suffix}"
    path.write_bytes(content)
    return path


@st.composite
def extents(draw: st.DrawFn) -> tuple[list[tuple[int, int]], int]:
    """Tensors in any order, with gaps between them, and the size of their file."""
    found, at = [], 0
    for _ in range(draw(st.integers(0, 12))):
        at += draw(st.integers(0, 3)) * draw(st.sampled_from([1, 777, MAX_CHUNK_BYTES]))
        size = draw(st.integers(0, 40 * MIB))
        found.append((at, at + size))
        at += size
    at += draw(st.integers(0, 20 * MIB))
    return draw(st.permutations(found)), at


@given(extents())
def test_cuts_cover_a_file_exactly_and_stand_at_the_bounds_of_every_tensor(
    case: tuple[list[tuple[int, int]], int],
) -> None:
    tensors, size = case
    sizes = cuts_between(tensors, size)
    assert sum(sizes) == size
    assert all(0 < each <= MAX_CHUNK_BYTES for each in sizes)
    bounds, at = {0}, 0
    for each in sizes:
        at += each
        bounds.add(at)
    for begin, end in tensors:
        if begin != end:
            assert {begin, end} <= bounds
            assert set(range(begin, end, MAX_CHUNK_BYTES)) <= bounds, "pieces count from the tensor's start"


@given(extents(), st.data())
def test_tensors_that_overlap_are_refused(case: tuple[list[tuple[int, int]], int], data: st.DataObject) -> None:
    tensors, size = case
    whole = [(begin, end) for begin, end in tensors if end - begin > 1]
    if not whole:
        return
    begin, end = data.draw(st.sampled_from(whole))
    inside = data.draw(st.integers(begin, end - 1))
    with pytest.raises(ValueError, match="a tensor at the bytes"):
        cuts_between([*tensors, (inside, inside + 1)], size)


@pytest.mark.parametrize("size", [0, 1, UNCUT_BYTES])
def test_a_small_file_that_is_no_weights_is_one_chunk(tmp_path: Path, size: int) -> None:
    assert known_cuts(tmp_path / "config.json", size) == ([size] if size else [])


def test_a_larger_one_is_cut_by_its_content(tmp_path: Path) -> None:
    assert known_cuts(tmp_path / "tokenizer.json", UNCUT_BYTES + 1) is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.integers(1, 9 * MIB), st.lists(st.integers(1, 6 * MIB), min_size=1, max_size=4))
def test_content_is_cut_alike_however_it_is_handed_over(seed: int, size: int, parts: list[int]) -> None:
    content = noise(seed, size)
    whole = content_cuts(memoryview(content), last=True)
    assert sum(whole) == size
    assert all(each <= MAX_CONTENT_BYTES for each in whole)
    assert all(each >= MIN_CONTENT_BYTES for each in whole[:-1])
    found: list[int] = []
    begin, end, turn = 0, 0, 0
    while end < size:
        end = min(size, end + parts[turn % len(parts)])
        turn += 1
        found += content_cuts(memoryview(content)[begin:end], last=end == size)
        begin = sum(found)
    assert found == whole


def test_an_insertion_changes_only_the_chunks_around_it() -> None:
    content = noise(1, 24 * MIB)
    changed = content[: 9 * MIB] + b"inserted" + content[9 * MIB :]

    def chunks(of: bytes) -> set[bytes]:
        at, found = 0, set()
        for size in content_cuts(memoryview(of), last=True):
            found.add(of[at : at + size])
            at += size
        return found

    new = chunks(changed) - chunks(content)
    assert new
    assert sum(map(len, new)) <= 2 * MAX_CONTENT_BYTES


@FORMAT
def test_weights_are_cut_at_their_tensors(tmp_path: Path, suffix: str, made: Weights) -> None:
    tensors = {"big": noise(1, 36 * MIB), "small": noise(2, 400), "last": noise(3, 64)}
    content = made(tensors)
    path = written(tmp_path, suffix, content)
    sizes = known_cuts(path, len(content))
    assert sizes is not None
    assert sum(sizes) == len(content)
    at, found = 0, []
    for size in sizes:
        found.append(content[at : at + size])
        at += size
    big = tensors["big"]
    assert found[1:4] == [big[: 16 * MIB], big[16 * MIB : 32 * MIB], big[32 * MIB :]]
    assert tensors["small"] in found
    assert found[-1] == tensors["last"]


def test_a_tensor_of_an_unknown_type_reaches_to_the_next(tmp_path: Path) -> None:
    tensors = {"a": noise(1, 320), "b": noise(2, 64), "c": noise(3, 100)}
    content = gguf(tensors, kind=9999)
    header = read_header(written(tmp_path, "gguf", content))
    start = header.data_start
    assert tensor_extents(header) == [(start, start + 320), (start + 320, start + 384), (start + 384, len(content))]


def gguf_at(offsets: list[int], kind: int, size: int) -> bytes:
    """Tensors of 16 numbers at these offsets."""
    content = struct.pack("<4sIQQ", b"GGUF", 3, len(offsets), 0)
    for number, offset in enumerate(offsets):
        content += struct.pack("<Q1sIQIQ", 1, b"abcdef"[number : number + 1], 1, 16, kind, offset)
    return content + bytes(-len(content) % 32) + bytes(size)


@pytest.mark.parametrize(
    ("offsets", "kind"),
    [([0, 32], 0), ([32, 0], 0), ([0, 0], 0), ([0, 63], 0), ([64, 64], 9999)],
    ids=["half", "half-in-other-order", "same-place", "one-byte", "unknown-type"],
)
def test_a_gguf_file_with_tensors_that_overlap_is_refused(tmp_path: Path, offsets: list[int], kind: int) -> None:
    with pytest.raises(ModelFileError, match="overlaps"):
        read_header(written(tmp_path, "gguf", gguf_at(offsets, kind, 256)))


def test_gguf_tensors_side_by_side_are_read(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, "gguf", gguf_at([64, 0, 128], 0, 192)))
    assert [end - begin for begin, end in tensor_extents(header)] == [64, 64, 64]


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[float, bytes]]:
    """Where in a file, as a part of its length, and what is written there."""
    counts = st.sampled_from([0, 1, 0x7F, 0xFF, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
    written_there = st.one_of(
        st.binary(min_size=1, max_size=4),
        counts.map(lambda count: struct.pack("<Q", count)),
        st.sampled_from([b"[", b"{", b'"', b"9" * 30, b"-1", b"1e9", b"[[[[", b"null", b"\xff", b"\x00"]),
    )
    return draw(st.lists(st.tuples(st.floats(0, 1), written_there), min_size=1, max_size=6))


@FORMAT
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=mutations(), cut=st.floats(0, 1))
def test_a_mutated_header_is_read_or_refused_and_takes_no_more_memory_than_the_file_has(
    tmp_path: Path, suffix: str, made: Weights, changes: list[tuple[float, bytes]], cut: float
) -> None:
    data = bytearray(made({"a.weight": noise(1, 64), "b.weight": noise(2, 128), "c": noise(3, 32)}))
    for place, content in changes:
        # The header is what is hostile: three of four changes fall there.
        at = int(place * min(len(data), 400)) if place < 0.75 else int(place * len(data))
        data[at : at + len(content)] = content
    if cut > 0.9:
        del data[int(len(data) * (cut - 0.9) * 10) :]
    path = written(tmp_path, suffix, bytes(data))
    size = os.path.getsize(path)
    tracemalloc.start()
    try:
        sizes = known_cuts(path, size)
        assert sizes is not None
        assert sum(sizes) == size
        assert all(0 < each <= MAX_CHUNK_BYTES for each in sizes)
    except ModelFileError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 256 * size + 200_000


@FORMAT
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_any_bytes_at_all_are_read_or_refused(tmp_path: Path, suffix: str, made: Weights, content: bytes) -> None:
    start = b"GGUF\x03\x00\x00\x00" if made is gguf else struct.pack("<Q", max(0, len(content) - 2)) + b"{"
    read = read_header if made is gguf else read_safetensors_header
    for whole in (content, start + content):
        path = written(tmp_path, suffix, whole)
        try:
            assert read(path) is not None
        except ModelFileError:
            continue
