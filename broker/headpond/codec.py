"""msgpack as headpond uses it: values, documents and rows, bounded and with versions. No I/O.

A document is a map with `schema` and `v`. A row is an array whose first element is its version. A reader refuses a
newer version, and bounds a value before it unpacks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgpack

from headpond.errors import MalformedDocument, UnsupportedSchema

MAX_DOCUMENT_BYTES = 64 << 20
ROW_VERSION = 1


def pack(value: object) -> bytes:
    return cast("bytes", msgpack.packb(value, use_bin_type=True))


def pack_for_script(value: object) -> bytes:
    """As `pack`, with bytes as msgpack's old raw type: cmsgpack, which scripts have, knows no other."""
    return cast("bytes", msgpack.packb(value, use_bin_type=False))


def unpack_raw(data: bytes, *, kind: str) -> Any:
    """What a script packed: all its text is bytes, for cmsgpack knows no difference. Raises MalformedDocument."""
    try:
        return msgpack.unpackb(data, raw=True)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise MalformedDocument(kind, f"{type(error).__name__}: {str(error)[:200]}") from error


def split_first(data: bytes, *, kind: str) -> tuple[bytes, bytes]:
    """The first of several values that stand one after the other, still packed, and the rest.

    Raises MalformedDocument.
    """
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=True, max_buffer_size=max(len(data), 1))
    unpacker.feed(data)
    try:
        unpacker.skip()
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise MalformedDocument(kind, str(error)) from error
    return data[: unpacker.tell()], data[unpacker.tell() :]


def unpack(data: bytes, *, kind: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Any:
    """Unpack one value. Raises MalformedDocument; allocates no more than len(data) allows."""
    if len(data) > max_bytes:
        raise MalformedDocument(kind, f"{len(data)} bytes; at most {max_bytes} are read")
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise MalformedDocument(kind, f"{type(error).__name__}: {str(error)[:200]}") from error


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


def unpack_row(data: bytes, *, kind: str, length: int) -> list[Any]:
    """A row, its version first, with at least `length` elements. Raises MalformedDocument, UnsupportedSchema."""
    row = unpack(data, kind=kind)
    # A bool is no version, though Python counts it among the integers.
    if not isinstance(row, list) or not row or type(row[0]) is not int or row[0] < 1:
        raise MalformedDocument(kind, "not an array with a version")
    if row[0] > ROW_VERSION:
        raise UnsupportedSchema(kind, found=row[0], supported=ROW_VERSION)
    if len(row) < length:
        raise MalformedDocument(kind, f"{len(row)} elements instead of {length}")
    return row
