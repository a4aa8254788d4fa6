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


def parse_scores(found: Any) -> list[tuple[str, int]]:
    """Members and scores of a ZRANGE WITHSCORES, under either protocol."""
    flat = [item for pair in found for item in pair] if found and isinstance(found[0], (list, tuple)) else found
    return [(member.decode(), int(float(score))) for member, score in zip(flat[::2], flat[1::2], strict=True)]


NO_RATE_S = 5.0
"""What a refused producer is told where no job has ended yet."""


def retry_after_s(end_gap_ms: bytes | None) -> float:
    """From `end_gap_ms` of meta: seconds, at least 0.1 and at most 300."""
    return NO_RATE_S if end_gap_ms is None else min(300.0, max(0.1, float(end_gap_ms) / 1000))


def journal_place(journal_id: str) -> tuple[int, int]:
    """A journal id as two numbers, to be compared; (0, 0), which is before all, for what is none."""
    inc, _, seq = journal_id.partition("-")
    return (int(inc), int(seq)) if inc.isdecimal() and seq.isdecimal() else (0, 0)
