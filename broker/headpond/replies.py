"""Replies of stream commands, as redis-py gives them under either protocol. No I/O."""

from __future__ import annotations

from typing import Any

StreamEntry = tuple[str, dict[bytes, bytes]]
"""Entry id and fields."""


def parse_entries(found: Any) -> list[StreamEntry]:
    """Stream entries as redis-py gives them for XRANGE, under either protocol."""
    entries = []
    for entry_id, fields in found or ():
        if not isinstance(fields, dict):
            fields = dict(zip(fields[::2], fields[1::2], strict=True)) if fields else {}
        entries.append((entry_id.decode() if isinstance(entry_id, bytes) else entry_id, fields))
    return entries


def parse_read(found: Any) -> list[StreamEntry]:
    """The entries of an XREAD of one stream."""
    if not found:
        return []
    if isinstance(found, dict):
        (lists,) = found.values()
        # RESP3 replies nest one list deeper.
        flat = (
            lists[0]
            if lists and isinstance(lists[0], list) and lists[0] and isinstance(lists[0][0], (list, tuple))
            else lists
        )
        return parse_entries(flat)
    return parse_entries(found[0][1])
