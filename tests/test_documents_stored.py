"""Every document that was ever stored is read for ever; bytes that are none are refused, and cost little memory."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headpond
import headpond_workers
from document_kinds import FILES, FIXTURES, KINDS, OLDER, REPLIES, Kind, fixture_of, parsed_name
from headpond.codec import MAX_DEPTH, MEMORY_FACTOR, pack, unpack
from headpond.errors import HeadpondError, MalformedDocument, UnsupportedSchema
from headpond.wire import MAX_CALL_DEPTH, Call, pack_data, unpack_data
from hostile_bytes import HOSTILE

PACKAGES = [Path(package.__file__ or "").parent for package in (headpond, headpond_workers)]
FRAMES = {
    "headpond.codec.unpack",
    "headpond.codec._unpack",
    "headpond.codec.unpack_versioned",
    "headpond.codec.unpack_raw",
    "headpond.codec.unpack_document",
    "headpond.codec.unpack_row",
    "headpond.wire.unpack_data",
    "headpond.wire.unpack_header",
    "headpond_workers.storage.sealed.Fields.unseal",
    "headpond.switching.parse_switch",
}
"""What the readers are made of, and `parse_switch`, whose fields are plain text."""
ELSEWHERE = {
    "headpond/session": "what `headpond sessions export` writes, and nothing reads",
    "headpond/kv-prefix": "tests/test_exllamav2_prefixes.py: a safetensors file, and no document",
    "headpond_workers.replay.events.parse_event": "a line from a process of this very headpond",
    "headpond_workers.engines.formats.model_files.parse_json_object": "test_checkpoint_folder: a file of a checkpoint",
}
SLACK_BYTES = 512 << 10
"""What a reader takes whatever it is given: buffers, the error, modules that it imports at first use."""
READERS = {**KINDS, **REPLIES}
readers = pytest.mark.parametrize("name", READERS)
fixtures = pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.v*")), ids=lambda path: path.name)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def accepted(name: str, data: bytes) -> bool:
    """Whether a reader takes the bytes. Any error but MalformedDocument and UnsupportedSchema fails the test."""
    try:
        READERS[name].read(data)
    except MalformedDocument:
        return False
    return True


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
            yield name, ast.parse(path.read_text())


def functions(prefix: str, body: list[ast.stmt]) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield f"{prefix}.{node.name}", node
        elif isinstance(node, ast.ClassDef):
            yield from functions(f"{prefix}.{node.name}", node.body)


def is_reader(function: ast.FunctionDef) -> bool:
    args = [arg for arg in function.args.args if arg.arg not in ("self", "cls")]
    given = {ast.unparse(arg.annotation) for arg in args if arg.annotation}
    named = re.fullmatch(r"_?(unpack|unseal|parse)(_.*)?", function.name) is not None
    return named and not given.isdisjoint({"bytes", "Mapping[bytes, bytes]"})


@fixtures
def test_a_document_of_any_version_that_ever_was_is_read(path: Path) -> None:
    name, version = parsed_name(path)
    kind = {**KINDS, **FILES}[name]
    assert version <= (kind.version, kind.revision)
    expected = kind.value if version == (kind.version, kind.revision) else OLDER[path.name]
    assert kind.read(path.read_bytes()) == expected


@pytest.mark.parametrize("name", [*KINDS, *FILES])
def test_every_kind_has_a_file_of_the_version_that_is_written_now(name: str) -> None:
    kind = {**KINDS, **FILES}[name]
    path = fixture_of(name, kind)
    assert path.exists(), f"write it with: python tests/document_kinds.py ({path.name})"
    assert kind.written() == path.read_bytes(), "what is written has changed: is it a new version, or a revision?"
    versions = {version for other, (version, _) in map(parsed_name, FIXTURES.glob("*.v*")) if other == name}
    assert versions == set(range(1, kind.version + 1))


def test_every_schema_that_the_code_names_is_a_kind() -> None:
    named = {
        node.value
        for _, module in modules()
        for node in ast.walk(module)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        and re.fullmatch(r"headpond/[a-z][a-z-]*", node.value)
    }  # fmt: skip
    written = [parts_of(kind.written())[0] for kind in (*KINDS.values(), *FILES.values())]
    assert named - ELSEWHERE.keys() == {document["schema"] for document in written if isinstance(document, dict)}


def test_every_row_that_the_code_reads_is_a_kind() -> None:
    named = {
        keyword.value.value
        for _, module in modules()
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "kind" and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str)
    }
    parts = {"data header": "data-entry", "call": "data-entry", "stream event": "rewound"}
    known = {*KINDS, *REPLIES}
    assert {parts.get(kind, kind) for kind in named if parts.get(kind, kind).replace(" ", "-") not in known} <= known


def test_every_reader_of_bytes_is_tried_here() -> None:
    found = {
        name
        for module_name, module in modules()
        for name, function in functions(module_name, module.body)
        if is_reader(function)
    }
    assert found - FRAMES - ELSEWHERE.keys() == {kind.reader for kind in READERS.values()}


@pytest.mark.parametrize("name", KINDS)
def test_a_newer_version_of_any_kind_is_refused_with_what_to_do(name: str) -> None:
    newer = KINDS[name].version + 1
    with pytest.raises(UnsupportedSchema, match="Upgrade headpond") as refused:
        KINDS[name].read(of_version(name, KINDS[name], newer))
    assert (refused.value.found, refused.value.supported) == (newer, newer - 1)


@pytest.mark.parametrize("name", FILES)
def test_a_newer_version_of_a_file_is_not_believed(name: str) -> None:
    kind = FILES[name]
    document = json.loads(kind.written())
    document["v"] += 1
    if name == "cached-version":
        # It is fetched and checked anew.
        assert kind.read(json.dumps(document).encode()) is None
        return
    with pytest.raises(HeadpondError, match=r"version 2|another version"):
        kind.read(json.dumps(document).encode())


@readers
def test_bytes_that_are_cut_anywhere_are_refused(name: str) -> None:
    whole = READERS[name].written()
    assert accepted(name, whole)
    places = range(len(whole)) if len(whole) < 1000 else range(0, len(whole), 7)
    # The line feed at the end of a bundle is no part of it.
    assert [n for n in places if accepted(name, whole[:n])] in ([], [len(whole) - 1])


@readers
def test_a_flipped_bit_is_read_or_refused_and_never_another_error(name: str) -> None:
    whole = READERS[name].written()
    outcomes = []
    for at in range(0, len(whole) * 8, 1 if len(whole) < 400 else 5):
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        outcomes.append(accepted(name, bytes(flipped)))
    assert False in outcomes
    if is_sealed(parts_of(whole)):
        assert True not in outcomes


@readers
@given(junk=st.binary(max_size=80))
def test_random_bytes_are_read_or_refused_and_never_another_error(name: str, junk: bytes) -> None:
    assert accepted(name, junk) in (True, False)


@readers
@given(data=st.data())
def test_a_value_of_any_other_type_anywhere_is_read_or_refused_and_never_another_error(
    name: str, data: st.DataObject
) -> None:
    parts = parts_of(READERS[name].written())
    sealed = is_sealed(parts)
    holder, place = data.draw(st.sampled_from(list(places_in(parts))))
    holder[place] = data.draw(plain | st.sampled_from([math.inf, math.nan, -1, 1 << 63, "", b"", [], {}]))
    written = packed(parts, sealed=sealed, as_json=name == "bundle")
    assert accepted(name, written) in (True, False)


@readers
@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_bytes_are_refused_and_cost_no_more_memory_than_they_are_long(name: str, attack: str) -> None:
    data = (FIXTURES / "hostile" / attack).read_bytes()
    accepted(name, data)
    tracemalloc.start()
    try:
        assert not accepted(name, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= MEMORY_FACTOR * len(data) + SLACK_BYTES


def test_the_hostile_bytes_are_those_that_are_committed() -> None:
    assert {path.name: path.read_bytes() for path in (FIXTURES / "hostile").iterdir()} == HOSTILE


@pytest.mark.parametrize("item", [b"\x80", b"\x90", b"\x81\xa0\xc0", b"\xa2\xc4\x80", b"\xd0\x80", b"\xc4\x02aa"])
def test_a_value_of_the_smallest_items_takes_no_more_memory_than_is_told(item: bytes) -> None:
    data = b"\xdd" + (1 << 18).to_bytes(4, "big") + item * (1 << 18)
    tracemalloc.start()
    try:
        assert len(unpack(data, kind="thing")) == 1 << 18
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= MEMORY_FACTOR * len(data) + SLACK_BYTES


def test_arrays_inside_arrays_that_all_say_too_much_are_refused_before_room_is_made_for_them() -> None:
    claim = b"\xdd" + (1 << 20).to_bytes(4, "big")
    data = claim * 500 + bytes((1 << 20) - 2500)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedDocument):
            unpack(data, kind="thing")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 2 * len(data) + SLACK_BYTES


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1k", b"\xdc\x00\x01", b"\xde\x00\x01\xa1k"])
def test_as_many_levels_as_are_told_are_read_and_one_more_is_refused(opening: bytes) -> None:
    unpack(opening * MAX_DEPTH + b"\xc0", kind="thing")
    with pytest.raises(MalformedDocument, match=f"more than {MAX_DEPTH} levels"):
        unpack(opening * (MAX_DEPTH + 1) + b"\xc0", kind="thing")


def test_a_wide_value_of_many_containers_is_not_taken_for_a_deep_one() -> None:
    wide = [[[]] for _ in range(10_000)]
    assert unpack(pack(wide), kind="thing") == wide


def test_a_call_may_be_as_deep_as_msgpack_packs_it() -> None:
    nested: list[Any] = []
    for _ in range(MAX_CALL_DEPTH - 4):
        nested = [nested]
    call = Call("actor", (nested,), {}, {}, 1)
    assert unpack_data(pack_data(call, digest="")) == call


def test_an_extension_type_is_refused() -> None:
    for extension in (msgpack.ExtType(5, b"x"), msgpack.Timestamp(1)):
        with pytest.raises(MalformedDocument):
            unpack(msgpack.packb([extension]), kind="thing")


def parts_of(written: bytes) -> list[Any]:
    """The values that stand one after the other in a document or row."""
    if written.startswith(b"{"):
        return [json.loads(written)]
    unpacker = msgpack.Unpacker(raw=False, unicode_errors="surrogateescape")
    unpacker.feed(written)
    return list(unpacker)


def is_sealed(parts: list[Any]) -> bool:
    """Whether it is a document whose last field is a digest of all before."""
    return isinstance(parts[0], dict) and list(parts[0])[-1] == "digest"


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place of a nested value: what holds it, and its key or index there."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for place, inner in pairs:
        yield value, place
        if isinstance(inner, dict | list):
            yield from places_in(inner)


def packed(parts: list[Any], *, sealed: bool, as_json: bool) -> bytes:
    if as_json:
        return json.dumps(parts[0], default=str).encode()
    written = b"".join(msgpack.packb(part, unicode_errors="surrogateescape") for part in parts)
    return written[:-32] + hashlib.sha256(written[:-32]).digest() if sealed else written


def of_version(name: str, kind: Kind, version: int) -> bytes:
    """What is written now, but for a version in its place."""
    parts = parts_of(kind.written())
    if isinstance(parts[0], dict):
        parts[0]["v"] = version
    else:
        parts[0][0] = version
    return packed(parts, sealed=False, as_json=name == "bundle")
