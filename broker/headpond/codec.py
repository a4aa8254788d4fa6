"""msgpack as headpond uses it: values, documents and rows, bounded and with versions. No I/O.

A document is a map with `schema` and `v`. A row is an array whose first element is its version. A reader refuses a
newer version, and bounds a value before it unpacks it: its bytes, that all of it is there, and its depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgpack

from headpond.errors import MalformedDocument, UnsupportedSchema
from headpond.errors.documents import decoding_reason

MAX_DOCUMENT_BYTES = 64 << 20
MAX_ROW_BYTES = 1 << 20
"""Of a row that holds no text of producers or models."""
MAX_DEPTH = 64
"""Levels of arrays and maps in one value."""
MEMORY_FACTOR = 80
"""A value takes at most so many times its bytes, for an empty map is one byte; that is CPython's figure."""
ROW_VERSION = 1
_REFUSALS = (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException)
_NO_OPENINGS = bytes(byte for byte in range(256) if not (0x80 <= byte <= 0x9F or 0xDC <= byte <= 0xDF))
"""All bytes but those that can begin an array or a map."""
_ARRAY_16, _ARRAY_32 = b"\xdc", b"\xdd"
_CONTAINERS = frozenset({list, dict})


def pack(value: object) -> bytes:
    return cast("bytes", msgpack.packb(value, use_bin_type=True))


def pack_for_script(value: object) -> bytes:
    """As `pack`, with bytes as msgpack's old raw type: cmsgpack, which scripts have, knows no other."""
    return cast("bytes", msgpack.packb(value, use_bin_type=False))


def unpack_raw(data: bytes, *, kind: str) -> Any:
    """What a script packed: all its text is bytes, for cmsgpack knows no difference. Raises MalformedDocument."""
    return _unpack(data, kind=kind, max_depth=MAX_DEPTH, raw=True)


def split_first(data: bytes, *, kind: str) -> tuple[bytes, bytes]:
    """The first of several values that stand one after the other, still packed, and the rest.

    Raises MalformedDocument.
    """
    try:
        end = _first_end(data)
    except _REFUSALS as error:
        raise MalformedDocument(kind, decoding_reason(error)) from error
    return data[:end], data[end:]


def unpack(data: bytes, *, kind: str, max_bytes: int = MAX_DOCUMENT_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Unpack one value. Raises MalformedDocument; takes no more memory than MEMORY_FACTOR times its bytes."""
    if len(data) > max_bytes:
        raise MalformedDocument(kind, f"{len(data)} bytes; at most {max_bytes} are read")
    return _unpack(data, kind=kind, max_depth=max_depth, raw=False)


def _unpack(data: bytes, *, kind: str, max_depth: int, raw: bool) -> Any:
    try:
        # An array has its place made for as many elements as it says, and so has each one inside it, before it is seen
        # that they are not there. One of less than 16 says too little to matter.
        if _ARRAY_16 in data or _ARRAY_32 in data:
            _first_end(data)
        value = msgpack.unpackb(data, raw=raw, strict_map_key=True, max_ext_len=0)
    except _REFUSALS as error:
        raise MalformedDocument(kind, decoding_reason(error)[:200]) from error
    if _is_deep(value, data, max_depth):
        raise MalformedDocument(kind, f"more than {max_depth} levels of arrays and maps")
    return value


def _first_end(data: bytes) -> int:
    """Where the first value ends: goes through it and makes nothing of it. Raises one of _REFUSALS if it is cut."""
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(data), 1), read_size=1)
    unpacker.feed(data)
    unpacker.skip()
    return cast("int", unpacker.tell())


def _is_deep(value: object, data: bytes, max_depth: int) -> bool:
    # Each level takes a byte that opens it, and most values have too few of those.
    if len(data.translate(None, _NO_OPENINGS)) <= max_depth:
        return False
    level = [value]
    for _ in range(max_depth):
        # Only containers; a list of a million numbers is gone through once.
        level = [
            inner
            for outer in level
            if type(outer) in _CONTAINERS
            for inner in (outer.values() if type(outer) is dict else cast("list[object]", outer))
            if type(inner) in _CONTAINERS
        ]
        if not level:
            return False
    return True


def pack_document(schema: str, v: int, fields: Mapping[str, object]) -> bytes:
    return pack({"schema": schema, "v": v, **fields})


def unpack_document(data: bytes, *, schema: str, v: int, max_bytes: int = MAX_DOCUMENT_BYTES) -> dict[str, Any]:
    """The fields of a document, without `schema` and `v`. Raises MalformedDocument, UnsupportedSchema."""
    return unpack_versioned(data, schema=schema, v=v, max_bytes=max_bytes)[1]


def unpack_versioned(
    data: bytes, *, schema: str, v: int, max_bytes: int = MAX_DOCUMENT_BYTES
) -> tuple[int, dict[str, Any]]:
    """As `unpack_document`, with the version that was found: at most `v`, and older than that it is to be upgraded."""
    document = unpack(data, kind=schema, max_bytes=max_bytes)
    if not isinstance(document, dict) or document.get("schema") != schema:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise MalformedDocument(schema, f"found {str(found)[:100]!r}")
    version = document.get("v")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise MalformedDocument(schema, f"v={version!r}")
    if version > v:
        raise UnsupportedSchema(schema, found=version, supported=v)
    return version, {key: value for key, value in document.items() if key not in ("schema", "v")}


def unpack_row(
    data: bytes, *, kind: str, length: int, max_bytes: int = MAX_ROW_BYTES, max_depth: int = MAX_DEPTH
) -> list[Any]:
    """A row, its version first, with at least `length` elements. Raises MalformedDocument, UnsupportedSchema."""
    row = unpack(data, kind=kind, max_bytes=max_bytes, max_depth=max_depth)
    # A bool is no version, though Python counts it among the integers.
    if not isinstance(row, list) or not row or type(row[0]) is not int or row[0] < 1:
        raise MalformedDocument(kind, "not an array with a version")
    if row[0] > ROW_VERSION:
        raise UnsupportedSchema(kind, found=row[0], supported=ROW_VERSION)
    if len(row) < length:
        raise MalformedDocument(kind, f"{len(row)} elements instead of {length}")
    return row
