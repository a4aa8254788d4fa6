"""What S3-compatible storage answered."""

from __future__ import annotations

from datetime import UTC, datetime

from headpond.errors.base import HeadpondError


class BlobError(HeadpondError):
    """Storage answered, and the answer was no."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key


class BlobMissing(BlobError):
    def __init__(self, key: str) -> None:
        super().__init__(key, "no such object in storage")


class BlobChanged(BlobError):
    """A conditional put lost: the object exists, or is no longer what was read."""

    def __init__(self, key: str) -> None:
        super().__init__(key, "another writer was first; read it again before writing")


class BlobCorrupt(BlobError):
    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, f"corrupt object: {reason}")
        self.reason = reason


class BlobMismatch(BlobError):
    """What was to be put is not what its caller hashed: it has changed since, and is not stored."""

    def __init__(self, key: str) -> None:
        super().__init__(
            key, "its content changed between being hashed and being stored; nothing was stored. Try again"
        )


class CommitLost(BlobError):
    """Another writer moved the head first. The batch is abandoned: its entries are still in the journal, and what
    of them is already in the chain shows in the watermark of the head. Read the head, then commit again."""

    def __init__(self, key: str) -> None:
        super().__init__(key, "another writer committed first; read the head again, then commit what is left")


class StaleIncarnation(BlobError):
    """Redis names a lower incarnation than storage has seen: it went back in time without noticing, so its journal
    ids may name other entries than the ones in the chain. Nothing was committed."""

    def __init__(self, key: str, *, inc: int, head_inc: int) -> None:
        super().__init__(
            key, f"Redis is at incarnation {inc}, storage has seen {head_inc}; raise it in Redis above that first"
        )
        self.inc = inc
        self.head_inc = head_inc


class HistoryMismatch(BlobError):
    """Storage and Redis hold different histories of one model. Nothing was committed."""

    def __init__(self, key: str, *, found: str, wanted: str) -> None:
        super().__init__(
            key,
            f"storage holds {found}, Redis {wanted}. Nothing is committed until [storage] names the bucket of this "
            "Redis again; the journal keeps what waits.",
        )


class HistoryTooShort(BlobError):
    """Storage keeps no state of a model that is so old. oldest_ms: of the oldest one that is kept, by Redis's clock."""

    def __init__(self, key: str, *, oldest_ms: int) -> None:
        oldest = datetime.fromtimestamp(oldest_ms / 1000, UTC).isoformat(timespec="seconds")
        super().__init__(key, f"no state of that time is kept; the oldest that can be restored is of {oldest}")
        self.oldest_ms = oldest_ms
